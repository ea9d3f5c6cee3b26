"""Dropout that no one has to store: whether a pair is kept is a function of where it stands.

    z_ij = 1  if  hash(seed, row, j) >= rate 2^32,  else 0

with the row counting leading axes, head and query. Every pass, tile size, implementation and order
of derivative finds the same z, at no memory. The hash is Threefry-2x32, the one that JAX's own
random bits come from (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).

Letters: ``*B`` leading axes, N query heads, t queries and s keys of a tile.
"""

import jax
import jax.numpy as jnp
from jax.extend.random import threefry2x32_p
from jaxtyping import Array, Bool, UInt32

from attn.indices import Indices


def seed_of(rng: Array) -> UInt32[Array, "2"]:
    """Returns the seed that a random key stands for, whatever its implementation."""
    return jax.random.bits(rng, (2,), jnp.uint32)


def kept(
    seed: UInt32[Array, "2"], rate: float, indices: Indices, num_heads: int, num_queries: int
) -> Bool[Array, "*B N t s"]:
    """Returns True for the pairs that are kept, each with probability ``1 - rate``.

    Args:
      seed: of ``seed_of``.
      rate: the probability of being dropped, in [0, 1).
      indices: of the tile.
      num_heads: N.
      num_queries: T, of the whole call.
    """
    shape = jnp.broadcast_shapes(*(x.shape for x in jax.tree.leaves(indices)))
    rows, columns = _row(indices, num_heads, num_queries), indices.key.astype(jnp.uint32)
    rows, columns = (jnp.broadcast_to(x, shape) for x in (rows, columns))
    first, second = (jnp.broadcast_to(x, shape) for x in (seed[0], seed[1]))
    bits, _ = threefry2x32_p.bind(first, second, rows, columns)
    return bits >= jnp.uint32(min(rate * 2**32, 2**32 - 1))


def _row(indices: Indices, num_heads: int, num_queries: int) -> Array:
    row = jnp.uint32(0)
    for index in indices.batch:
        row = row * jnp.uint32(index.size) + index.astype(jnp.uint32)
    row = row * jnp.uint32(num_heads) + indices.head.astype(jnp.uint32)
    return row * jnp.uint32(num_queries) + indices.query.astype(jnp.uint32)
