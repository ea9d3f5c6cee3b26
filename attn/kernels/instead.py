"""Operations on pairs that hardware has not, by others that it has.

A function of pairs is differentiated as it is written, and of the result every operation is
replaced that has something in its place: so a derivative is of what was asked for, not of how it is
computed. Errors are those of float32, in which half precision is computed too and then rounded;
float64, which no hardware of these kernels has, is exact.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal
from jaxtyping import Array

from attn.closures import called
from attn.kernels.lacking import INSIDE, dtypes_of

LOG_2 = math.log(2)
HALF = jnp.bfloat16, jnp.float16
"""Computed in float32 where others stand for an operation."""


def acosh(x: Array, **_: Any) -> Array:
    """Returns the inverse of ``cosh``; NaN below 1."""
    more = jnp.minimum(x, 1e9) - 1
    found = jnp.where(x > 1e9, jnp.log(x) + LOG_2, jnp.log1p(more + jnp.sqrt(more * (more + 2))))
    return jnp.where(x < 1, jnp.nan, found)


def asinh(x: Array, **_: Any) -> Array:
    """Returns the inverse of ``sinh``."""
    size = jnp.abs(x)
    near = jnp.minimum(size, 1e9)
    found = jnp.log1p(near + near * near / (1 + jnp.sqrt(1 + near * near)))
    found = jnp.where(size > 1e9, jnp.log(size) + LOG_2, found)
    return jnp.where(x < 0, -found, found)


def atanh(x: Array, **_: Any) -> Array:
    """Returns the inverse of ``tanh``, of its size: of -1 + e the quotient would lose e."""
    size = jnp.abs(x)
    found = jnp.log1p(2 * size / (1 - size)) / 2
    return jnp.where(x < 0, -found, found)


def cbrt(x: Array, **_: Any) -> Array:
    """Returns the third root."""
    found = jnp.exp2(jnp.log(jnp.abs(x)) * (1 / 3 / LOG_2))
    return jnp.where(x < 0, -found, found)


def erfc(x: Array, **_: Any) -> Array:
    """Press et al., "Numerical recipes", section 6.2: off by 1.2e-7 of itself, and by rounding."""
    if x.dtype == jnp.float64:
        return lax.erfc(x)
    size = jnp.abs(x)
    t = 1 / (1 + size / 2)
    terms = (
        *(-1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806),
        *(0.27886807, -1.13520398, 1.48851587, -0.82215223, 0.17087277),
    )
    total = jnp.full_like(t, terms[-1])
    for term in terms[-2::-1]:
        total = total * t + term
    tail = t * jnp.exp(total - size * size)
    return jnp.where(x < 0, 2 - tail, tail)


def expm1(x: Array, **_: Any) -> Array:
    """Kahan's: the error of ``exp`` and that of ``log`` take each other away."""
    u = jnp.exp(x)
    is_moderate = (u != 1) & (u - 1 != -1) & (u < jnp.inf)
    logarithm = jnp.log(jnp.where(is_moderate, u, 2))
    return jnp.where(u == 1, x, jnp.where(is_moderate, (u - 1) * (x / logarithm), u - 1))


def sinh(x: Array, **_: Any) -> Array:
    """Returns the half of ``exp(x) - exp(-x)``."""
    near = jnp.clip(x, -1, 1)
    near = (jnp.expm1(near) - jnp.expm1(-near)) / 2
    return jnp.where(jnp.abs(x) < 1, near, jnp.exp(x - LOG_2) - jnp.exp(-x - LOG_2))


OF_BOTH: dict[str, Callable] = {
    "acos": lambda x, **_: lax.atan2(jnp.sqrt((1 - x) * (1 + x)), x),
    "acosh": acosh,
    "asin": lambda x, **_: lax.atan2(x, jnp.sqrt((1 - x) * (1 + x))),
    "asinh": asinh,
    "atan": lambda x, **_: lax.atan2(x, jnp.ones_like(x)),
    "atanh": atanh,
    "cbrt": cbrt,
    "copy": lambda x, **_: x,
    "cosh": lambda x, **_: jnp.exp(x - LOG_2) + jnp.exp(-x - LOG_2),
    "erfc": erfc,
    "expm1": expm1,
    "log2": lambda x, **_: jnp.log(x) / LOG_2,
    "one_minus_square": lambda x, **_: (1 - x) * (1 + x),
    "sinh": sinh,
}
"""What neither GPU nor TPU has, by name; all take the parameters of the operation."""


@dataclasses.dataclass(frozen=True)
class Operations:
    """What a function of pairs may consist of on some hardware."""

    has: frozenset[str]
    """By name."""
    dtypes: frozenset[str]
    """Of numbers that it computes with."""
    instead: Mapping[str, Callable]
    """In the place of those that it has not, or not all of; they take the parameters."""

    def lack(self, equation: Any) -> str | None:
        """Returns the name of what an equation has that a kernel has not; None if it has all."""
        name = equation.primitive.name
        if name not in self.has | self.instead.keys():
            return name
        others = sorted(dtypes_of(equation) - self.dtypes)
        return f"{name} of {', '.join(others)}" if others else None

    def done(self, function: Callable, *arguments: Any) -> Any:
        """Returns ``function(*arguments)``, by operations that it has."""
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        found = self._run(closed, jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shapes), found)

    def _run(self, closed: ClosedJaxpr, leaves: Sequence[Any]) -> list[Any]:
        jaxpr = closed.jaxpr
        known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *leaves), strict=True))

        def read(x):
            return x.val if isinstance(x, Literal) else known[x]

        for equation in jaxpr.eqns:
            operands, name = [read(x) for x in equation.invars], equation.primitive.name
            params = equation.primitive.get_bind_params(equation.params)
            if (inside := called(equation, INSIDE)) is not None:
                found = self._run(inside, operands)
            elif name in self.instead:
                found = self._replaced(name, operands, params)
                dtypes = (x.aval.dtype for x in equation.outvars)
                found = [x.astype(dtype) for x, dtype in zip(found, dtypes, strict=True)]
            else:
                found = equation.primitive.bind(*operands, **params)
                found = found if equation.primitive.multiple_results else [found]
            known.update(zip(equation.outvars, found, strict=True))
        return [read(x) for x in jaxpr.outvars]

    def _replaced(self, name: str, operands: Sequence[Any], params: dict[str, Any]) -> list[Any]:
        """Of what stands for an operation, others may be replaced; itself is what there is."""
        instead = {other: x for other, x in self.instead.items() if other != name}
        rest = dataclasses.replace(self, instead=instead)
        operands = [jnp.asarray(x) if isinstance(x, np.generic) else x for x in operands]
        operands = [x.astype(jnp.float32) if x.dtype in HALF else x for x in operands]
        return jax.tree.leaves(rest.done(lambda *x: self.instead[name](*x, **params), *operands))
