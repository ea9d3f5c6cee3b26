"""The grid of a kernel: which tiles it visits, in which order, and what it reads and writes there.

A grid has the leading axes and heads, and inside them the tiles that a mask leaves, in an order:
along rows for what belongs to queries, along columns for what belongs to keys. Which those are is a
list that is computed before, from the kinds of ``attn.tiles``, traced masks included; an empty tile
is not in it.

Letters: ``*B`` leading axes, N query heads, K key heads, G = N / K, T queries, S keys.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Int

from attn.devices import unvarying, vary, varying
from attn.kernels.call import Call, kinds_of
from attn.kernels.values import DISTANCE, KEY, NEITHER, QUERY, Value
from attn.overrides import Opaque
from attn.plan import Context
from attn.tiles import EMPTY, FULL, MIXED, Share

MOST_BYTES = 32 * 2**20
"""Of fast memory, for a kernel: half of the least that chips from v5e on have."""
_KIND, _IS_FIRST, _IS_LAST, _DISTANCE = 3, 4, 8, 4
"""Bits of what is known of a step, and how many there are below its distance."""


class Steps(NamedTuple):
    """The tiles that are visited, in order."""

    count: Int[Array, ""]
    tiles: Int[Array, "n"]
    """Their row and column of those at hand, of 16 bits each."""
    flags: Int[Array, "n"]
    """The kind, whether it is the first and the last of its row (or column), and which of
    ``Distances`` it has: in one list, as there is little room for them."""


def steps_of(
    call: Call, context: Context, along: frozenset[str], shares: tuple[Share, Share]
) -> Steps:
    """Returns the tiles that are visited: row by row along queries, or column by column."""
    kinds = kinds_of(call, context, shares)
    rows, columns = (share[jnp.arange(share.count)] for share in shares)
    outer, inner = (lax.broadcasted_iota(jnp.int32, kinds.shape, axis) for axis in (0, 1))
    places = outer << 16 | inner
    distances = call.pairs.distances.index(rows[:, None], columns).astype(jnp.int32)
    if along == KEY:
        kinds, places, distances = kinds.T, places.T, distances.T
    is_visited = kinds != EMPTY
    # What is written at the end of a row is written for an empty one too.
    is_visited = is_visited.at[:, 0].set(is_visited[:, 0] | ~jnp.any(is_visited, axis=1))
    before = jnp.cumsum(is_visited, axis=1)
    flags = (
        distances << _DISTANCE
        | kinds
        | _IS_FIRST * (before == 1)
        | _IS_LAST * (before == before[:, -1:])
    )
    order = jnp.argsort(~jnp.ravel(is_visited), stable=True)
    return Steps(
        count=jnp.sum(is_visited, dtype=jnp.int32),
        tiles=jnp.ravel(places)[order],
        flags=jnp.ravel(flags)[order].astype(jnp.int32),
    )


class Block(NamedTuple):
    """An array ``[*B, N or K, ., .]`` and how it is cut for a step; axes of 1 are for all."""

    shape: tuple[int, ...]
    along: tuple[frozenset[str], frozenset[str]]
    """Along which tiles its last two axes are cut; ``NEITHER`` is not at all."""
    is_of_keys: bool = False
    """Whether its heads are key heads."""

    def spec(self, call: Call, order: frozenset[str]) -> pl.BlockSpec:
        """Returns it for Pallas, in a grid that goes along rows or columns."""
        grid, lanes = call.plan.grid, len(self.shape) - 2
        sides = {QUERY: grid.query_side, KEY: grid.key_side}
        sides[DISTANCE] = grid.query_side + grid.key_side
        block = [sides.get(x, size) for x, size in zip(self.along, self.shape[-2:], strict=True)]

        def index(*step):
            *ids, tiles, flags = step
            batch, head, key_head, n = _place(call, order, ids)
            i, j = tiles[n] >> 16, tiles[n] & 0xFFFF
            places = *batch, key_head if self.is_of_keys else head
            of_lanes = [x if n != 1 else 0 for x, n in zip(places, self.shape, strict=False)]
            at = {QUERY: i, KEY: j, DISTANCE: flags[n] >> _DISTANCE}
            of_tile = [
                at[x] if x in at and n != side else 0
                for x, n, side in zip(self.along, self.shape[-2:], block, strict=True)
            ]
            return (*of_lanes, *of_tile)

        return pl.BlockSpec((*(None,) * lanes, *block), index)


def _place(call: Call, order: frozenset[str], ids: Sequence[Any]) -> tuple[Any, ...]:
    """Returns leading indices, head, key head and number of a step.

    A grid is ``(*B, N, step)`` along rows, and ``(*B, K, step, G)`` along columns: what is summed
    for keys is summed over the heads that share them.
    """
    if order == KEY:
        *batch, key_head, n, member = ids
        head = key_head * call.group_size + member
    else:
        *batch, head, n = ids
        key_head = lax.div(head, jnp.int32(call.group_size))
    return batch, head, key_head, n


def arrays_blocks(query: Array, key: Array, value: Array) -> list[Block]:
    """Returns how what ``arrays_of`` gives is cut."""
    return [
        Block(query.shape, (QUERY, NEITHER)),
        Block(key.shape, (KEY, NEITHER), is_of_keys=True),
        Block(value.shape, (KEY, NEITHER), is_of_keys=True),
    ]


def pairs_blocks(call: Call, given: Sequence[Array]) -> list[Block]:
    """Returns how what ``of_pairs`` gives is cut."""
    return [_block_of(x, array) for x, array in zip(call.pairs.inputs, given, strict=True)]


def _block_of(x: Value, array: Array) -> Block:
    if x.is_cut:
        return Block(array.shape, (QUERY, KEY))
    if x.is_diagonal:
        return Block(array.shape, (NEITHER, DISTANCE))
    return Block(array.shape, (NEITHER, x.depends or QUERY))


def run(
    call: Call,
    name: str,
    visit: Callable,
    finish: Callable,
    order: frozenset[str],
    context: Context,
    shares: tuple[Share, Share],
    operands: Sequence[Array],
    *,
    inputs: Sequence[Block],
    outputs: Sequence[Block],
    sums: Sequence[tuple[int, ...]],
    starts: Sequence[float] = (),
    aliases: dict[int, int] | None = None,
    totals: Sequence[int] = (),
) -> list[Array]:
    """Returns the results of a kernel over all tiles.

        sums = starts      visit(inputs, outputs, sums)      finish(outputs, sums)

    at the first, at every and at the last tile of a row, or of a column for each of the G heads
    that share its keys. What is given are references; a keyword ``member`` is which of G, 0 along
    rows, ``distance`` which of those that tiles have, and ``is_full`` whether all pairs of a tile
    take part.

    Args:
      call: of which it is a pass.
      name: of the kernel, in profiles.
      visit: changes the sums by a tile.
      finish: writes the results of a row or column.
      order: along rows, ``QUERY``, or columns, ``KEY``.
      context: of the call.
      shares: the tiles of queries and of keys at hand.
      operands: arrays.
      inputs: how they are cut.
      outputs: how results are; they are of the call's dtype.
      sums: shapes of what is kept from tile to tile.
      starts: what they are at first; 0 for those that are left out.
      aliases: which operand is, at first, the memory of which result.
      totals: which results are sums over all tiles of a head, 0 at first.
    """
    plan = call.plan
    lanes = (*plan.batch, plan.num_heads if order == QUERY else plan.num_key_heads)
    outs = [jax.ShapeDtypeStruct(x.shape, call.dtype) for x in outputs]
    if 0 in lanes:
        return [jnp.zeros(x.shape, x.dtype) for x in outs]
    steps = steps_of(call, context, order, shares)

    def of_step(tiles, flags, *refs):
        del tiles
        member = pl.program_id(len(lanes) + 1) if order == KEY else 0
        step = pl.program_id(len(lanes))
        flag = flags[step]
        ends = len(inputs), len(inputs) + len(outputs)
        read, written, kept = refs[: ends[0]], refs[ends[0] : ends[1]], refs[ends[1] :]

        @pl.when((flag & _IS_FIRST != 0) & (member == 0))
        def _():
            for n, x in enumerate(kept):
                x[...] = jnp.full(x.shape, starts[n] if n < len(starts) else 0.0, x.dtype)

        @pl.when((step == 0) & (member == 0))
        def _():
            for n in totals:
                written[n][...] = jnp.zeros(written[n].shape, written[n].dtype)

        at_tile = functools.partial(
            visit, read, written, kept, member=member, distance=flag >> _DISTANCE
        )
        pl.when(flag & _KIND == FULL)(functools.partial(at_tile, is_full=True))
        pl.when(flag & _KIND == MIXED)(functools.partial(at_tile, is_full=False))

        @pl.when(flag & _IS_LAST != 0)
        def _():
            finish(written, kept, member=member)

    def over_tiles(count, *operands):
        grid = (*lanes, count, call.group_size) if order == KEY else (*lanes, count)
        in_order = pl.pallas_call(
            of_step,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=2,
                grid=grid,
                in_specs=[x.spec(call, order) for x in inputs],
                out_specs=[x.spec(call, order) for x in outputs],
                scratch_shapes=[pltpu.VMEM(shape, call.dtype) for shape in sums],
            ),
            out_shape=[unvarying(x.shape, x.dtype) for x in outs],
            input_output_aliases={2 + k: n for k, n in (aliases or {}).items()},
            compiler_params=pltpu.CompilerParams(vmem_limit_bytes=MOST_BYTES),
            interpret=call.interpret,
            name=name,
        )
        return in_order(*operands)

    every = (*steps, *operands)
    return Opaque(over_tiles, tuple(outs), is_plain=True)(*vary(every, varying(every)))
