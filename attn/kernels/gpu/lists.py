"""Which tiles the blocks of one side visit, from kinds of tiles that may be traced.

Letters: n, m as in ``attn.kernels.gpu.walk``.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from attn.kernels.call import Call, kinds_of
from attn.kernels.values import QUERY
from attn.plan import Context
from attn.tiles import EMPTY, FULL, Share


class Lists(NamedTuple):
    """Which tiles each block visits; of blocks, those that visit the most come first."""

    tiles: Int[Array, "blocks n"]
    """The full ones, the mixed ones, those that are not finite, and then the others."""
    ends: Int[Array, "blocks 4"]
    """Which block it is, and where the first three end."""
    is_visited: Bool[Array, "blocks n"]
    """In the order in which they stand."""


def lists_of(
    call: Call,
    context: Context,
    order: frozenset[str],
    shares: tuple[Share, Share],
    is_bad: tuple[Bool[Array, "*B N T"], Bool[Array, "*B N S"]],
) -> Lists:
    """Returns which tiles of keys blocks of queries visit (QUERY), or the other way (KEY).

    Args:
      call: of the kernel.
      context: of the call.
      order: the side of which blocks stay.
      shares: the tiles of queries and of keys at hand.
      is_bad: which queries and which keys are not finite.
    """
    kinds, grid = kinds_of(call, context, shares), call.plan.grid
    of_sides = zip(is_bad, (grid.query_side, grid.key_side), strict=True)
    rows, columns = (
        jnp.any(jnp.reshape(x, (-1, x.shape[-1] // n, n)), (0, 2)) for x, n in of_sides
    )
    is_visited, is_clean = kinds != EMPTY, ~(rows[:, None] | columns)
    rank = jnp.where(is_clean, jnp.where(kinds == FULL, 0, 1), 2)
    rank = jnp.where(is_visited, rank, 3)
    rank, is_visited = (x if order == QUERY else x.T for x in (rank, is_visited))
    *_, visited = ends = [jnp.sum(rank <= n, axis=1, dtype=jnp.int32) for n in range(3)]
    tiles = jnp.argsort(rank, axis=1, stable=True).astype(jnp.int32)
    # So the last to be done are short ones.
    blocks = jnp.argsort(-visited).astype(jnp.int32)
    ends = jnp.stack([jnp.arange(blocks.size, dtype=jnp.int32), *ends], axis=1)
    return Lists(tiles[blocks], ends[blocks], is_visited)


def of_visited(x: Float[Array, "*B N n m"], lists: Lists) -> Float[Array, "*B N n m"]:
    """Returns what is of pairs, 0 where no tile was visited."""
    *lanes, num_rows, num_columns = x.shape
    blocks, columns = lists.is_visited.shape
    tiles = jnp.reshape(x, (*lanes, blocks, num_rows // blocks, columns, num_columns // columns))
    return jnp.reshape(jnp.where(lists.is_visited[:, None, :, None], tiles, 0), x.shape)
