"""Masks as values: which queries may attend to which keys.

A mask answers two questions. ``allow(rows, columns)``: may query i attend to key j, element by
element, for the indices it is given. ``tile(rows, columns)``: does a whole rectangle of queries
and keys hold no allowed pair (``empty``) or only allowed pairs (``full``), from the corner indices
alone. Neither ever makes a T x S array, so a mask costs nothing until a tile is computed, and a
tile that is empty is never computed.

Masks are pytrees: their arrays can be traced, vmapped and sharded. They compose with ``&``.

Letters: B leading axes, N query heads, T queries, S keys; t and s are the sides of one tile.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int


class TileKind(NamedTuple):
    """What is known of a tile; neither flag set means mixed (or not known)."""

    empty: Bool[Array, ""] | bool
    full: Bool[Array, ""] | bool


class Mask:
    """Base of all masks; see the module docstring."""

    def allow(self, rows: Int[Array, "t"], columns: Int[Array, "s"]) -> Bool[Array, "..."]:
        """Returns True where query ``rows[a]`` may attend to key ``columns[b]``.

        Args:
          rows: consecutive query indices.
          columns: consecutive key indices.

        Returns:
          Booleans broadcastable to ``[..., N, t, s]``.
        """
        raise NotImplementedError

    def tile(self, rows: Int[Array, "t"], columns: Int[Array, "s"]) -> TileKind:
        """Returns whether the tile is surely empty or surely full, from its corners."""
        del rows, columns
        return TileKind(empty=False, full=False)

    def pad(self, num_queries: int, num_keys: int) -> "Mask":
        """Returns the mask made safe to index up to these sizes; what is added is not read."""
        del num_queries, num_keys
        return self

    def __and__(self, other: "Mask") -> "Mask":
        """Both masks must allow a pair."""
        return And(self, other)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Window(Mask):
    """Query i sees keys ``i + offset - left <= j <= i + offset + right``; None is no limit.

    ``offset`` places query 0 among the keys: 0 aligns the first query with the first key,
    ``S - T`` the last with the last.
    """

    left: int | None = dataclasses.field(default=None, metadata={"static": True})
    right: int | None = dataclasses.field(default=None, metadata={"static": True})
    offset: int = dataclasses.field(default=0, metadata={"static": True})

    def allow(self, rows, columns):
        """See ``Mask.allow``."""
        ahead = columns[None, :] - (rows[:, None] + self.offset)
        allowed = jnp.ones(ahead.shape, bool)
        if self.left is not None:
            allowed &= ahead >= -self.left
        if self.right is not None:
            allowed &= ahead <= self.right
        return allowed

    def tile(self, rows, columns):
        """See ``Mask.tile``: the corners hold the least and the greatest ``j - i``."""
        least = columns[0] - (rows[-1] + self.offset)
        greatest = columns[-1] - (rows[0] + self.offset)
        empty, full = False, True
        if self.left is not None:
            empty |= greatest < -self.left
            full &= least >= -self.left
        if self.right is not None:
            empty |= least > self.right
            full &= greatest <= self.right
        return TileKind(empty, full)


def Causal(offset: int = 0) -> Window:
    """Query i sees keys ``j <= i + offset``: itself and its past."""
    return Window(left=None, right=0, offset=offset)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lengths(Mask):
    """Queries at or past ``query`` attend to nothing, keys at or past ``key`` are not attended.

    One length for each leading index of the batch, or one for all; None is no limit.
    """

    query: Int[Array, "*B"] | None = None
    key: Int[Array, "*B"] | None = None

    def allow(self, rows, columns):
        """See ``Mask.allow``."""
        allowed = jnp.ones((rows.size, columns.size), bool)
        if self.query is not None:
            allowed &= rows[:, None] < jnp.asarray(self.query)[..., None, None, None]
        if self.key is not None:
            allowed &= columns < jnp.asarray(self.key)[..., None, None, None]
        return allowed

    def tile(self, rows, columns):
        """See ``Mask.tile``; empty only if it is so for every length."""
        empty, full = False, True
        for length, indices in ((self.query, rows), (self.key, columns)):
            if length is not None:
                empty |= jnp.all(indices[0] >= length)
                full &= jnp.all(indices[-1] < length)
        return TileKind(empty, full)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dense(Mask):
    """An array of booleans broadcastable to ``[..., N, T, S]``; True may attend."""

    array: Bool[Array, "..."]

    def allow(self, rows, columns):
        """See ``Mask.allow``; slices the array, so the indices must be within it (``pad``)."""
        tile = self.array
        for axis, indices in ((-2, rows), (-1, columns)):
            if tile.shape[axis] != 1:
                tile = lax.dynamic_slice_in_dim(tile, indices[0], indices.size, axis)
        return tile

    def pad(self, num_queries, num_keys):
        """See ``Mask.pad``."""
        widths = [(0, 0)] * (self.array.ndim - 2) + [
            (0, 0 if have == 1 else want - have)
            for have, want in zip(self.array.shape[-2:], (num_queries, num_keys), strict=True)
        ]
        return Dense(jnp.pad(self.array, widths)) if any(map(any, widths)) else self


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class And(Mask):
    """Pairs that both masks allow."""

    left: Mask
    right: Mask

    def allow(self, rows, columns):
        """See ``Mask.allow``."""
        return self.left.allow(rows, columns) & self.right.allow(rows, columns)

    def tile(self, rows, columns):
        """See ``Mask.tile``."""
        left, right = self.left.tile(rows, columns), self.right.tile(rows, columns)
        return TileKind(left.empty | right.empty, left.full & right.full)

    def pad(self, num_queries, num_keys):
        """See ``Mask.pad``."""
        return And(self.left.pad(num_queries, num_keys), self.right.pad(num_queries, num_keys))
