"""What is known of a value of a function of tiles before it is computed, and how it then is.

See ``attn.kernels.pairwise``.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from attn.closures import is_float
from attn.devices import vary, varying

NEITHER, QUERY, KEY = frozenset(), frozenset(("query",)), frozenset(("key",))
PAIR = QUERY | KEY
DISTANCE = frozenset(("distance",))
"""Of tiles."""
OFFSET = frozenset(("offset",))
"""How far the key of a pair is from its query, and what is not left for the kernel."""
Axes = tuple[int, int]
"""Of queries and of keys."""
ELEMENTWISE = frozenset(
    """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp
    clz convert_element_type copy cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge
    gt integer_pow is_finite le le_to lgamma log log1p log2 logistic lt lt_to max min mul ne neg
    nextafter not one_minus_square or population_count pow reduce_precision rem round rsqrt select_n
    shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient
    sub tan tanh threefry2x32 xor
    """.split()  # noqa: SIM905
)
"""Operations that are left for a kernel if their operands depend on both."""
PLACINGS = frozenset(("pcast", "pvary", "reshard", "sharding_constraint"))
"""Operations that say where arrays are: nothing, inside of a kernel."""
JOINS = frozenset(("concatenate", "stack"))
RESHAPES = frozenset(("reshape", "squeeze", "expand_dims"))
OWN_DERIVATIVE = "custom_jvp_call"
"""The operation that is a function of ``jax.custom_jvp``."""


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
    """What it is a result of, a primitive or ``Own``; None for what is given."""
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
    """Whether it is the same along each diagonal of a tile; the operand is of its distances, or of
    pairs that may be elsewhere than in a tile."""
    nearest: int | None = None
    """Of a first key less a query, at the least distance between tiles; see ``Distances``."""
    axes: Axes | None = None
    """Where its pairs are, if it goes by nothing of them but how far they are apart."""

    @property
    def is_number(self) -> bool:
        """Whether it is a number that is known, or an array of such."""
        return self.constant is not None and np.ndim(self.constant) == 0


@dataclasses.dataclass(frozen=True, eq=False)
class Own:
    """An operation: a function that has a derivative of its own, as ``jax.nn.relu`` has."""

    function: Callable[..., list[Any]]
    """``(*operands)`` gives the results."""
    tangents: Callable[..., list[Any]]
    """``(operands, tangents)``, of those operands that are floats, gives those of such results."""
    name = OWN_DERIVATIVE
    multiple_results = True

    def get_bind_params(self, params: dict[str, Any]) -> dict[str, Any]:
        """As primitives have it."""
        return params

    def bind(self, *operands: Any) -> list[Any]:
        """Returns the results."""
        function = jax.custom_jvp(self.function)

        @function.defjvp
        def _(operands, tangents):
            moving = [x for x in tangents if x.dtype != jax.dtypes.float0]
            found = iter(self.tangents(operands, moving))
            results = function(*operands)
            nothing = jax.dtypes.float0
            return results, [
                vary(next(found), varying(x)) if is_float(x) else np.zeros(x.shape, nothing)
                for x in results
            ]

        return function(*operands)


def computed(
    x: Value,
    known: dict[Value, Any],
    *,
    is_placed: bool = True,
    sides: tuple[int, int] | None = None,
) -> Any:
    """Returns a value as narrow as it is, from those that are known.

    Args:
      x: asked for.
      known: what is computed already; what else is, is added.
      is_placed: whether arrays are anywhere, as they are not while a program is read.
      sides: of what stands in the place of a tile, if it is computed outside of a kernel.
    """

    def value_of(y):
        return known[y] if y.constant is None else y.constant

    left = [x]  # A function may be of more operations in a row than calls have room for.
    while left:
        y = left[-1]
        missing = [z for z in y.operands if z.constant is None and z not in known]
        if y.constant is not None or y in known:
            left.pop()
        elif missing:
            left += reversed(missing)
        else:
            assert y.operation is not None, "a number is asked for that an operand decides"
            operands = [value_of(z) for z in y.operands]
            is_placing = y.operation.name in PLACINGS and not is_placed
            known[y] = operands[0] if is_placing else _applied(y, operands, sides)
    return value_of(x)


def shape_of(x: Value, sides: tuple[int, int] | None, *, is_narrow: bool = False) -> Any:
    """Returns the shape, if need be as narrow as it is, with other sides of a tile."""
    return _with_sides(x.narrow if is_narrow else x.shape, x.axes, sides)


def _with_sides(shape: Sequence[int], axes: Axes | None, sides: tuple[int, int] | None) -> Any:
    given = dict(zip(axes or (), sides or (), strict=False))
    return tuple(given.get(axis, n) for axis, n in enumerate(shape))


def _applied(x: Value, operands: list[Any], sides: tuple[int, int] | None) -> Any:
    """Returns what the operation of a value does of narrow operands."""
    name, is_inside = x.operation.name, x.is_inner and sides is None
    axes = varying(operands)
    operands = vary([jnp.asarray(y) for y in operands], axes) if axes else operands
    if name in ELEMENTWISE or (is_inside and name == OWN_DERIVATIVE):
        shape: Any = jnp.broadcast_shapes(*(y.shape for y in operands))
        operands = [repeated(y, shape) for y in operands]
        if is_inside and name in ("abs", "sign"):
            of_operand = _sign(operands[0])
            return of_operand if name == "sign" else of_operand * operands[0]
        found = x.operation.bind(*operands, **x.params)
        return found[x.index] if x.operation.multiple_results else found
    if is_inside or (name in PLACINGS and (axes or x.narrow != x.shape)):
        return operands[0]
    narrow = shape_of(x, sides, is_narrow=True)
    if name == "iota":
        return lax.broadcasted_iota(x.dtype, narrow, x.params["dimension"])
    if name == "broadcast_in_dim":
        axes = x.params["broadcast_dimensions"]
        return lax.broadcast_in_dim(operands[0], narrow, axes)
    if name in RESHAPES:
        (y,) = x.operands
        lanes = *y.shape[:-2], *shape_of(y, sides, is_narrow=True)[-2:]
        if math.prod(narrow) == operands[0].size:
            return jnp.reshape(operands[0], narrow)
        if math.prod(narrow) == math.prod(lanes):  # Its lanes alone are repeated.
            return jnp.reshape(jnp.broadcast_to(operands[0], lanes), narrow)
    # What is not of pairs stands next to what is.
    beside = next((y.axes for y in x.operands if y.axes), None) if name in JOINS else None
    # A function that keeps pairs apart is given what is the same for all of them as it is.
    is_own = name == OWN_DERIVATIVE
    shapes = [
        _with_sides(y.narrow if is_own and not y.depends else y.shape, y.axes or beside, sides)
        for y in x.operands
    ]
    operands = [jnp.broadcast_to(*y) for y in zip(operands, shapes, strict=True)]
    if name in RESHAPES:
        return jnp.reshape(operands[0], shape_of(x, sides))
    if name == "slice" and sides is not None:
        starts, strides = x.params["start_indices"], x.params["strides"]
        limits = _with_sides(x.params["limit_indices"], x.axes, sides)
        return lax.slice(operands[0], starts, limits, strides)
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
