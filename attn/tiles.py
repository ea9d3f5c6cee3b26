"""Tiles: how the plane of queries and keys is cut, and the one loop of the library over it.

The T x S plane of queries and keys is cut into rectangles, the tiles, of which one exists at a
time. An array is cut along its axis of queries, its axis of keys, both or neither.

**Blocks.** A sequence that is spread over devices is made of blocks, of which each device holds
some; a tile is within one block. (i, j) is where a tile stands in the whole plane, (row, column)
where its parts stand in the arrays at hand.

**Kinds.** A mask finds tiles empty, full or mixed. Empty ones are not visited at all, and a visit
is told of full ones, so that it does no work for the mask there. A vmapped mask skips a tile that
is empty for all; a tile on which they disagree is mixed.

Letters: T queries, S keys, i and j the indices of a tile, t and s its sides.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from attn.devices import vary

FULL, MIXED, EMPTY = range(3)
"""Kinds of tiles, in the order in which they are visited; the last are not."""


class Grid(NamedTuple):
    """Queries and keys cut into tiles."""

    num_queries: int
    num_keys: int
    query_side: int
    key_side: int
    blocks: int = 1
    """Of equal length, that both sequences are made of."""

    @property
    def block(self) -> tuple[Any, Any]:
        """How many queries and keys there are in a block."""
        if self.blocks == 1:
            return self.num_queries, self.num_keys
        return self.num_queries // self.blocks, self.num_keys // self.blocks

    @property
    def per_block(self) -> tuple[Any, Any]:
        """How many tiles of queries and of keys; the last may reach beyond the block."""
        num_queries, num_keys = self.block
        return ceil_div(num_queries, self.query_side), ceil_div(num_keys, self.key_side)

    @property
    def padded_block(self) -> tuple[Any, Any]:
        """How many queries and keys there are in the tiles of a block."""
        rows, columns = self.per_block
        return rows * self.query_side, columns * self.key_side

    @property
    def counts(self) -> tuple[Any, Any]:
        """How many tiles of queries and of keys there are in all."""
        rows, columns = self.per_block
        return rows * self.blocks, columns * self.blocks

    @property
    def padded(self) -> tuple[Any, Any]:
        """How many queries and keys there are in all tiles."""
        rows, columns = self.counts
        return rows * self.query_side, columns * self.key_side

    @property
    def is_exact(self) -> bool:
        """Whether no tile reaches beyond its block."""
        return self.padded_block == self.block

    def positions(self, i, j) -> tuple[Int[Array, "t"], Int[Array, "s"]]:
        """Returns the indices of the queries and of the keys of tile (i, j)."""
        (first_query, first_key), (row, column) = self._starts(i, j)
        queries, keys = jnp.arange(self.query_side), jnp.arange(self.key_side)
        return first_query + row + queries, first_key + column + keys

    def within(self, i, j) -> tuple[Bool[Array, "t"], Bool[Array, "s"]]:
        """Returns which queries and keys of tile (i, j) are of its block, not beyond."""
        _, (row, column) = self._starts(i, j)
        num_queries, num_keys = self.block
        queries, keys = jnp.arange(self.query_side), jnp.arange(self.key_side)
        return row + queries < num_queries, column + keys < num_keys

    def _starts(self, i, j) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        """Returns where the blocks of a tile begin, and where it begins in them."""
        if self.blocks == 1:
            return (0, 0), (i * self.query_side, j * self.key_side)
        (rows, columns), (num_queries, num_keys) = self.per_block, self.block
        blocks = i // rows * num_queries, j // columns * num_keys
        return blocks, (i % rows * self.query_side, j % columns * self.key_side)


def ceil_div(a: Any, b: int) -> Any:
    """Returns the quotient, rounded up; of a symbolic length too."""
    return -(-a // b)


class TileSizes(NamedTuple):
    """The greatest sides of a tile."""

    query: int
    key: int
    multiple: int = 1
    """What both are multiples of."""


OF_KERNELS = {"tpu": TileSizes(512, 512, multiple=128), "gpu": TileSizes(128, 128, multiple=128)}
"""Of tiles that kernels take, by hardware. A register of a TPU has 128 lanes, and its compiler has
room in fast memory for tiles of 512; no TPU has timed them. On a GPU two groups of warps have 64
queries each, as its products have: other tiles were not tried."""

MANY = 16
"""Rows times heads, beyond which a masked call on CPU takes the smallest tiles."""


def tile_sizes(
    platform: str, query_shape: tuple[Any, ...], key_shape: tuple[Any, ...], is_masked: bool
) -> TileSizes:
    """Returns the greatest sides of tiles of loops, those that were fastest on CPU.

        rows times heads     masked, on CPU     else
        1                    1024               1024
        2 to 16              512                512, which is the default
        more                 128                512

    Under a mask half of an axis at most, but 128. A tile should be large enough for both cores to
    share its products; under a mask there should be two along an axis, so that some can be empty,
    and many where products are large enough as it is. Measured in ``benchmarks/README.md``, on CPU
    alone.
    """
    *batch, num_queries, num_heads, _ = query_shape
    together = math.prod(batch) * num_heads
    many = isinstance(together, int) and together > MANY and is_masked and platform == "cpu"
    most = 128 if many else 1024 if together == 1 else 512

    def side(length):
        halves = isinstance(length, int) and is_masked
        return min(most, max(128, ceil_div(length, 2))) if halves else most

    return TileSizes(side(num_queries), side(key_shape[-3]))


def grid_of(num_queries: Any, num_keys: Any, most: TileSizes) -> Grid:
    """Returns the fewest tiles of at most these sides, of sides as equal as they can be.

    Along an axis of symbolic length (``jax.export``) they are of just these sides.
    """

    def side(length, greatest):
        if not isinstance(length, int):
            return greatest
        return most.multiple * ceil_div(ceil_div(length, ceil_div(length, greatest)), most.multiple)

    return Grid(num_queries, num_keys, side(num_queries, most.query), side(num_keys, most.key))


class Axes(NamedTuple):
    """Which axes of an array are cut, counted from the end (-1 is the last); None is none."""

    query: int | None = None
    key: int | None = None
    is_whole: bool = False
    """Whether the axis of keys is that of all keys, also where the keys at hand are some."""

    @property
    def travels(self) -> bool:
        """Whether the array belongs to keys alone, and goes round a ring with them."""
        return self.query is None and self.key is not None and not self.is_whole


QUERIES, KEYS, NEITHER = Axes(query=-1), Axes(key=-1), Axes()


class Tile(NamedTuple):
    """Where a tile stands, and what is known of it."""

    i: Int[Array, ""] | int
    j: Int[Array, ""] | int
    is_full: bool
    row: Int[Array, ""] | int
    column: Int[Array, ""] | int


class Share(NamedTuple):
    """The tiles of which the arrays at hand hold the queries, or the keys."""

    count: Any
    tiles: Int[Array, "count"] | None = None
    """Which; None is all, in order."""

    def __getitem__(self, n) -> Any:
        return n if self.tiles is None else self.tiles[n]


def sweep(
    shares: tuple[Share, Share],
    kinds: Callable | None,
    start,
    visit,
    finish,
    carry: Any,
    axes: tuple[str, ...] = (),
) -> Any:
    """Returns the carry after all tiles that are not empty, a row of tiles after another.

        row = start()      row, carry = visit(tile, row, carry)      carry = finish(n, row, carry)

    Args:
      shares: the tiles of queries and of keys at hand.
      kinds: ``kinds(i, columns)`` is the kind of the tiles of row i in these columns; None if all
        are full.
      start: gives what is carried along one row of tiles.
      visit: is called with a ``Tile``; traced twice, for full and for mixed tiles.
      finish: ends the n-th row at hand.
      carry: what is carried through all rows.
      axes: over which arrays vary inside ``jax.shard_map``; see ``attn.devices``.
    """
    rows, columns = shares

    def over_row(n, carry):
        i = rows[n]

        def visits(is_full, at):
            def of(m, state):
                column = at(m)
                return visit(Tile(i, columns[column], is_full, n, column), *state)

            return of

        state = vary(start(), axes), carry
        if kinds is None:
            return finish(n, *_repeat(0, columns.count, visits(True, lambda m: m), state))
        if rows.count == columns.count == 1:
            return finish(n, *visits(False, lambda m: m)(0, state))
        kind = agreed(kinds(i, columns[jnp.arange(columns.count)]))
        order = jnp.argsort(kind)
        num_full, num_mixed = (jnp.sum(kind == which) for which in (FULL, MIXED))
        state = lax.fori_loop(0, num_full, visits(True, lambda m: order[m]), state)
        state = lax.fori_loop(
            num_full, num_full + num_mixed, visits(False, lambda m: order[m]), state
        )
        return finish(n, *state)

    return _repeat(0, rows.count, over_row, vary(carry, axes))


def _repeat(first: int, last: Any, body: Callable, carry: Any) -> Any:
    return body(first, carry) if last - first == 1 else lax.fori_loop(first, last, body, carry)


def cut(grid: Grid, x: Array, axes: Axes, tile: Tile) -> Array:
    """Returns the part of a padded array that belongs to a tile."""
    for axis, index, side in _cuts(grid, axes, tile):
        x = lax.dynamic_slice_in_dim(x, index * side, side, axis)
    return x


def put(grid: Grid, x: Array, part: Array, axes: Axes, tile: Tile) -> Array:
    """Returns the padded array with the part of a tile written where it stands."""
    start = [0] * x.ndim
    for axis, index, side in _cuts(grid, axes, tile):
        start[axis] = index * side
    return lax.dynamic_update_slice(x, part, start)


def put_row(grid: Grid, x: Array, part: Array, axes: Axes, n: Any) -> Array:
    """Returns the padded array with the part of the n-th row at hand written where it stands."""
    return put(grid, x, part, axes, Tile(0, 0, is_full=True, row=n, column=0))


def _cuts(grid: Grid, axes: Axes, tile: Tile) -> Iterator[tuple[int, Any, int]]:
    """Yields every axis that is cut, with the index of the tile along it and its side."""
    if axes.query is not None:
        yield axes.query, tile.row, grid.query_side
    if axes.key is not None:
        yield axes.key, tile.j if axes.is_whole else tile.column, grid.key_side


def pad(grid: Grid, x: Array, axes: Axes) -> Array:
    """Returns the array with zeros after every block, up to the end of its last tile."""
    for axis, length, padded in zip(axes[:2], grid.block, grid.padded_block, strict=True):
        if axis is not None and length != padded:
            x = _by_block(x, axis, length, functools.partial(_extend, by=padded - length))
    return x


def crop(grid: Grid, x: Array, axes: Axes) -> Array:
    """Returns a padded array without what is beyond its blocks."""
    for axis, length, padded in zip(axes[:2], grid.block, grid.padded_block, strict=True):
        if axis is not None and length != padded:
            cut_off = functools.partial(lax.slice_in_dim, start_index=0, limit_index=length)
            x = _by_block(x, axis, padded, cut_off)
    return x


def _by_block(x: Array, axis: int, length: Any, change: Callable) -> Array:
    """Returns the array with every block of that length along an axis changed."""
    axis %= x.ndim
    if x.shape[axis] == length:
        return change(x, axis=axis)
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    blocks = change(jnp.reshape(x, (*before, -1, length, *after)), axis=axis + 1)
    return jnp.reshape(blocks, (*before, -1, *after))


def _extend(x: Array, axis: int, by: Any) -> Array:
    return jnp.pad(x, [(0, by if n == axis else 0) for n in range(x.ndim)])


def part_shape(grid: Grid, x: Any, axes: Axes) -> tuple[Any, ...]:
    """Returns the shape of the part of one tile."""
    return _shape(x, axes, (grid.query_side, grid.key_side))


def whole_shape(grid: Grid, part: Any, axes: Axes, shares: tuple[Share, Share]) -> tuple[Any, ...]:
    """Returns the shape of the array at hand from that of the part of one tile."""
    rows, columns = shares[0].count, grid.counts[1] if axes.is_whole else shares[1].count
    return _shape(part, axes, (rows * grid.query_side, columns * grid.key_side))


def _shape(x: Any, axes: Axes, lengths: tuple[Any, Any]) -> tuple[Any, ...]:
    shape = list(x.shape)
    for axis, length in zip(axes[:2], lengths, strict=True):
        if axis is not None:
            shape[axis] = length
    return tuple(shape)


@jax.custom_batching.custom_vmap
def agreed(kinds: Int[Array, "*tiles"]) -> Int[Array, "*tiles"]:
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
