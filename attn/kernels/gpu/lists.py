"""Which tiles the blocks of one side visit, from kinds of tiles that may be traced.

Letters: n, m as in ``attn.kernels.gpu.walk``.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from attn.kernels.call import Call, kinds_of
from attn.kernels.values import KEY
from attn.plan import Context
from attn.tiles import EMPTY, FULL, Share


class Lists(NamedTuple):
    """Which tiles each block visits."""

    tiles: Int[Array, "blocks n"]
    """The full ones, the mixed ones, and then the others."""
    ends: Int[Array, "blocks 2"]
    """How many are full, and how many are visited."""
    is_visited: Bool[Array, "blocks n"]


def lists_of(
    call: Call, context: Context, order: frozenset[str], shares: tuple[Share, Share]
) -> Lists:
    """Returns which tiles of keys blocks of queries visit (QUERY), or the other way (KEY)."""
    kinds = kinds_of(call, context, shares)
    kinds = kinds.T if order == KEY else kinds
    is_full, is_visited = kinds == FULL, kinds != EMPTY
    rank = jnp.where(is_full, 0, jnp.where(is_visited, 1, 2))
    ends = [jnp.sum(x, axis=1, dtype=jnp.int32) for x in (is_full, is_visited)]
    tiles = jnp.argsort(rank, axis=1, stable=True).astype(jnp.int32)
    return Lists(tiles, jnp.stack(ends, axis=1), is_visited)


def of_visited(x: Float[Array, "*B N n m"], lists: Lists) -> Float[Array, "*B N n m"]:
    """Returns what is of pairs, 0 where no tile was visited."""
    *lanes, num_rows, num_columns = x.shape
    blocks, columns = lists.is_visited.shape
    tiles = jnp.reshape(x, (*lanes, blocks, num_rows // blocks, columns, num_columns // columns))
    return jnp.reshape(jnp.where(lists.is_visited[:, None, :, None], tiles, 0), x.shape)
