"""Does of tiles, one for each number of a pair, what a function does of one pair."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jaxtyping import Array

from attn.closures import called, is_float, rule_of
from attn.devices import vary
from attn.kernels.values import ELEMENTWISE, OWN_DERIVATIVE, PLACINGS
from attn.kernels.written import moves, sums, tables
from attn.kernels.written.numbers import (
    Numbers,
    aligned,
    few,
    filled,
    merged,
    narrow,
    other_lanes,
    reshaped,
    shape_of,
)
from attn.overrides import Refused

STEPS = 64
"""The most of a loop."""
OPERATIONS = moves.OPERATIONS | sums.OPERATIONS | tables.OPERATIONS
"""By name, of one result each: ``(writer, equation, operands, shape)``, of what it returns."""


class Writer:
    """Does of numbers what a function does of a pair.

    Other operands and results are arrays that are of no pair, and what is of these alone is done as
    it is.
    """

    def __init__(self, lanes: tuple[int, ...], axes: tuple[str, ...]):
        self.lanes = lanes
        """``(*B, N)``"""
        self.axes = axes
        """Of a mesh, over which all varies."""

    def given(self, x: Array) -> Numbers:
        """Returns a tile as a number of a pair."""
        lanes = {n: n for n in range(len(self.lanes)) if x.shape[n] > 1}
        return Numbers(filled((1,) * x.ndim, [x]), (*x.shape[:-2], 1, 1), lanes)

    def tile(self, x: Any) -> Array:
        """Returns what is, of one pair, ``[*B, N, 1, 1]``, or broadcasts to it, as a tile."""
        rank, shape = len(self.lanes) + 2, shape_of(x)
        whole = (1,) * (rank - len(shape)) + shape
        if len(whole) > rank or whole[-2:] != (1, 1):
            raise Refused("its function of pairs is not of each pair by itself")
        x = reshaped(x, whole) if isinstance(x, Numbers) else jnp.reshape(x, whole)
        if isinstance(x, Numbers) and any(lane != axis for lane, axis in x.lanes.items()):
            raise other_lanes("transpose")
        return self.aligned(x, whole, self.identity(whole)).item()

    def identity(self, shape: tuple[int, ...]) -> dict[int, int]:
        """Returns the lanes of what has those of a tile as its first axes."""
        return {n: n for n, size in enumerate(self.lanes) if size > 1 and shape[n] == size}

    def is_of_lanes(self, shape: tuple[int, ...]) -> bool:
        """Returns whether the first axes may be those of a tile."""
        return all(n in (1, size) for n, size in zip(shape, self.lanes, strict=False))

    def aligned(self, x: Any, shape: tuple[int, ...], lanes: dict[int, int]) -> np.ndarray:
        """Returns the tiles of an operand with the lanes of all."""
        return aligned(x, shape, lanes, len(self.lanes))

    def together(
        self, operands: Sequence[Any], shapes: Sequence[tuple[int, ...]], name: str
    ) -> tuple[list[np.ndarray], dict[int, int]]:
        """Returns the tiles of operands of the same axes, and their lanes."""
        lanes = merged((x.lanes for x in operands if isinstance(x, Numbers)), name)
        if not lanes:  # An array of no pair may be of those of a tile.
            of_tiles = (of for of in shapes if len(of) == len(self.lanes) + 2)
            shape = next((of for of in of_tiles if self.is_of_lanes(of)), None)
            lanes = {} if shape is None else self.identity(shape)
        pairs = zip(operands, shapes, strict=True)
        return [self.aligned(x, shape, lanes) for x, shape in pairs], lanes

    def run(self, program: ClosedJaxpr | Jaxpr, operands: Sequence[Any]) -> list[Any]:
        """Returns the results of a program."""
        consts = program.consts if isinstance(program, ClosedJaxpr) else ()
        program = program.jaxpr if isinstance(program, ClosedJaxpr) else program
        given = zip((*program.constvars, *program.invars), (*consts, *operands), strict=True)
        known: dict[Any, Any] = dict(given)

        def read(x):
            kind: Any = x.aval
            return np.asarray(x.val, kind.dtype) if isinstance(x, Literal) else known[x]

        for equation in program.eqns:
            operands = [read(x) for x in equation.invars]
            if any(isinstance(x, Numbers) for x in operands):
                found = self.of_pair(equation, operands)
            elif all(isinstance(x, np.ndarray) for x in operands):
                found = self.of_none(equation, operands)
            else:
                found = _bound(equation, operands)
            known.update(zip(equation.outvars, found, strict=True))
        return [read(x) for x in program.outvars]

    def of_none(self, equation: Any, operands: Sequence[np.ndarray]) -> list[Any]:
        """Returns the results of an operation on numbers of the program, as such if they are."""
        name, params = equation.primitive.name, equation.params
        if (program := called(equation)) is not None:
            return self.run(program, operands)
        if name == "broadcast_in_dim" and not operands[0].ndim:
            return [np.broadcast_to(operands[0], params["shape"])]
        if name in ELEMENTWISE and operands and not any(x.ndim for x in operands):
            with jax.ensure_compile_time_eval():
                return [np.asarray(x) for x in _bound(equation, operands)]
        return _bound(equation, operands)

    def of_pair(self, equation: Any, operands: Sequence[Any]) -> list[Any]:
        """Returns the results of an operation of which an operand is of a pair."""
        name, params = equation.primitive.name, equation.params
        if (program := called(equation)) is not None:
            return self.run(program, operands)
        if name in ELEMENTWISE | PLACINGS:
            return self.elementwise(equation, operands)
        if name == "scan":
            return self.scan(params, operands)
        if name == OWN_DERIVATIVE:
            return self.own_derivative(equation, operands)
        if name not in OPERATIONS:
            raise Refused(f"its function of pairs is not elementwise, nor of offsets: {name}")
        (out,) = equation.outvars
        return [OPERATIONS[name](self, equation, operands, tuple(out.aval.shape))]

    def elementwise(self, equation: Any, operands: Sequence[Any]) -> list[Any]:
        """Returns what is done to every number by itself."""
        shape = tuple(equation.outvars[0].aval.shape)
        one = (1,) * len(shape)
        operands = [
            reshaped(x, one) if isinstance(x, Numbers) and x.shape == () else x for x in operands
        ]
        of_all = [shape] * len(operands)
        tiles, lanes = self.together(operands, of_all, equation.primitive.name)
        tiles = np.broadcast_arrays(*tiles)
        few(tiles[0].shape)
        made: dict[tuple[int, ...], list[Array]] = {}

        def done(*tiles):
            if (same := tuple(map(id, tiles))) not in made:
                made[same] = self.bind(equation, tiles)
            return made[same]

        found = [done(*several) for several in zip(*(x.flat for x in tiles), strict=True)]
        return [
            Numbers(filled(tiles[0].shape, several), shape, lanes)
            for several in zip(*found, strict=True)
        ]

    def bind(self, equation: Any, tiles: Sequence[Array]) -> list[Array]:
        """Returns the results of an elementwise operation on tiles."""
        tiles, primitive = vary(list(tiles), self.axes), equation.primitive
        if primitive.name == "select_n":
            which, first, *others = tiles
            for n, other in enumerate(others, 1):  # Hardware selects one of two.
                first = jnp.where(which if which.dtype == bool else which == n, other, first)
            return [first]
        if primitive.name in ("lt_to", "le_to"):  # As searches ask: what is NaN is the greatest.
            first, second = tiles if primitive.name == "lt_to" else tiles[::-1]
            is_less = (first < second) | ((first == first) & (second != second))
            return [is_less if primitive.name == "lt_to" else ~is_less]
        return _bound(equation, jnp.broadcast_arrays(*tiles))

    def scan(self, params: dict[str, Any], operands: Sequence[Any]) -> list[Any]:
        """Returns the results of a loop, step after step."""
        length, (consts, carry, along) = params["length"], _parts_of(params, operands)
        if not 0 < length <= STEPS:
            raise Refused(f"its function of pairs has a loop of no steps, or of more than {STEPS}")
        steps: list[Any] = [None] * length
        for n in range(length)[:: -1 if params["reverse"] else 1]:
            at = [x.at(n) if isinstance(x, Numbers) else x[n] for x in along]
            found = self.run(params["jaxpr"], [*consts, *carry, *at])
            carry, steps[n] = found[: len(carry)], found[len(carry) :]
        return [*carry, *(self.stacked(several, 0) for several in zip(*steps, strict=True))]

    def stacked(self, several: Sequence[Any], axis: int) -> Any:
        """Returns numbers, or arrays, along an axis of their own."""
        if not any(isinstance(x, Numbers) for x in several):
            return jnp.stack(several, axis)
        shape = next(x.shape for x in several if isinstance(x, Numbers))
        tiles, lanes = self.together(several, [shape] * len(several), "stack")
        tiles = np.stack(np.broadcast_arrays(*tiles), axis)
        lanes = {lane: n + (n >= axis) for lane, n in lanes.items()}
        return Numbers(tiles, (*shape[:axis], len(several), *shape[axis:]), lanes)

    def own_derivative(self, equation: Any, operands: Sequence[Any]) -> list[Any]:
        """Returns the results of a function that has a derivative of its own, which they have."""
        leaves, tree = jax.tree.flatten([_leaves(x) for x in operands])
        several = [y.shape for x in operands if isinstance(x, Numbers) for y in x.tiles.flat]
        sides = jnp.broadcast_shapes(*several)
        made: list[tuple[tuple[int, ...], dict[int, int]]] = []  # Shapes and lanes of results.

        def rebuilt(leaves):
            every = jax.tree.unflatten(tree, leaves)
            return [_of_leaves(*pair) for pair in zip(every, operands, strict=True)]

        def flat(x, shape, lanes):
            if isinstance(x, Numbers) and not x.lanes.items() <= lanes.items():
                raise other_lanes(OWN_DERIVATIVE)
            tiles = np.broadcast_to(self.aligned(x, shape, lanes), few(narrow(shape, lanes)))
            return [jnp.broadcast_to(y, sides) for y in tiles.flat]

        @jax.custom_jvp
        def function(*leaves):
            found = self.run(equation.params["call_jaxpr"], rebuilt(leaves))
            lanes = (x.lanes if isinstance(x, Numbers) else {} for x in found)
            made[:] = zip((tuple(x.aval.shape) for x in equation.outvars), lanes, strict=True)
            return [flat(x, *at) for x, at in zip(found, made, strict=True)]

        @function.defjvp
        def _(leaves, d_leaves):
            results, (rule, moving) = function(*leaves), rule_of(equation)
            nothing: Any = np.zeros(sides, jax.dtypes.float0)
            moved = [
                np.zeros_like(x) if isinstance(like, np.ndarray) else x
                for x, like in zip(rebuilt(d_leaves), operands, strict=True)
            ]
            every = [*rebuilt(leaves), *(moved[n] for n in moving)]
            found = iter(self.run(rule, every))
            return results, [
                flat(next(found), *at) if is_float(x.aval) else [nothing for _ in several]
                for several, x, at in zip(results, equation.outvars, made, strict=True)
            ]

        found = function(*vary([jnp.asarray(x) for x in leaves], self.axes))
        return [
            Numbers(filled(narrow(shape, lanes), tiles), shape, lanes)
            for tiles, (shape, lanes) in zip(found, made, strict=True)
        ]


def _bound(equation: Any, operands: Sequence[Any]) -> list[Any]:
    """Returns the results of an operation."""
    primitive = equation.primitive
    found = primitive.bind(*operands, **primitive.get_bind_params(equation.params))
    return found if primitive.multiple_results else [found]


def _parts_of(params: dict[str, Any], operands: Sequence[Any]) -> list[list[Any]]:
    """Returns what a loop reads, what it carries, and what it goes along."""
    if "ft_in" in params:  # From JAX 0.11 on.
        return [list(x) for x in params["ft_in"].update(list(operands)).unpack()]
    ends = params["num_consts"], params["num_consts"] + params["num_carry"]
    return [list(operands[slice(*of)]) for of in ((0, ends[0]), ends, (ends[1], None))]


def _leaves(x: Any) -> list[Any]:
    """Returns the arrays of an operand, of which a number of the program is none."""
    if isinstance(x, np.ndarray):
        return []
    return list(x.tiles.flat) if isinstance(x, Numbers) else [x]


def _of_leaves(leaves: list[Any], like: Any) -> Any:
    if isinstance(like, np.ndarray):
        return like
    if not isinstance(like, Numbers):
        return leaves[0]
    return like._replace(tiles=filled(like.tiles.shape, leaves))
