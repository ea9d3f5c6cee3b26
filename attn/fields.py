"""What may stand in the fields of masks and score functions, and how it is shown.

Python numbers are checked when a mask or score function is made, arrays when it is used.

A number that is part of the program is checked at once. In the place of an array stands, at times,
what a transform is told about it (an axis to map over, a sharding, None), so a constructor refuses
only what can be neither; ``check`` functions are for when the shapes to fit are known.

Letters: ``*B`` leading axes, T queries, S keys.
"""

import inspect
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

GREATEST = 2**31 - 1
"""Indices are integers of 32 bits."""


@jax.tree_util.register_static
class Constant(int):
    """A Python int in the place of an array: part of the program, no leaf."""


def count(name: str, x: Any, least: int, also: str = "") -> int:
    """Returns a number that is part of the program, an int of ``least`` or more."""
    expected = f"expected {also}an int of {least} or more"
    if not isinstance(x, numbers.Integral) or isinstance(x, bool):
        raise TypeError(f"{name} is {x!r}; {expected}")
    x = int(x)
    if not least <= x <= GREATEST:
        raise ValueError(f"{name} is {x}; {expected}" + (" of 32 bits" if x > GREATEST else ""))
    return x


def limit(name: str, x: Any) -> int | None:
    """Returns a number of 0 or more, or None for no limit, as one that no distance can reach is."""
    is_none = x is None or (isinstance(x, numbers.Integral) and int(x) > GREATEST)
    return None if is_none else count(name, x, 0, also="None or ")


def array(x: Any) -> Any:
    """Returns ``x``; a list, in which JAX would see a pytree of numbers, as an array."""
    return np.asarray(x) if type(x) in (list, tuple) else x


def indexable(tree: Any) -> Any:
    """Returns a tree with its NumPy arrays as JAX's, which traced indices can index."""
    return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, tree)


def integers(name: str, x: Any) -> Any:
    """Returns integers that are leaves."""
    if isinstance(x, bool | float | complex | str):
        raise TypeError(f"{name} is {x!r}; expected integers")
    if isinstance(x, int) and abs(x) > GREATEST:
        raise ValueError(f"{name} is {x}; expected an integer of 32 bits")
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


def check_arguments(label: str, function: Callable[..., Any], names: Sequence[str]) -> None:
    """Raises TypeError if a function is known not to take as many arguments."""
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):  # Of some that are not written in Python none is known.
        return
    try:
        signature.bind(*names)
    except TypeError:
        raise TypeError(
            f"{label} is {function!r}, which takes {signature}; expected a function of "
            f"({', '.join(names)})"
        ) from None


def check_type(name: str, x: Any, scalar: type, kind: Any) -> None:
    """Raises unless ``x`` is a Python ``scalar`` or an array of that ``kind`` of dtype."""
    if not is_array(x) and type(x) is not scalar:
        raise TypeError(f"{name} is {x!r}; expected of type {scalar.__name__}, or an array")
    if is_array(x) and not jnp.issubdtype(x.dtype, kind):
        raise TypeError(f"{name} has dtype {x.dtype}; expected a kind of {kind.__name__}")


def check_shape(name: str, x: Any, shapes: list[tuple[int, ...]], meaning: str) -> None:
    """Raises unless ``x`` has one of these shapes."""
    if jnp.shape(x) not in shapes:
        expected = " or ".join(map(str, shapes))
        raise ValueError(f"{name} has shape {jnp.shape(x)}; expected {expected}, {meaning}")


def is_array(x: Any) -> bool:
    """Returns whether ``x`` is an array, traced or not, or the shape and dtype of one."""
    return hasattr(x, "shape") and hasattr(x, "dtype")


def is_known(x: Any) -> bool:
    """Returns whether the value can be looked at here and now."""
    return not isinstance(x, Tracer) and getattr(x, "is_fully_addressable", True)


class _Verbatim(str):
    """A string that is shown without quotes."""

    __repr__ = str.__str__


def show(tree: Any) -> str:
    """Returns a field as text: arrays by dtype and shape, single numbers by their value."""

    def leaf(x):
        if callable(x):
            return getattr(x, "__name__", type(x).__name__)
        if not is_array(x):
            return repr(x)
        if x.shape == () and hasattr(x, "item") and is_known(x):
            return repr(x.item())
        return f"{x.dtype.name}[{','.join(map(str, x.shape))}]"

    return repr(jax.tree.map(lambda x: _Verbatim(leaf(x)), tree))
