"""What is known of a value of a function of tiles before it is computed, and how it then is.

See ``attn.kernels.pairwise``.
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from attn.devices import vary, varying

NEITHER, QUERY, KEY = frozenset(), frozenset(("query",)), frozenset(("key",))
PAIR = QUERY | KEY
DISTANCE = frozenset(("distance",))
ELEMENTWISE = frozenset(
    """
    abs add add_any and atan2 cbrt ceil clamp clz convert_element_type copy cos cosh div eq erf
    erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le log log1p logistic lt max min
    mul ne neg nextafter not or population_count pow rem round rsqrt select_n shift_left
    shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh
    threefry2x32 xor
    """.split()  # noqa: SIM905
)
"""Operations that are left for a kernel if their operands depend on both."""
PLACINGS = frozenset(("pcast", "pvary", "reshard", "sharding_constraint"))
"""Operations that say where arrays are: nothing, inside of a kernel."""
RESHAPES = frozenset(("reshape", "squeeze", "expand_dims"))


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """What is known of a value before it is computed."""

    depends: frozenset[str]
    """On which index of a tile."""
    shape: tuple[int, ...]
    dtype: Any
    narrow: tuple[int, ...]
    """The shape, with 1 along the axes on which the value only repeats."""
    operation: Any = None
    """The primitive it is a result of; None for what is given, and for constants."""
    params: dict[str, Any] = dataclasses.field(default_factory=dict)
    operands: tuple["Value", ...] = ()
    index: int = 0
    """Which of the results."""
    constant: Any = None
    is_inner: bool = False
    """Whether it is left for the kernel."""
    is_cut: bool = False
    """Whether it is the part of an array that is cut along both axes; the operand is along one."""
    is_diagonal: bool = False
    """Whether it is the same along each diagonal of a tile; the operand is of its distances."""
    nearest: int | None = None
    """Of a first key less a query, at the least distance between tiles; see ``Distances``."""

    @property
    def is_number(self) -> bool:
        """Whether it is a number that is known, or an array of such."""
        return self.constant is not None and np.ndim(self.constant) == 0


def computed(x: Value, known: dict[Value, Any], *, is_placed: bool = True) -> Any:
    """Returns a value as narrow as it is, from those that are known.

    ``is_placed`` is whether arrays are anywhere, as they are not while a program is read.
    """
    if x.constant is not None:
        return x.constant
    if x in known:
        return known[x]
    assert x.operation is not None, "a number is asked for that an operand of the call decides"
    operands = [computed(y, known, is_placed=is_placed) for y in x.operands]
    if x.operation.name in PLACINGS and not is_placed:
        return operands[0]
    known[x] = found = _applied(x, operands)
    return found


def _applied(x: Value, operands: list[Any]) -> Any:
    """Returns what the operation of a value does of narrow operands."""
    name = x.operation.name
    axes = varying(operands)
    operands = vary([jnp.asarray(y) for y in operands], axes) if axes else operands
    if name in ELEMENTWISE:
        shape: Any = jnp.broadcast_shapes(*(y.shape for y in operands))
        operands = [repeated(y, shape) for y in operands]
        if x.is_inner and name in ("abs", "sign"):
            of_operand = _sign(operands[0])
            return of_operand if name == "sign" else of_operand * operands[0]
        found = x.operation.bind(*operands, **x.params)
        return found[x.index] if x.operation.multiple_results else found
    if x.is_inner or (name in PLACINGS and (axes or x.narrow != x.shape)):
        return operands[0]
    if name == "iota":
        return lax.broadcasted_iota(x.dtype, x.narrow, x.params["dimension"])
    if name == "broadcast_in_dim":
        axes = x.params["broadcast_dimensions"]
        return lax.broadcast_in_dim(operands[0], x.narrow, axes)
    if name in RESHAPES and math.prod(x.narrow) == operands[0].size:
        return jnp.reshape(operands[0], x.narrow)
    operands = [jnp.broadcast_to(y, z.shape) for y, z in zip(operands, x.operands, strict=True)]
    params = x.operation.get_bind_params(x.params)
    found = x.operation.bind(*operands, **params)
    return found[x.index] if x.operation.multiple_results else found


def _sign(x: Array) -> Array:
    """Returns 1, -1, or 0 or NaN itself, constant to derivatives.

    As ``lax.sign``, for which Pallas would look at the TPU that is here.
    """
    x = lax.stop_gradient(x)
    one = jnp.ones_like(x)
    return jnp.where(x > 0, one, jnp.where(x < 0, -one, x))


def repeated(x: Array, shape: tuple[int, ...]) -> Array:
    """Returns ``x`` broadcast; booleans as integers, as hardware has no broadcast of them."""
    if x.shape == shape:
        return x
    if x.dtype == bool:
        return jnp.broadcast_to(x.astype(jnp.int32), shape) != 0
    return jnp.broadcast_to(x, shape)
