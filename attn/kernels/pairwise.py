"""A function of tiles, taken apart: what belongs to queries, to keys, and to pairs.

Between the two matrix products of a tile stands a function of its pairs: scale, bias, the score
function, the mask, dropout. A kernel can do what is elementwise in pairs and nothing else; but most
of what such a function does is about queries alone or about keys alone, be it a gather, a slice of
an array of ids, or a slope of each head. So the function of tile (i, j) is traced, and every value
in it is known by what it depends on:

- on i alone, on j alone or on neither: it is computed outside, for all tiles at once, and is as
  long as the queries, as the keys, or as the heads are many;
- on both, but on nothing other than how far apart they are: it is computed outside, for all the
  distances that tiles have, and as ``attn.indices.along_diagonals`` given to the kernel;
- on both: it is left for the kernel, and must be elementwise. A part of an array that is cut along
  both axes, such as a dense bias, is given to the kernel cut.

A value of pairs that only repeats one of queries or of keys is never made: it stays as narrow as it
was. What cannot be taken apart so is refused, with the reason.

Letters: T queries, S keys, t and s the sides of a tile.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Primitive
from jaxtyping import Array

from attn.closures import CALLS
from attn.devices import vary, varying
from attn.indices import along_diagonals
from attn.kernels.distances import Distances
from attn.overrides import Refused
from attn.tiles import Share

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


@dataclasses.dataclass(frozen=True)
class Split:
    """A function of tiles, taken apart."""

    distances: Distances
    given: tuple[Value, ...]
    """The operands, i, j, and where row i is at hand."""
    scores: Value
    results: tuple[Value, ...]
    inputs: tuple[Value, ...]
    """What the pairs take from outside."""

    def outer(
        self, values: Sequence[Value], operands: Any, i: Any, j: Any, row: Any
    ) -> list[Array]:
        """Returns these values at a tile, as narrow as they are."""
        at = (jnp.asarray(x, jnp.int32) for x in (i, j, row))
        leaves = (jnp.asarray(x) for x in jax.tree.leaves(operands))
        known = dict(zip(self.given, (*leaves, *at), strict=True))
        return [_computed(x, known) for x in values]

    def along(self, value: Value, operands: Any, shares: tuple[Share, Share]) -> Array:
        """Returns a value at all tiles at hand that it is different at, on a first axis."""
        share = shares[value.depends == KEY] if value.depends else Share(1)
        rows = jnp.arange(share.count, dtype=jnp.int32)
        at = lambda tile, row: self.outer([value], operands, tile, tile, row)[0]  # noqa: E731
        return jax.vmap(at)(jnp.asarray(share[rows], jnp.int32), rows)

    def whole(self, cut: Value, operands: Any, shares: tuple[Share, Share]) -> Array:
        """Returns the array ``[..., T, S]`` that is cut along both axes: what is at hand of it."""
        (along, *_), (rows, columns) = cut.operands, shares
        is_of_rows = along.depends == QUERY
        parts = self.along(along, operands, (rows, Share(self.distances.counts[1])))
        axis = parts.ndim - 2 if is_of_rows else parts.ndim - 1
        parts = jnp.moveaxis(parts, 0, axis - 1)
        parts = jnp.reshape(parts, (*parts.shape[: axis - 1], -1, *parts.shape[axis + 1 :]))
        if columns.tiles is None:
            return parts
        tiles = jnp.reshape(parts, (*parts.shape[:-1], -1, self.distances.sides[1]))
        return jnp.reshape(jnp.take(tiles, columns.tiles, axis=-2), (*parts.shape[:-1], -1))

    def diagonals(self, value: Value, operands: Any) -> Array:
        """Returns what a value repeats along diagonals, at all distances, on a first axis."""
        (along,) = value.operands
        leaves = [jnp.asarray(x) for x in jax.tree.leaves(operands)]

        def at(n):
            known = dict(zip(self.given, leaves, strict=False))
            for x in _firsts(along):
                known[x] = (x.nearest + n * self.distances.step).astype(x.dtype)
            return jnp.broadcast_to(_computed(along, known), along.shape)

        return jax.vmap(at)(jnp.arange(self.distances.count, dtype=jnp.int32))

    def inner(self, known: dict[Value, Array], scores: Array, which: int) -> Array:
        """Returns a result ``[s, t]`` of a tile, or what broadcasts to it.

        Args:
          known: the inputs, each ``[s, t]`` or what broadcasts to it.
          scores: ``[s, t]``.
          which: of the results.
        """
        return _computed(self.results[which], {**known, self.scores: scores})


def split(function: Callable, counts: tuple[int, int], operands: Any, scores: Any) -> Split:
    """Takes apart ``function(operands, i, j, row, scores)``, which returns values of pairs.

    Args:
      function: of whole arrays, of the indices of a tile, of the place of its row in arrays that
        hold some rows of tiles, and of its scores ``[..., t, s]``; returns a list.
      counts: how many tiles of queries and of keys there are.
      operands: a pytree of arrays or their types.
      scores: the type of the scores of a tile.

    Raises:
      Refused: if what depends on both indices is not elementwise.
    """
    index = jax.ShapeDtypeStruct((), jnp.int32)
    closed = jax.make_jaxpr(lambda *x: function(*x))(operands, index, index, index, scores)

    def named(x: Any, depends, **more):
        return Value(depends, x.aval.shape, x.aval.dtype, x.aval.shape, **more)

    *leaves, i, j, row, of_scores = closed.jaxpr.invars
    given = (
        *(named(x, NEITHER) for x in leaves),
        *(named(i, QUERY), named(j, KEY), named(row, QUERY)),
    )
    of_scores = named(of_scores, PAIR, is_inner=True)
    *lanes, rows, columns = scores.shape
    distances = Distances(counts, (rows, columns))
    reader = _Reader(given[-3:], distances, most=16 * math.prod(lanes) * max(rows, columns))
    consts = [reader.constant(x) for x in closed.consts]
    results = reader.values(closed.jaxpr, (*given, of_scores), consts)
    inputs: dict[Value, None] = {}

    def visit(x: Value):
        if x is of_scores or x.is_number:
            return
        if x.is_inner and not (x.is_cut or x.is_diagonal):
            for operand in x.operands:
                visit(operand)
        else:
            inputs[x] = None

    for x in results:
        visit(x)
    for x in inputs:
        _check(x, given, distances)
    return Split(distances, given, of_scores, tuple(results), tuple(inputs))


class _Reader:
    """Reads a program as values; the same operation of the same values is the same value."""

    def __init__(self, tile: tuple[Value, ...], distances: Distances, most: int):
        self.tile = tile
        """i, j and the row."""
        self.distances = distances
        self.most = most
        """How many numbers a value computed outside may be, at a tile."""
        self.made: dict[Any, Value] = {}

    def constant(self, x: Any, dtype: Any = None) -> Value:
        # Numbers are NumPy's: a kernel may hold no array of JAX's.
        x = np.asarray(x, dtype) if np.ndim(x) == 0 and not isinstance(x, Tracer) else x
        made = Value(NEITHER, x.shape, x.dtype, x.shape, constant=x)
        is_number = isinstance(x, np.ndarray) and x.shape == ()
        return self.made.setdefault((x.dtype, str(x)), made) if is_number else made

    def values(
        self, jaxpr: Jaxpr, given: Sequence[Value], consts: Sequence[Value] = ()
    ) -> list[Value]:
        """Returns the results of a program, calls inlined, as values of what is given."""
        known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *given), strict=True))

        def read(x):
            return self.constant(*_literal(x)) if isinstance(x, Literal) else known[x]

        for equation in jaxpr.eqns:
            if equation.effects:
                raise Refused(f"its function of pairs has side effects: {equation.primitive.name}")
            operands = tuple(read(x) for x in equation.invars)
            called = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
            if _is_along_diagonals(equation) and operands[0].depends in (NEITHER, DISTANCE):
                found = [self.along_diagonals(equation, operands[0])]
            elif equation.primitive.name in CALLS and called is not None:
                is_closed = isinstance(called, ClosedJaxpr)
                consts = [self.constant(x) for x in called.consts] if is_closed else []
                found = self.values(called.jaxpr if is_closed else called, operands, consts)
            else:
                found = [
                    self.value(equation.primitive, equation.params, operands, n, x.aval)
                    for n, x in enumerate(equation.outvars)
                ]
            known.update(zip(equation.outvars, found, strict=True))
        return [read(x) for x in jaxpr.outvars]

    def value(
        self,
        primitive: Primitive,
        params: dict[str, Any],
        operands: tuple[Value, ...],
        index: int,
        aval: Any,
    ) -> Value:
        """Returns a result of an operation."""
        name, shape = primitive.name, tuple(aval.shape)
        depends = functools.reduce(frozenset.union, (x.depends for x in operands), NEITHER)
        nearest = self.nearest(operands) if name == "sub" and shape == () else None
        if nearest is not None:
            depends = DISTANCE
        elif depends > DISTANCE:
            depends = PAIR
        if operands and all(x.is_number for x in operands):  # And so is the result.
            if name == "broadcast_in_dim":
                narrow = (1,) * len(shape)
                return dataclasses.replace(operands[0], shape=shape, narrow=narrow)
            if name in ELEMENTWISE and not primitive.multiple_results:
                with jax.ensure_compile_time_eval():
                    found = primitive.bind(*(x.constant for x in operands), **params)
                made = self.constant(np.asarray(found), aval.dtype)
                return dataclasses.replace(made, shape=shape, narrow=(1,) * len(shape))
        is_inner = any(x.is_inner for x in operands) or depends == PAIR
        narrow, is_cut = self.narrow(name, params, operands, shape, is_inner)
        made = Value(
            depends,
            shape,
            aval.dtype,
            narrow,
            primitive,
            params,
            operands,
            index,
            is_inner=is_inner,
            is_cut=is_cut,
            nearest=nearest,
        )
        return self.made.setdefault((name, str(params), operands, index), made)

    def along_diagonals(self, equation: Any, x: Value) -> Value:
        """Returns a tile of what is known of each distance."""
        (out,) = equation.outvars
        shape = tuple(out.aval.shape)
        made = Value(PAIR, shape, out.aval.dtype, shape, equation.primitive, operands=(x,))
        made = dataclasses.replace(made, is_inner=True, is_diagonal=True)
        return self.made.setdefault(("along_diagonals", x), made)

    def nearest(self, operands: Sequence[Value]) -> int | None:
        """Returns a key less a query at the least distance between tiles, if it goes by that."""
        if [x.depends for x in operands] != [KEY, QUERY]:
            return None
        ends = []
        for x, count, side in zip(
            reversed(operands), self.distances.counts, self.distances.sides, strict=True
        ):
            at = _at_each(x, self.tile, count)
            if at is None or at != [at[0] + n * side for n in range(count)]:
                return None
            ends.append(at)
        return ends[1][0] - ends[0][-1]

    def narrow(
        self,
        name: str,
        params: dict[str, Any],
        operands: tuple[Value, ...],
        shape: tuple[int, ...],
        is_inner: bool,
    ) -> tuple[tuple[int, ...], bool]:
        """Returns the narrow shape of a result, and whether it is cut along both axes."""
        rank = len(shape)
        if name in ELEMENTWISE | PLACINGS:
            shapes = [x.narrow for x in operands if len(x.narrow) == rank]
            return tuple(max(sizes) for sizes in zip(*shapes, strict=True)), False
        if name == "iota" and not is_inner:
            return tuple(n if k == params["dimension"] else 1 for k, n in enumerate(shape)), False
        if name == "dynamic_slice" and _is_cut(operands, params["slice_sizes"]):
            return shape, True
        x = operands[0] if operands else None
        if name == "broadcast_in_dim" and x is not None:
            axes = params["broadcast_dimensions"]
            narrow = [1] * rank
            for axis, n in zip(axes, x.narrow, strict=True):
                narrow[axis] = n
            moves = [
                (axis - rank, n - len(x.shape)) for n, axis in enumerate(axes) if x.narrow[n] != 1
            ]
            # Inside, the last two axes are all there is, and each stays where it is.
            if not is_inner or all(after == before for after, before in moves if after >= -2):
                return tuple(narrow), False
        if name in RESHAPES and x is not None and rank >= 2 and shape[-2:] == x.shape[-2:]:
            lanes = (1,) * (rank - 2) if is_inner or math.prod(x.narrow[:-2]) == 1 else None
            if lanes is not None:
                return (*lanes, *x.narrow[-2:]), False
        if is_inner:
            raise Refused(f"its function of pairs is not elementwise: {name} of pairs")
        for x in operands:
            if x.narrow != x.shape and math.prod(x.shape) > self.most:
                raise Refused(f"its function of pairs makes them of queries or keys: {name}")
        return shape, False


def _literal(x: Any) -> tuple[Any, Any]:
    return x.val, x.aval.dtype


def _is_cut(operands: tuple[Value, ...], sizes: Sequence[int]) -> bool:
    """Returns whether a slice cuts, along the other axis, what is cut along one."""
    x, *starts = operands
    if x.is_inner or x.depends not in (QUERY, KEY) or x.narrow != x.shape or len(x.shape) < 2:
        return False
    axis = len(x.shape) + (-1 if x.depends == QUERY else -2)
    other = PAIR - x.depends
    return all(
        start.depends == other if n == axis else size == x.shape[n]
        for n, (start, size) in enumerate(zip(starts, sizes, strict=True))
    )


def _computed(x: Value, known: dict[Value, Any], *, is_placed: bool = True) -> Any:
    """Returns a value as narrow as it is, from those that are known.

    ``is_placed`` is whether arrays are anywhere, as they are not while a program is read.
    """
    if x.constant is not None:
        return x.constant
    if x in known:
        return known[x]
    assert x.operation is not None, "a number is asked for that an operand of the call decides"
    operands = [_computed(y, known, is_placed=is_placed) for y in x.operands]
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


def repeated(x: Array, shape: tuple[int, ...]) -> Array:
    """Returns ``x`` broadcast; booleans as integers, as hardware has no broadcast of them."""
    if x.shape == shape:
        return x
    if x.dtype == bool:
        return jnp.broadcast_to(x.astype(jnp.int32), shape) != 0
    return jnp.broadcast_to(x, shape)


def _is_along_diagonals(equation: Any) -> bool:
    name = equation.params.get("name")
    known: Any = along_diagonals
    return equation.primitive.name in CALLS and name == known.__name__


def _firsts(x: Value) -> set[Value]:
    """Returns the keys less queries that a value goes by."""
    if x.nearest is not None:
        return {x}
    return set().union(*map(_firsts, x.operands))


def _at_each(x: Value, tile: tuple[Value, ...], count: int) -> list[int] | None:
    """Returns a number that is of queries or of keys at each tile; None if it is not known."""
    nowhere = jax.sharding.AbstractMesh((), ())  # Numbers are computed here, wherever this runs.
    try:
        with jax.sharding.use_abstract_mesh(nowhere), jax.ensure_compile_time_eval():
            given = (dict.fromkeys(tile, jnp.int32(n)) for n in range(count))
            return [int(_computed(x, known, is_placed=False)) for known in given]
    except (jax.errors.ConcretizationTypeError, AssertionError):
        return None


def _check(x: Value, given: tuple[Value, ...], distances: Distances) -> None:
    """Raises unless an input is of rows, of columns, or a part cut where its tile stands."""
    rows, columns = (1, 1, *x.narrow)[-2:]
    if x.is_cut:
        along, *starts = x.operands
        axis = -1 if along.depends == QUERY else -2
        side, count = distances.sides[axis], distances.counts[axis]
        at = _at_each(starts[axis], given[-3:], count)
        if at is None:
            raise Refused("it cuts an array at a place that is not known")
        if at != [n * side for n in range(count)] or x.shape[-2:] != distances.sides:
            raise Refused("it cuts an array elsewhere than at its tile")
    elif x.is_diagonal:
        if x.shape[-2:] != distances.sides:
            raise Refused("it repeats along diagonals what is not a tile")
    elif x.depends in (PAIR, DISTANCE) or (rows != 1 and columns != 1):
        raise Refused("it holds an array of pairs")
    elif (columns != 1 and x.depends != KEY) or (rows != 1 and x.depends == KEY):
        raise Refused("it holds keys where queries are, or queries where keys are")
