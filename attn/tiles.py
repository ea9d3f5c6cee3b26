"""Tiles: how the plane of queries and keys is cut, and the one loop of the library over it.

The T x S plane of queries and keys is cut into rectangles, the tiles, of which one exists at a
time. An array is cut along its axis of queries, its axis of keys, both or neither.

**Kinds.** A mask finds tiles empty, full or mixed. Empty ones are not visited at all, and a visit
is told of full ones, so that it does no work for the mask there. A vmapped mask skips a tile that
is empty for all; a tile on which they disagree is mixed.

Letters: T queries, S keys, i and j the indices of a tile, t and s its sides.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from attn.devices import vary

FULL, MIXED, EMPTY = range(3)
"""Kinds of tiles, in the order in which they are visited; the last are not."""


class Grid(NamedTuple):
    """Queries and keys cut into tiles."""

    num_queries: int
    num_keys: int
    query_side: int
    key_side: int

    @property
    def counts(self) -> tuple[Any, Any]:
        """How many tiles of queries and of keys; the last of each may reach beyond the range."""
        return ceil_div(self.num_queries, self.query_side), ceil_div(self.num_keys, self.key_side)

    @property
    def padded(self) -> tuple[Any, Any]:
        """How many queries and keys there are in all tiles."""
        return self.counts[0] * self.query_side, self.counts[1] * self.key_side

    def positions(self, i, j) -> tuple[Int[Array, "t"], Int[Array, "s"]]:
        """Returns the indices of the queries and of the keys of tile (i, j)."""
        queries, keys = jnp.arange(self.query_side), jnp.arange(self.key_side)
        return i * self.query_side + queries, j * self.key_side + keys


def ceil_div(a: Any, b: int) -> Any:
    """Returns the quotient, rounded up; of a symbolic length too."""
    return -(-a // b)


class TileSizes(NamedTuple):
    """The greatest sides of a tile."""

    query: int
    key: int


def tile_sizes(
    query_shape: tuple[Any, ...], key_shape: tuple[Any, ...], is_masked: bool
) -> TileSizes:
    """Returns the sides that were fastest on CPU for such shapes; see ``benchmarks/README.md``.

    A tile should be large enough for both cores to share its products, and under a mask there
    should be two along an axis, so that some can be empty.
    """
    *batch, num_queries, num_heads, _ = query_shape
    most = 1024 if math.prod(batch) * num_heads == 1 else 512

    def side(length):
        halves = isinstance(length, int) and is_masked
        return min(most, max(128, ceil_div(length, 2))) if halves else most

    return TileSizes(side(num_queries), side(key_shape[-3]))


def grid_of(num_queries: Any, num_keys: Any, most: TileSizes) -> Grid:
    """Returns the fewest tiles of at most these sides, of sides as equal as they can be.

    Along an axis of symbolic length (``jax.export``) they are of just these sides.
    """

    def side(length, most):
        return ceil_div(length, ceil_div(length, most)) if isinstance(length, int) else most

    return Grid(num_queries, num_keys, side(num_queries, most.query), side(num_keys, most.key))


class Axes(NamedTuple):
    """Which axes of an array are cut, counted from the end (-1 is the last); None is none."""

    query: int | None = None
    key: int | None = None


QUERIES, KEYS, NEITHER = Axes(query=-1), Axes(key=-1), Axes()


class Tile(NamedTuple):
    """Where a tile stands, and what is known of it."""

    i: Int[Array, ""] | int
    j: Int[Array, ""] | int
    is_full: bool


def sweep(
    grid: Grid,
    kinds: Callable | None,
    start,
    visit,
    finish,
    carry: Any,
    axes: tuple[str, ...] = (),
) -> Any:
    """Returns the carry after all tiles that are not empty, a row of tiles after another.

        row = start(i)      row, carry = visit(tile, row, carry)      carry = finish(i, row, carry)

    Args:
      grid: the tiles.
      kinds: ``kinds(i)`` is the kind of every tile of a row, ``[number of key tiles]``; None if
        all are full.
      start: gives what is carried along one row of tiles.
      visit: is called with a ``Tile``; traced twice, for full and for mixed tiles.
      finish: ends a row.
      carry: what is carried through all rows.
      axes: over which arrays vary inside ``jax.shard_map``; see ``attn.devices``.
    """
    rows, columns = grid.counts

    def over_row(i, carry):
        def visits(is_full, at):
            return lambda n, state: visit(Tile(i, at(n), is_full), *state)

        state = vary(start(i), axes), carry
        if kinds is None:
            return finish(i, *_repeat(0, columns, visits(True, lambda n: n), state))
        if rows == columns == 1:
            return finish(i, *visit(Tile(i, 0, False), *state))
        kind = agreed(kinds(i))
        order = jnp.argsort(kind)
        num_full, num_mixed = (jnp.sum(kind == which) for which in (FULL, MIXED))
        state = lax.fori_loop(0, num_full, visits(True, lambda n: order[n]), state)
        state = lax.fori_loop(
            num_full, num_full + num_mixed, visits(False, lambda n: order[n]), state
        )
        return finish(i, *state)

    return _repeat(0, rows, over_row, vary(carry, axes))


def _repeat(first: int, last: Any, body: Callable, carry: Any) -> Any:
    return body(first, carry) if last - first == 1 else lax.fori_loop(first, last, body, carry)


def cut(grid: Grid, x: Array, axes: Axes, i, j) -> Array:
    """Returns the part of a padded array that belongs to tile (i, j)."""
    for axis, index, side in _cuts(grid, axes, i, j):
        x = lax.dynamic_slice_in_dim(x, index * side, side, axis)
    return x


def put(grid: Grid, x: Array, part: Array, axes: Axes, i, j) -> Array:
    """Returns the padded array with the part of tile (i, j) written where it stands."""
    start = [0] * x.ndim
    for axis, index, side in _cuts(grid, axes, i, j):
        start[axis] = index * side
    return lax.dynamic_update_slice(x, part, start)


def _cuts(grid: Grid, axes: Axes, i, j) -> Iterator[tuple[int, Any, int]]:
    """Yields every axis that is cut, with the index of the tile along it and its side."""
    if axes.query is not None:
        yield axes.query, i, grid.query_side
    if axes.key is not None:
        yield axes.key, j, grid.key_side


def pad(grid: Grid, x: Array, axes: Axes) -> Array:
    """Returns the array with zeros up to the end of the last tile."""
    widths = [(0, 0)] * x.ndim
    for axis, index, side in _cuts(grid, axes, *grid.counts):
        widths[axis] = (0, index * side - x.shape[axis])
    return jnp.pad(x, widths) if any(after != 0 for _, after in widths) else x


def part_shape(grid: Grid, x: Any, axes: Axes) -> tuple[Any, ...]:
    """Returns the shape of the part of one tile."""
    shape = list(x.shape)
    for axis, _, side in _cuts(grid, axes, 0, 0):
        shape[axis] = side
    return tuple(shape)


def whole_shape(grid: Grid, part: Any, axes: Axes) -> tuple[Any, ...]:
    """Returns the shape of the padded array from that of the part of one tile."""
    shape = list(part.shape)
    for axis, index, side in _cuts(grid, axes, *grid.counts):
        shape[axis] = index * side
    return tuple(shape)


@jax.custom_batching.custom_vmap
def agreed(kinds: Int[Array, "tiles"]) -> Int[Array, "tiles"]:
    """The identity; under ``vmap``, the kind of each tile on which all lanes agree, or else mixed.

    So the bounds of the loops are never batched, and ``vmap`` leaves them loops.
    """
    return kinds


@agreed.def_vmap
def _agreed_rule(axis_size, in_batched, kinds):
    del in_batched
    if axis_size == 0:
        return jnp.full_like(kinds, MIXED, shape=kinds.shape[1:]), False
    agree = jnp.all(kinds == kinds[0], axis=0)
    return agreed(jnp.where(agree, kinds[0], MIXED)), False
