"""Which tiles the blocks of a walk visit, from kinds of tiles that may be traced.

Letters: n, m as in ``attn.kernels.gpu.walk``.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from attn.kernels.call import Call, kinds_of
from attn.kernels.values import DISTANCE, KEY
from attn.plan import Context
from attn.tiles import EMPTY, FULL, Share


class Lists(NamedTuple):
    """Which tiles each block visits; of blocks, those that visit the most come first."""

    places: Int[Array, "blocks n"]
    """Of tiles at hand, row by row: full and finite ones first, then the others that are visited,
    then the rest. Twice the number; one more if not all is finite, on which no order depends."""
    ends: Int[Array, "blocks 3"]
    """Which block it is, and where the first two end."""
    of_rows: Int[Array, "rows"]
    of_columns: Int[Array, "columns"]
    """Which of ``Distances`` a tile has: what its row has and what its column has, added."""

    @property
    def num_blocks(self) -> int:
        """How many blocks there are."""
        return self.ends.shape[0]


def lists_of(
    call: Call,
    context: Context,
    order: frozenset[str],
    shares: tuple[Share, Share],
    is_bad: tuple[Bool[Array, "*B N T"], Bool[Array, "*B N S"]],
) -> tuple[Lists, Bool[Array, "rows columns"]]:
    """Returns which tiles are visited, and by which blocks in turn.

    Args:
      call: of the kernel.
      context: of the call.
      order: what a block is of: a row of tiles (QUERY), a column (KEY), or those at a distance.
      shares: the tiles of queries and of keys at hand.
      is_bad: which queries and which keys are not finite.
    """
    kinds, grid, distances = kinds_of(call, context, shares), call.plan.grid, call.pairs.distances
    of_sides = zip(is_bad, (grid.query_side, grid.key_side), strict=True)
    rows, columns = (
        jnp.any(jnp.reshape(x, (-1, x.shape[-1] // n, n)), (0, 2)) for x, n in of_sides
    )
    is_visited, is_bad_there = kinds != EMPTY, rows[:, None] | columns
    rank = jnp.where(is_visited, jnp.where(is_bad_there | (kinds != FULL), 1, 0), 2)
    places = jnp.reshape(jnp.arange(kinds.size, dtype=jnp.int32), kinds.shape)
    places = places << 1 | is_bad_there
    rows, columns = (share[jnp.arange(share.count, dtype=jnp.int32)] for share in shares)
    of_rows, of_columns = distances.index(rows, 0), distances.index(0, columns)
    of_columns = of_columns - distances.index(0, 0)

    def of_blocks(x, fill):
        if order == DISTANCE:  # Of the tiles of a row, each has another.
            at = of_rows[:, None] + of_columns, jnp.arange(rows.size)[:, None]
            every = jnp.full((distances.count, rows.size), fill, x.dtype)
            return every.at[at].set(x, unique_indices=True)
        return x.T if order == KEY else x

    rank, places = of_blocks(rank, 2), of_blocks(places, 0)
    *_, visited = ends = [jnp.sum(rank <= n, axis=1, dtype=jnp.int32) for n in range(2)]
    in_turn = jnp.argsort(rank, axis=1, stable=True)
    # So the last to be done are short ones.
    blocks = jnp.argsort(-visited).astype(jnp.int32)
    ends = jnp.stack([jnp.arange(blocks.size, dtype=jnp.int32), *ends], axis=1)
    places = jnp.take_along_axis(places, in_turn, axis=1)[blocks]
    return Lists(places, ends[blocks], of_rows, of_columns), is_visited


def of_visited(
    x: Float[Array, "*B N n m"], is_visited: Bool[Array, "rows columns"]
) -> Float[Array, "*B N n m"]:
    """Returns what is of pairs, queries first, 0 where no tile was visited."""
    *lanes, num_rows, num_columns = x.shape
    rows, columns = is_visited.shape
    tiles = jnp.reshape(x, (*lanes, rows, num_rows // rows, columns, num_columns // columns))
    return jnp.reshape(jnp.where(is_visited[:, None, :, None], tiles, 0), x.shape)
