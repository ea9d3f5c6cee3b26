"""What may stand in the fields of a mask: Python numbers checked when it is made, arrays when used.

A number that is part of the program is checked at once. In the place of an array stands, at times,
what a transform is told about it (an axis to map over, a sharding, None), so a constructor refuses
only what can be neither; ``check`` functions are for when the shapes to fit are known.

Letters: ``*B`` leading axes, T queries, S keys.
"""

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_static
class Constant(int):
    """A Python int in the place of an array: part of the program, no leaf."""


def count(name: str, x: Any, least: int, also: str = "") -> int:
    """Returns a number that is part of the program, an int of ``least`` or more."""
    expected = f"expected {also}an int of {least} or more"
    if not isinstance(x, numbers.Integral) or isinstance(x, bool):
        raise TypeError(f"{name} is {x!r}; {expected}")
    if x < least:
        raise ValueError(f"{name} is {x}; {expected}")
    return int(x)


def limit(name: str, x: Any) -> int | None:
    """Returns a number of 0 or more, or None for no limit."""
    return None if x is None else count(name, x, 0, also="None or ")


def array(x: Any) -> Any:
    """Returns ``x``; a list, in which JAX would see a pytree of numbers, as an array."""
    return np.asarray(x) if type(x) in (list, tuple) else x


def integers(name: str, x: Any) -> Any:
    """Returns integers that are leaves."""
    if isinstance(x, bool | float | complex | str):
        raise TypeError(f"{name} is {x!r}; expected integers")
    return array(x)


def constant_or_integers(name: str, x: Any) -> Any:
    """Returns a Python int as part of the program, an array as a leaf."""
    x = integers(name, x)
    return Constant(x) if isinstance(x, int) else x


def broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Returns whether an array of this shape broadcasts to that shape."""
    return len(shape) <= len(to) and all(
        n in (1, m) for n, m in zip(reversed(shape), reversed(to), strict=False)
    )


def check_integers(label: str, x: Any, batch: tuple[int, ...], **last: int) -> None:
    """Raises unless ``x`` holds integers that broadcast to ``[*B]``, or to that and a last axis."""
    if not hasattr(x, "dtype") and not isinstance(x, int):
        raise TypeError(f"mask {label} is a {type(x).__name__}; expected integers")
    dtype = np.dtype(int) if isinstance(x, int) else x.dtype
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"mask {label} has dtype {dtype}; expected an integer one")
    shape, expected = np.shape(x), (*batch, *last.values())
    if not broadcasts(shape, expected) or (last and shape[-1:] != expected[-1:]):
        form = f"(..., {expected[-1]})" if last else "one"
        raise ValueError(
            f"mask {label} has shape {shape}; expected {form} broadcastable to "
            f"[{', '.join(['*B', *last])}] = {expected}"
        )
