"""Reads a program of tiles as values: each known by what it depends on, and where it is computed.

See ``attn.kernels.pairwise``.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Primitive

from attn.closures import CALLS, called, identities, rule_of
from attn.indices import along_diagonals, of_pairs
from attn.kernels.distances import Distances
from attn.kernels.given import at_each
from attn.kernels.lanes import Lanes
from attn.kernels.offsets import SHIFTED, axes_of, followed
from attn.kernels.values import (
    DISTANCE,
    ELEMENTWISE,
    KEY,
    NEITHER,
    OFFSET,
    OWN_DERIVATIVE,
    PAIR,
    PLACINGS,
    QUERY,
    RESHAPES,
    Axes,
    Own,
    Value,
    computed,
    shape_of,
)
from attn.overrides import Refused


class Reader:
    """Reads a program as values; the same operation of the same values is the same value."""

    def __init__(
        self,
        tile: tuple[Value, ...],
        distances: Distances,
        most: int,
        lanes: Lanes,
        *,
        is_differentiated: bool = True,
    ):
        self.tile = tile
        """i, j and the row."""
        self.distances = distances
        self.lanes = lanes
        self.most = most
        """How many numbers a value computed outside may be, at a tile."""
        self.is_differentiated = is_differentiated
        """Whether what is read has a derivative, as a derivative itself has none in a kernel."""
        self.made: dict[Any, Value] = {}

    def constant(self, x: Any, dtype: Any = None) -> Value:
        # Numbers are NumPy's: a kernel may hold no array of JAX's.
        x = np.asarray(x, dtype) if np.ndim(x) == 0 and not isinstance(x, Tracer) else x
        made = Value(NEITHER, x.shape, x.dtype, x.shape, constant=x)
        is_number = isinstance(x, np.ndarray) and x.shape == ()
        return self.made.setdefault((x.dtype, str(x), ()), made) if is_number else made

    def values(
        self, jaxpr: Jaxpr, given: Sequence[Value], consts: Sequence[Value] = ()
    ) -> list[Value]:
        """Returns the results of a program, calls inlined, as values of what is given."""
        known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *given), strict=True))

        def read(x):
            return self.constant(*_literal(x)) if isinstance(x, Literal) else known[x]

        for equation in jaxpr.eqns:
            if equation.effects and equation.primitive.name != "axis_index":
                raise Refused(f"its function of pairs has side effects: {equation.primitive.name}")
            operands = tuple(read(x) for x in equation.invars)
            is_of_distances = operands and operands[0].depends in (NEITHER, DISTANCE)
            if _is_call_of(along_diagonals, equation) and is_of_distances:
                found = [self.along_diagonals(equation, operands[0])]
            elif _is_call_of(of_pairs, equation):
                found = self.of_pairs(operands)
            elif (program := called(equation)) is not None:
                consts = [self.constant(x) for x in program.consts]
                found = self.values(program.jaxpr, operands, consts)
            elif equation.primitive.name == OWN_DERIVATIVE and _depends(operands) in (PAIR, OFFSET):
                if self.is_differentiated:
                    found = self.own_derivative(equation, operands)
                else:
                    found = self.values(equation.params["call_jaxpr"].jaxpr, operands)
            else:
                axes = self.axes(equation, operands)
                found = [
                    self.value(equation.primitive, equation.params, operands, n, x.aval, axes[n])
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
        axes: Axes | None,
    ) -> Value:
        """Returns a result of an operation."""
        name, shape = primitive.name, tuple(aval.shape)
        if axes is None:
            operands = self.settled(operands)
        depends = _depends(operands)
        nearest = None
        if name == "sub" and not shape and [x.depends for x in operands] == [KEY, QUERY]:
            nearest = self.nearest(operands)
            depends = PAIR if nearest is None else DISTANCE
        if operands and all(x.is_number for x in operands):  # And so is the result.
            if name == "broadcast_in_dim":
                return self.full(operands[0], shape)
            if name in PLACINGS:
                return operands[0]
            if name in ELEMENTWISE and not primitive.multiple_results:
                with jax.ensure_compile_time_eval():
                    found = primitive.bind(*(x.constant for x in operands), **params)
                return self.full(self.constant(np.asarray(found), aval.dtype), shape)
        is_inner = any(x.is_inner for x in operands) or depends == PAIR
        narrow, is_cut = shape, False
        if OFFSET not in _all(operands):
            try:
                narrow, is_cut = self.narrow(name, params, operands, shape, is_inner)
                if is_inner:
                    self.check_inner(name, operands, narrow, aval.dtype)
            except Refused:
                if axes is None:
                    raise
                depends = OFFSET
        if OFFSET in {depends} | _all(operands):
            depends, is_inner = OFFSET, False
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
            axes=axes,
        )
        # Functions are not told apart by what parameters print.
        printed = str(params), tuple(identities(params))
        return self.made.setdefault((name, printed, operands, index), made)

    def check_inner(
        self, name: str, operands: tuple[Value, ...], narrow: tuple[int, ...], dtype: Any
    ) -> None:
        """Raises ``Refused`` unless a result can be left for a kernel."""
        self.lanes.check(name, _before(name, operands[0]), narrow)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise Refused(f"its function of pairs has complex numbers: {name}")

    def axes(self, equation: Any, operands: tuple[Value, ...]) -> list[Axes | None]:
        """Returns where the pairs of the results are, of what goes by their offsets alone."""
        name, shapes = equation.primitive.name, [tuple(x.aval.shape) for x in equation.outvars]
        if name in SHIFTED and {x.depends for x in operands} == {QUERY, KEY}:
            rank = len(shapes[0])
            is_offset = rank > 1 and self.nearest(operands) is not None
            return [(rank - 2, rank - 1) if is_offset else None]
        if not all(x.axes or not x.depends for x in operands):
            return [None for _ in shapes]
        return [followed(name, equation.params, operands, shape) for shape in shapes]

    def settled(self, operands: Sequence[Value]) -> tuple[Value, ...]:
        """Returns them, what goes by offsets alone as tiles that a kernel is given."""
        return tuple(self.of_offsets(x) if x.depends == OFFSET else x for x in operands)

    def of_offsets(self, x: Value) -> Value:
        """Returns a tile of what is known of each offset of a key from a query."""
        if x.axes != (len(x.shape) - 2, len(x.shape) - 1):
            raise Refused(_of_pairs(x.operation.name))
        found, left = {x}, [x]
        while left:
            of_pairs = {y for y in left.pop().operands if y.axes}
            left += of_pairs - found
            found |= of_pairs
        firsts = [y for y in found if {z.depends for z in y.operands} == {QUERY, KEY}]
        params = {"nearest": {y: self.nearest(y.operands) for y in firsts}}
        made = Value(PAIR, x.shape, x.dtype, x.shape, x.operation, params, (x,))
        made = dataclasses.replace(made, is_inner=True, is_diagonal=True)
        return self.made.setdefault(("of_offsets", x), made)

    def own_derivative(self, equation: Any, operands: tuple[Value, ...]) -> list[Value]:
        """Returns the results of a function of pairs that has a derivative of its own."""
        if all(x.axes or not x.depends for x in operands):
            try:
                return self.own(equation, operands, is_inner=OFFSET not in _all(operands))
            except Refused:
                return self.own(equation, operands, is_inner=False)
        return self.own(equation, self.settled(operands), is_inner=True)

    def own(self, equation: Any, operands: tuple[Value, ...], *, is_inner: bool) -> list[Value]:
        """Returns the same, left for a kernel or as of offsets.

        Raises:
          Refused: if it does not keep pairs apart in all that it takes and makes.
        """
        rule, moving = rule_of(equation)
        given = [x if x.is_number else _given(x, is_inner=is_inner) for x in operands]
        moved = [*given, *(_given(operands[n], is_inner=is_inner) for n in moving)]
        results = self.kept_apart(equation.params["call_jaxpr"], given, is_inner=is_inner)
        here = self.tile, self.distances, self.most, self.lanes
        of_rule = Reader(*here, is_differentiated=False)
        results_of_rule = of_rule.kept_apart(rule, moved, is_inner=is_inner)

        def run(*arrays):
            return _run(results, given, arrays, is_inner=is_inner)

        def run_rule(arrays, of_moving):
            return _run(results_of_rule, moved, [*arrays, *of_moving], is_inner=is_inner)

        operation: Any = Own(run, run_rule)
        depends = PAIR if is_inner else OFFSET
        return [
            Value(
                depends,
                *(x.shape, x.dtype, x.narrow, operation, {}, operands, n),
                is_inner=is_inner,
                axes=x.axes,
            )
            for n, x in enumerate(results)
        ]

    def kept_apart(
        self, closed: ClosedJaxpr, given: Sequence[Value], *, is_inner: bool
    ) -> list[Value]:
        """Returns the results of a program that keeps pairs apart.

        Raises:
          Refused: if it does not.
        """
        results = self.values(closed.jaxpr, given, [self.constant(x) for x in closed.consts])
        if not is_inner:
            if all(x.depends == OFFSET for x in results):
                return results
            raise Refused("its function of offsets has what is of none")
        known, left = set(given), list(results)
        while left:  # Of what a kernel is to compute there is nothing that it is not given.
            x = left.pop()
            if x in known or x.is_number:
                continue
            if not (x.is_inner and x.operands):
                raise Refused("its function of pairs has a derivative of more than pairs")
            known.add(x)
            left += x.operands
        return results

    def full(self, number: Value, shape: tuple[int, ...]) -> Value:
        """Returns an array of a number that is known."""
        made = dataclasses.replace(number, shape=shape, narrow=(1,) * len(shape))
        return self.made.setdefault((number.dtype, str(number.constant), shape), made)

    def along_diagonals(self, equation: Any, x: Value) -> Value:
        """Returns a tile of what is known of each distance."""
        (out,) = equation.outvars
        shape = tuple(out.aval.shape)
        made = Value(PAIR, shape, out.aval.dtype, shape, equation.primitive, operands=(x,))
        made = dataclasses.replace(made, is_inner=True, is_diagonal=True)
        return self.made.setdefault(("along_diagonals", x), made)

    def of_pairs(self, operands: Sequence[Value]) -> list[Value]:
        """Returns the part of an array of all pairs that is at the tile.

        Raises:
          Refused: if what is looked up is elsewhere.
        """
        table, *places = operands
        sides, counts = self.distances.sides, self.distances.counts
        for x, depends, side, count in zip(places, (QUERY, KEY), sides, counts, strict=True):
            at = at_each(x, self.tile, count) if x.depends == depends else None
            if at is None or at.size != count * side or (at.ravel() != np.arange(at.size)).any():
                raise Refused("its function of pairs looks up what is of other pairs")
        if table.depends:
            raise Refused("its function of pairs looks up what is of queries or of keys")

        def cut(table, i, j):
            rows, columns = (n * side for n, side in zip(counts, sides, strict=True))
            table = table[..., :rows, :columns]
            more = rows - table.shape[-2], columns - table.shape[-1]
            table = jnp.pad(table, [*((0, 0) for _ in table.shape[:-2]), *((0, n) for n in more)])
            rows = jax.lax.dynamic_slice_in_dim(table, i * sides[0], sides[0], -2)
            return jax.lax.dynamic_slice_in_dim(rows, j * sides[1], sides[1], -1)

        index = jax.ShapeDtypeStruct((), jnp.int32)
        types = jax.ShapeDtypeStruct(table.shape, table.dtype), index, index
        return self.values(jax.make_jaxpr(cut)(*types).jaxpr, (table, *self.tile[:2]))

    def nearest(self, operands: Sequence[Value]) -> int | None:
        """Returns a key less a query at the least distance between tiles; None if not known.

        Of arrays, the first key less the first query: both are consecutive, or it is not known.
        """
        first: dict[frozenset[str], int] = {}
        for axis, depends in ((-2, QUERY), (-1, KEY)):
            (x,) = (x for x in operands if x.depends == depends)
            count, side = self.distances.counts[axis], self.distances.sides[axis]
            at = at_each(x, self.tile, count)
            if at is None:
                return None
            starts = at.reshape(count, -1)[:, 0]
            first[depends] = int(starts[0 if depends == KEY else -1])
            expected = int(starts[0]) + side * np.arange(count)
            expected = expected.reshape(count, *(1 for _ in x.shape))
            if x.shape:
                expected = expected + np.arange(side).reshape(side, *(1,) * (-1 - axis))
            if not (at.ndim == expected.ndim and (at == expected).all()):
                return None
        return first[KEY] - first[QUERY]

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
            is_same = math.prod(x.narrow[:-2]) == 1
            lanes = (1,) * (rank - 2) if is_same else shape[:-2]
            return (*lanes, *x.narrow[-2:]), False
        if is_inner:
            raise Refused(_of_pairs(name))
        for x in operands:
            if x.narrow != x.shape and math.prod(x.shape) > self.most:
                raise Refused(f"its function of pairs makes them of queries or keys: {name}")
        return shape, False


def _before(name: str, x: Value) -> tuple[int, ...] | None:
    """Returns the shape of an operand, with 1 where it repeats, if its leading axes may move."""
    if name in RESHAPES:
        return x.shape if math.prod(x.narrow[:-2]) != 1 else x.narrow
    return x.narrow if name == "broadcast_in_dim" else None


def _of_pairs(name: str) -> str:
    """Returns why an operation that is of pairs keeps a call from kernels."""
    if name.startswith("custom_"):
        return f"its function of pairs has a derivative of its own: {name} of pairs"
    return f"its function of pairs is not elementwise, nor of offsets: {name} of pairs"


def _depends(operands: Sequence[Value]) -> frozenset[str]:
    """Returns what depends on what of these does."""
    found = functools.reduce(frozenset.union, (x.depends for x in operands), NEITHER)
    return PAIR if len(found) > 1 else found


def _all(operands: Sequence[Value]) -> set[frozenset[str]]:
    return {x.depends for x in operands}


def _given(x: Value, *, is_inner: bool) -> Value:
    """Returns what a function of its own derivative is given, for what it is called with."""
    is_of_none = not x.depends and x.narrow[-2:] == (1, 1)
    if is_inner:
        axes = axes_of(x) if x.axes or is_of_none else None
        return Value(PAIR, x.shape, x.dtype, x.narrow, is_inner=True, axes=axes)
    if not x.depends:
        return Value(NEITHER, x.shape, x.dtype, x.narrow)
    return Value(OFFSET, x.shape, x.dtype, x.shape, axes=axes_of(x))


def _run(
    results: Sequence[Value], given: Sequence[Value], arrays: Sequence[Any], *, is_inner: bool
) -> list[Any]:
    """Returns the results of what is given: all of one shape inside, else as of other tiles."""
    pairs = [(x, y) for x, y in zip(given, arrays, strict=True) if not x.is_number]
    known: dict[Value, Any] = dict(pairs)
    if is_inner:
        shape = jnp.broadcast_shapes(*(jnp.shape(y) for _, y in pairs))
        return [jnp.broadcast_to(computed(x, known), shape) for x in results]
    (x, y), *_ = (pair for pair in pairs if pair[0].axes)
    query, key = axes_of(x)
    sides = y.shape[query], y.shape[key]
    return [jnp.broadcast_to(computed(x, known, sides=sides), shape_of(x, sides)) for x in results]


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


def _is_call_of(function: Any, equation: Any) -> bool:
    """Returns whether an operation is a function of ours, of a name that is nobody else's."""
    name = equation.params.get("name")
    return equation.primitive.name in CALLS and name == function.__name__
