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

from attn.closures import CALLS
from attn.indices import along_diagonals
from attn.kernels.distances import Distances
from attn.kernels.values import (
    DISTANCE,
    ELEMENTWISE,
    KEY,
    NEITHER,
    PAIR,
    PLACINGS,
    QUERY,
    RESHAPES,
    Value,
    computed,
)
from attn.overrides import Refused


class Reader:
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
                return self.full(operands[0], shape)
            if name in ELEMENTWISE and not primitive.multiple_results:
                with jax.ensure_compile_time_eval():
                    found = primitive.bind(*(x.constant for x in operands), **params)
                return self.full(self.constant(np.asarray(found), aval.dtype), shape)
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
            own = name.startswith("custom_")
            why = "has a derivative of its own" if own else "is not elementwise"
            raise Refused(f"its function of pairs {why}: {name} of pairs")
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


def _is_along_diagonals(equation: Any) -> bool:
    name = equation.params.get("name")
    known: Any = along_diagonals
    return equation.primitive.name in CALLS and name == known.__name__


def _at_each(x: Value, tile: tuple[Value, ...], count: int) -> list[int] | None:
    """Returns a number that is of queries or of keys at each tile; None if it is not known."""
    nowhere = jax.sharding.AbstractMesh((), ())  # Numbers are computed here, wherever this runs.
    try:
        with jax.sharding.use_abstract_mesh(nowhere), jax.ensure_compile_time_eval():
            given = (dict.fromkeys(tile, jnp.int32(n)) for n in range(count))
            return [int(computed(x, known, is_placed=False)) for known in given]
    except (jax.errors.ConcretizationTypeError, AssertionError):
        return None


def check(x: Value, given: tuple[Value, ...], distances: Distances) -> None:
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
