"""Where the pairs of a tile stand: what a mask and a score function are functions of.

A tile is a rectangle of consecutive queries and consecutive keys, for all leading axes and heads at
once. Its indices are kept as small arrays that broadcast against each other, so that a condition or
a bias is written as the formula it is, ``indices.key <= indices.query``, and costs no more than the
tile it is asked about.

Letters: ``*B`` leading axes, N query heads, t queries and s keys of the tile.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped


class Indices(NamedTuple):
    """The indices of a tile: integer arrays, each with all axes of ``[*B, N, t, s]``, most of 1."""

    batch: tuple[Int[Array, "..."], ...]
    """One array for each leading axis, of shape ``[..., B, 1, 1, 1]`` for the last of them."""
    head: Int[Array, "... N 1 1"]
    """The query head."""
    query: Int[Array, "... t 1"]
    """Consecutive."""
    key: Int[Array, "... 1 s"]
    """Consecutive."""

    @property
    def axes(self) -> int:
        """How many axes ``[*B, N, t, s]`` has."""
        return self.query.ndim

    @property
    def queries(self) -> Int[Array, "t"]:
        """The indices of the queries, as a vector."""
        return jnp.reshape(self.query, -1)

    @property
    def keys(self) -> Int[Array, "s"]:
        """The indices of the keys, as a vector."""
        return jnp.reshape(self.key, -1)


def tile_indices(
    batch: tuple[int, ...], num_heads: int, queries: Int[Array, "t"], keys: Int[Array, "s"]
) -> Indices:
    """Returns the indices of the tile of these queries and keys, for all batches and heads.

    Args:
      batch: the lengths of the leading axes.
      num_heads: N.
      queries: consecutive indices of queries.
      keys: consecutive indices of keys.
    """
    axes = len(batch) + 3

    def along(axis, indices):
        return jnp.reshape(indices, [-1 if n == axis else 1 for n in range(axes)])

    return Indices(
        batch=tuple(along(axis, jnp.arange(length)) for axis, length in enumerate(batch)),
        head=along(axes - 3, jnp.arange(num_heads)),
        query=along(axes - 2, queries),
        key=along(axes - 1, keys),
    )


def expand(x: Array, axes: int) -> Array:
    """Returns ``x`` with that many axes, of 1 before its own."""
    return jnp.reshape(x, (1,) * (axes - x.ndim) + x.shape)


def along_diagonals(x: Float[Array, "*N d"], num_queries: int) -> Float[Array, "*N t s"]:
    """Returns ``y[a, b] = x[b - a + t - 1]``: a tile of what is known of each distance.

    Rows that are one longer than they are read each start one step earlier than the row above.
    Compared with a gather of t x s elements this is dense in both directions: its transposition
    is a sum, not a scatter.

    Cost: O(t s) time and memory a head.

    Args:
      x: of each distance of key and query of a tile, from the least, so d = t + s - 1.
      num_queries: t.
    """
    *heads, length = x.shape
    longer = jnp.pad(x, [(0, 0)] * len(heads) + [(0, 1)])
    rows = jnp.broadcast_to(longer[..., None, :], (*heads, num_queries, length + 1))
    flat = jnp.reshape(rows, (*heads, num_queries * (length + 1)))[..., : num_queries * length]
    return jnp.reshape(flat, (*heads, num_queries, length))[..., num_queries - 1 :]


def of_pairs(
    table: Shaped[Array, "*N T S"], queries: Int[Array, "... t 1"], keys: Int[Array, "... 1 s"]
) -> Shaped[Array, "*N t s"]:
    """Returns what a table of all pairs has at these, the last of it where it has none.

    Cost: O(t s) time and memory a head.
    """
    at = jnp.reshape(queries, (-1, 1)), jnp.reshape(keys, -1)
    return table.at[(..., *at)].get(mode="clip")


# Programs of their own, so that who reads a function of pairs finds them: by names that no other
# function has, for one is not named so where it is defined.
along_diagonals.__name__ = "attn.indices.along_diagonals"
along_diagonals = jax.jit(along_diagonals, static_argnums=1)
of_pairs.__name__ = "attn.indices.of_pairs"
of_pairs = jax.jit(of_pairs)
