"""What Mosaic has for GPUs of the operations that a function of pairs is made of."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal

from attn.kernels.lacking import called, dtypes_of

HAS = frozenset(
    """
    abs add and atan2 broadcast_in_dim clamp cos div eq erf exp exp2
    ge gt le log logistic lt max min mul ne neg not or rem round rsqrt select_n
    shift_left shift_right_logical sign sin square sub tanh xor
    """.split()  # noqa: SIM905
)
"""In the layout of a product, as of jax 0.10."""


def _log1p(x, **_):
    """Goldberg, "What every computer scientist should know about floating-point", theorem 4."""
    u = 1 + x
    return jnp.where((u == 1) | (u == jnp.inf), x, x * jnp.log(u) / (u - 1))


def _expm1(x, **_):
    """Kahan's: the error of ``exp`` and that of ``log`` take each other away."""
    u = jnp.exp(x)
    is_moderate = (u != 1) & (u - 1 != -1) & (u < jnp.inf)
    logarithm = jnp.log(jnp.where(is_moderate, u, 2))
    return jnp.where(u == 1, x, jnp.where(is_moderate, (u - 1) * x / logarithm, u - 1))


def _sqrt(x, **_):
    return jnp.where((x == 0) | (x == jnp.inf), x, x * lax.rsqrt(x))


def _threefry2x32(key0, key1, x0, x1):
    """Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011: 20 rounds."""
    keys = key0, key1, key0 ^ key1 ^ jnp.uint32(0x1BD11BDA)
    rotations = (13, 15, 26, 6), (17, 29, 16, 24)
    x0, x1 = x0 + key0, x1 + key1
    for n in range(5):
        for distance in rotations[n % 2]:
            x0 = x0 + x1
            x1 = x1 << jnp.uint32(distance) | x1 >> jnp.uint32(32 - distance)
            x1 = x0 ^ x1
        x0, x1 = x0 + keys[(n + 1) % 3], x1 + keys[(n + 2) % 3] + jnp.uint32(n + 1)
    return x0, x1


def _convert_element_type(x, *, new_dtype, **params):
    if jnp.issubdtype(new_dtype, jnp.bool_):
        return x != 0
    return lax.convert_element_type_p.bind(x, new_dtype=new_dtype, **params)


def _integer_pow(x, *, y):
    """By squares; Knuth, "The Art of Computer Programming", volume 2, section 4.6.3."""
    power, rest = jnp.ones_like(x), abs(y)
    while rest:
        power, rest = power * x if rest % 2 else power, rest // 2
        x = x * x
    return 1 / power if y < 0 else power


def _floor(x, **_):
    nearest = lax.round(x)
    return nearest - (nearest > x).astype(x.dtype)


def _pow(x, y, **_):
    """``exp2(y log2 x)``: off by 2e-5 of itself at most, and by less if it is of usual size.

    -0 is taken for 0.
    """
    y = y.astype(x.dtype)
    is_whole, is_odd = _floor(y) == y, _floor(y / 2) != y / 2
    logarithm = jnp.log(jnp.abs(x)) * np.asarray(1 / math.log(2), x.dtype)
    power = jnp.exp2(jnp.where(logarithm == 0, 0, y * logarithm))
    below = jnp.where(
        is_whole | (x == -jnp.inf), jnp.where(is_whole & is_odd, -power, power), jnp.nan
    )
    power = jnp.where(x >= 0, power, below)
    return jnp.where(y == 0, 1, power)


INSTEAD: dict[str, Callable] = {
    "add_any": lax.add,
    "ceil": lambda x, **_: -_floor(-x),
    "convert_element_type": _convert_element_type,
    "copy": lambda x: x,
    "expm1": _expm1,
    "floor": _floor,
    "integer_pow": _integer_pow,
    "is_finite": lambda x: x - x == 0,
    "log1p": _log1p,
    "pow": _pow,
    "sqrt": _sqrt,
    "stop_gradient": lambda x: x,
    "threefry2x32": _threefry2x32,
}
"""What is the same as one that it has not, or not all of; they take its parameters."""
DTYPES = "bool", "int32", "uint32", "float32", "bfloat16", "float16"
"""Of numbers that it computes with."""


def lack(equation: Any) -> str | None:
    """Returns the name of what an equation has that a kernel has not; None if it has all."""
    name, dtypes = equation.primitive.name, dtypes_of(equation)
    if name not in HAS | INSTEAD.keys():
        return name
    if others := dtypes - {*DTYPES}:
        return f"{name} of {', '.join(sorted(others))}"
    is_of_floats = bool(dtypes & {"float32", "bfloat16", "float16"})
    return "rem of floats" if name == "rem" and is_of_floats else None


def done(function: Callable, *arguments: Any) -> Any:
    """Returns ``function(*arguments)``, by operations that it has."""
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    found = _run(closed, jax.tree.leaves(arguments))
    return jax.tree.unflatten(jax.tree.structure(shapes), found)


def _run(closed: ClosedJaxpr, leaves: Sequence[Any]) -> list[Any]:
    jaxpr = closed.jaxpr
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *leaves), strict=True))

    def read(x):
        return x.val if isinstance(x, Literal) else known[x]

    for equation in jaxpr.eqns:
        operands, name = [read(x) for x in equation.invars], equation.primitive.name
        if (inside := called(equation)) is not None:
            found = _run(inside, operands)
        else:
            primitive: Any = equation.primitive
            bind: Callable = INSTEAD.get(name) or primitive.bind
            found = bind(*operands, **primitive.get_bind_params(equation.params))
            found = found if primitive.multiple_results else [found]
        known.update(zip(equation.outvars, found, strict=True))
    return [read(x) for x in jaxpr.outvars]
