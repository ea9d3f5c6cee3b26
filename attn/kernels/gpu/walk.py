"""How a kernel goes over tiles on a GPU: a block of one side stays, tiles of the other come by.

Of a block of queries (or of keys) each of two groups of warps has some, in registers and shared
memory. A third group of threads brings what is streamed: the tiles of keys (or of queries) that a
mask leaves, full and finite ones first, from lists made before the kernel, traced masks included.
What is known of each query, key or pair is read where it is used.

    sums = start()      sums = visit(tile, sums) for each tile      finish(sums)

A block may also be of all tiles at one distance (``Distances``): what is summed is then a tile, and
queries and keys both come by.

Letters: ``*B`` leading axes, N query heads, K key heads; n queries or keys of the side that stays,
m of the other, W a width; r and c the sides of what a group sees at once.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from attn.kernels.call import Call
from attn.kernels.gpu.arrays import diagonals_of
from attn.kernels.gpu.launch import (
    TILED,
    Coming,
    Launch,
    Splitting,
    Stop,
    slots_of,
    times,
    unravelled,
)
from attn.kernels.gpu.lists import Lists, lists_of, of_visited
from attn.kernels.gpu.parts import PART, num_parts
from attn.kernels.gpu.tile import Tile, picked
from attn.kernels.values import DISTANCE, KEY, QUERY
from attn.overrides import Refused
from attn.plan import Context
from attn.tiles import Share

ROWS = 64
"""Queries or keys of a group of warps: the height of a product."""
GROUPS = 2
"""Of warps that compute."""
LEAST = 64
"""Of those that come at a time: as wide as shared memory is tiled, as products need them."""
PROCESSORS = 132
"""Of an H100: as many blocks are computed at a time."""
LEAST_TILES = 4
"""Of a split."""


class Walk(NamedTuple):
    """The sides of a kernel's blocks, and of what comes by."""

    call: Call
    order: frozenset[str]
    """What a block is of: queries (QUERY) or keys (KEY), which stay, or a distance: none stays."""
    rows: int
    """r, of those that stay with a group of warps."""
    groups: int
    """Of warps that compute."""
    piece: int
    """c, of those that come at a time."""
    simulated: Any = None
    """How Pallas simulates the kernel on a CPU, threads and barriers too, where it is interpreted;
    by itself only what is computed is."""

    @property
    def sides(self) -> tuple[int, int]:
        """Of a tile: that of what stays first."""
        return _sides(self.call, self.order)

    def zeros(self, width: int | None = None, value: float = 0.0) -> Array:
        """Returns what is summed for each that stays, ``[r]`` or ``[r, W]``, at first."""
        shape = (self.rows,) if width is None else (self.rows, width)
        x = jnp.full(shape, value, self.call.dtype)
        if self.call.interpret:
            return x
        layout = plgpu.Layout.WGMMA.reduce(1) if width is None else plgpu.Layout.WGMMA
        return plgpu.layout_cast(x, layout)

    def run(
        self,
        name: str,
        context: Context,
        shares: tuple[Share, Share],
        is_bad: tuple[Array, Array],
        stay: Sequence[Sequence[Array]],
        come: Sequence[Sequence[Array]],
        known: Sequence[Array],
        start: Callable,
        visit: Callable,
        finish: Callable,
        outs: Sequence[jax.ShapeDtypeStruct],
        cuts: Sequence[int] = (),
        lanes: tuple[int, ...] | None = None,
        splitting: Splitting | None = None,
    ) -> list[Array]:
        """Returns the results of a kernel.

        Where keys stay, sums go over all heads that share them; where none does, over all leading
        axes and heads that ``lanes`` has not.

        Args:
          name: of the kernel, in profiles.
          context: of the call.
          shares: the tiles of queries and of keys at hand.
          is_bad: which queries ``[*B, N, T]`` and which keys ``[*B, N, S]`` are not finite.
          stay: of the side that stays, ``[*B, N or K, n, W]``, each in its parts.
          come: of the other side, ``[*B, N or K, m, W]``, each in its parts.
          known: read where it is used, ``[*B, N, ...]``, with 1 where it is the same for all.
          start: gives sums.
          visit: of a ``Tile`` and sums gives sums.
          finish: of references to the results, of what gives their part at what stays (of a head,
            or of its key head, ``is_of_keys``), and of sums: writes them, and returns the sums that
            the next head begins with.
          outs: shapes and dtypes of the results.
          cuts: which results are of pairs; they are 0 in tiles that are not visited.
          lanes: ``(*B, N)`` of what is summed at a distance, 1 where it is the same for all.
          splitting: how the tiles that a block visits are split, each with sums and results of its
            own; None is not.
        """
        own = stay[0][0].shape[:-2]
        if 0 in own:
            return [jnp.zeros(x.shape, x.dtype) for x in outs]
        lists, is_visited = lists_of(self.call, context, self.order, shares, is_bad)
        per_tile = self.sides[0] // (self.rows * self.groups)
        staying = [x for parts in stay for x in parts]
        coming = [Coming(x, self.piece) for parts in come for x in parts]
        if self.order == DISTANCE:
            coming = [*(Coming(x, self.rows, self.groups) for x in staying), *coming]
            staying, per_tile = [], per_tile * (self.sides[1] // self.piece)
        parts = [[len(x) for x in arrays] for arrays in (stay, come)]
        launch = Launch(
            name,
            self.groups,
            self.rows,
            own if lanes is None else lanes,
            lists.blocks.size * per_tile,
            staying,
            coming,
            len(known),
            outs,
            functools.partial(self.body, own, parts, start, visit, finish),
            splitting,
            self.simulated,
        )
        operands = *lists, *staying, *(x.array for x in coming), *known
        found = launch.start(operands, interpret=self.call.interpret)
        return [of_visited(x, is_visited) if n in cuts else x for n, x in enumerate(found)]

    def body(
        self,
        every: tuple[int, ...],
        parts: Sequence[Sequence[int]],
        start: Callable,
        visit: Callable,
        finish: Callable,
        num_splits: int,
        lanes: tuple[int, ...],
        added: tuple[int, ...],
        lists: Sequence[Any],
        stay: Sequence[Any],
        come: Sequence[Any],
        known: Sequence[Any],
        written: Sequence[Any],
    ) -> Callable[[Any, Any, Any], Stop]:
        """Returns what a group of warps does at a block, as ``Launch`` takes it."""
        call, order, rows, group_size = self.call, self.order, self.rows, self.call.group_size
        side, other_side = self.sides
        block, pieces = rows * self.groups, other_side // self.piece
        # The pieces of a tile come one after the other; at a distance each has a block of its own.
        per_tile, across = (1, pieces) if order == DISTANCE else (pieces, 1)
        own, num_added = lanes[len(added) :], len(added)
        summed = tuple(n if size != n else 1 for n, size in zip(every, own, strict=True))
        members = group_size if order == KEY else math.prod(summed)
        has_distances = any(x.is_diagonal for x in call.pairs.inputs)
        is_of_group = [order == DISTANCE and n < sum(parts[0]) for n in range(len(come))]

        def at_block(lane, n, group):
            of_lane = unravelled(lane, lanes)
            at = Lists(*(picked(x, of_lane[:num_added]) for x in lists))
            sizes = num_splits, at.blocks.shape[-1], side // block, across
            split, turn, down, right = unravelled(n, sizes)
            of_block = at.block(turn)
            full, visited = (x[of_block] * jnp.int32(per_tile) for x in (at.full, at.visited))
            begin, full, end = _split(split, num_splits, full, visited)
            visited = end - begin
            of_group = down * block + group * rows
            first_of_block = of_block * side + of_group

            def lanes_of(member):
                """Leading axes and head of queries, and those of keys."""
                if order == KEY:
                    *batch, key_head = of_lane
                    return [*batch, key_head * group_size + member], of_lane
                more = zip(of_lane[num_added:], unravelled(member, summed), strict=True)
                *batch, head = [*of_lane[:num_added], *(x + y for x, y in more)]
                return [*batch, head], [*batch, lax.div(head, jnp.int32(group_size))]

            def tile_of(k):
                """Row and column of the k-th tile, where in it is what comes, if it is finite."""
                k += begin
                i, j, is_clean = at.tile(of_block, lax.div(k, jnp.int32(per_tile)))
                within = (right + lax.rem(k, jnp.int32(per_tile))) * self.piece
                return i, j, within, is_clean

            def coming(k):
                queries, keys = lanes_of(lax.div(k, visited))
                i, j, within, _ = tile_of(lax.rem(k, visited))
                source, tile = (queries, i) if order == KEY else (keys, j)

                def copy(ref, is_of_group, n):
                    if is_of_group:
                        first = i * side + down * block + n * rows
                        return picked(ref, queries, pl.ds(first, rows))
                    return picked(ref, source, pl.ds(tile * other_side + within, self.piece))

                return [functools.partial(copy, *x) for x in zip(come, is_of_group, strict=True)]

            def compute(stays, having, take_turns):
                def of_member(member, sums):
                    queries, keys = lanes_of(member)

                    def step(k, sums, *, is_full):
                        i, j, within, is_clean = tile_of(k)
                        first = i * side + of_group if order == DISTANCE else first_of_block
                        place = (i if order == KEY else j) * other_side + within
                        distance = None
                        if has_distances:
                            distance = at.of_rows[i] + at.of_columns[j]
                            distance = distance * side + of_group, within
                        with having(member * visited + k) as comes:
                            refs = iter((*stays, *comes))
                            staying, coming = (
                                [[next(refs) for _ in range(n)] for n in x] for x in parts
                            )
                            tile = Tile(
                                call,
                                KEY if order == KEY else QUERY,
                                (rows, self.piece),
                                staying,
                                coming,
                                known,
                                written,
                                queries,
                                (first, place),
                                distance,
                                is_full,
                                is_full or is_clean,
                                take_turns,
                            )
                            return visit(tile, sums)

                    sums = times(full, functools.partial(step, is_full=True), sums)
                    rest = functools.partial(step, is_full=False)
                    sums = lax.fori_loop(full, visited, rest, sums)

                    def at_rows(ref, *, is_of_keys=False):
                        here = pl.ds(first_of_block, rows)
                        if num_splits > 1:
                            return picked(ref, (*queries, split), here)
                        if order == DISTANCE:
                            return picked(ref, of_lane, here, pl.ds(right * self.piece, self.piece))
                        return picked(ref, keys if is_of_keys else queries, here)

                    return finish(written, at_rows, sums)

                if members == 1:
                    of_member(jnp.int32(0), start())
                else:
                    times(members, of_member, start())

            staying = [picked(ref, of_lane, pl.ds(first_of_block, rows)) for ref in stay]
            return Stop(staying, coming, compute, visited * members)

        return at_block


def num_splits_of(call: Call, lanes: int, num_rows: int, num_columns: int) -> int:
    """Returns into how many the keys of queries are best split, for all of a GPU to be busy.

    That of Dao et al., "Flash-Decoding for long-context inference", 2023: few queries, which are
    few blocks, may have many keys.

    Args:
      call: of the kernel.
      lanes: leading axes and heads, times each other.
      num_rows: of tiles of queries.
      num_columns: of tiles of keys.
    """
    block = min(call.plan.grid.query_side, ROWS * GROUPS)
    blocks = lanes * num_rows * (call.plan.grid.query_side // block)
    return max(1, min(PROCESSORS // max(blocks, 1), num_columns // LEAST_TILES))


def _split(n: Any, num_splits: int, full: Any, visited: Any) -> tuple[Any, Any, Any]:
    """Returns where the n-th split of a block's tiles begins, how many are full, where it ends."""
    if num_splits == 1:
        return jnp.int32(0), full, visited
    begin, end = (lax.div(x * visited, jnp.int32(num_splits)) for x in (n, n + 1))
    return begin, jnp.clip(full - begin, 0, end - begin), end


def _sides(call: Call, order: frozenset[str]) -> tuple[int, int]:
    query_side, key_side = call.plan.grid.query_side, call.plan.grid.key_side
    return (key_side, query_side) if order == KEY else (query_side, key_side)


def walk_of(call: Call, order: frozenset[str], widths: tuple[int, int], most: int) -> Walk:
    """Returns a walk that sees as much at a time as there is room for.

    Args:
      call: of the kernel.
      order: of the walk.
      widths: of all that stays, and of all that comes, together.
      most: of those that come.

    Raises:
      Refused: if there is no room.
    """
    side, other = _sides(call, order)
    if side % (ROWS * GROUPS) or other % most:  # Interpreted, for hardware is not asked to.
        return Walk(call, order, side, 1, other)
    # Of parts, each is as large as a number of half precision is.
    of_rows, of_pieces = (width * num_parts(call) * PART.itemsize for width in widths)
    for groups in range(GROUPS, 0, -1):
        piece = most
        while piece >= LEAST:
            held, slot = of_rows * ROWS * groups, of_pieces * piece
            if order == DISTANCE:  # All comes.
                held, slot = 0, held + slot
            if slots_of(held, slot) > 0:
                return Walk(call, order, ROWS, groups, piece)
            piece //= 2
    sizes, parts = "{} wide, its values {}".format(*call.widths), num_parts(call)
    raise Refused(f"its heads are {sizes}: too wide for shared memory, in {parts} parts")


def walks_of(call: Call) -> dict[str, Walk]:
    """Returns how each kernel goes over tiles.

    Raises:
      attn.overrides.Refused: if there is no room for what it sees at a time.
    """
    width, value_width = (n + -n % TILED for n in call.widths)
    both, is_narrow = width + value_width, max(call.widths) <= 128 and num_parts(call) == 1
    found = {
        "forward": walk_of(call, QUERY, (width, both), 128 if is_narrow else 64),
        "queries": walk_of(call, QUERY, (both, both), 64),
        "keys": walk_of(call, KEY, (both, both), 64),
    }
    if diagonals_of(call):
        found["distances"] = walk_of(call, DISTANCE, (both, both), 64)
    return found
