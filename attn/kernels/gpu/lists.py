"""Which tiles the blocks of a walk visit, from kinds of tiles that may be traced.

Letters: n, m as in ``attn.kernels.gpu.walk``.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from attn.kernels.call import Call, kinds_of
from attn.kernels.values import DISTANCE, KEY
from attn.plan import Context
from attn.tiles import EMPTY, FULL, Share

SIDE_BITS = 14
"""Of the row, and of the column, of a tile."""
RANK_BITS = 2 * SIDE_BITS + 1
"""Below the rank of a tile, by which it is sorted: its row and column, and if all is finite."""


class Lists(NamedTuple):
    """Which tiles each block visits, in which order; as they are sorted, with what they are by."""

    blocks: Int[Array, "blocks"]
    """The n-th block, but for multiples of their number; those that visit the most come first."""
    places: Int[Array, "blocks n"]
    """Of tiles at hand: full and finite ones first, then the others that are visited, then the
    rest. From the highest bits on: which of these it is, row, column, and whether not all is
    finite, on which the order of the others does not depend."""
    full: Int[Array, "blocks"]
    visited: Int[Array, "blocks"]
    """How many are full and finite, and are visited at all."""
    of_rows: Int[Array, "rows"]
    of_columns: Int[Array, "columns"]
    """Which of ``Distances`` a tile has: what its row has and what its column has, added."""

    def block(self, n: Any) -> Any:
        """Returns the n-th block."""
        return lax.rem(self.blocks[n], jnp.int32(self.blocks.shape[-1]))

    def tile(self, block: Any, k: Any) -> tuple[Any, Any, Any]:
        """Returns row and column of the k-th tile of a block, and whether all is finite."""
        place, mask = self.places[block, k], (1 << SIDE_BITS) - 1
        return place >> SIDE_BITS + 1 & mask, place >> 1 & mask, (place & 1) == 0


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
    i, j = (lax.broadcasted_iota(jnp.int32, kinds.shape, axis) for axis in range(2))
    places = i << SIDE_BITS + 1 | j << 1 | is_bad_there
    places = rank.astype(jnp.int32) << RANK_BITS | places
    rows, columns = (share[np.arange(share.count, dtype=np.int32)] for share in shares)
    of_rows, of_columns = distances.index(rows, 0), distances.index(0, columns)
    of_columns = of_columns - distances.index(0, 0)
    if order == DISTANCE:  # Of the tiles of a row, each has another.
        at = of_rows[:, None] + of_columns, np.arange(rows.size)[:, None]
        every = jnp.full((distances.count, rows.size), 2 << RANK_BITS, jnp.int32)
        places = every.at[at].set(places, unique_indices=True)
    elif order == KEY:
        places = places.T
    full, visited = (
        jnp.sum(places < rank << RANK_BITS, axis=1, dtype=jnp.int32) for rank in (1, 2)
    )
    count, most = places.shape
    # So the last to be done are short ones.
    blocks = jnp.sort((most - visited) * count + np.arange(count, dtype=np.int32))
    places, sides = jnp.sort(places, axis=1), map(jnp.asarray, (of_rows, of_columns))
    return Lists(blocks, places, full, visited, *sides), is_visited


def of_visited(
    x: Float[Array, "*B N n m"], is_visited: Bool[Array, "rows columns"]
) -> Float[Array, "*B N n m"]:
    """Returns what is of pairs, queries first, 0 where no tile was visited."""
    *lanes, num_rows, num_columns = x.shape
    rows, columns = is_visited.shape
    tiles = jnp.reshape(x, (*lanes, rows, num_rows // rows, columns, num_columns // columns))
    return jnp.reshape(jnp.where(is_visited[:, None, :, None], tiles, 0), x.shape)
