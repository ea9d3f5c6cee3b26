"""A call laid out in tiles: how its arrays are arranged and cut, and what a tile of scores is.

A ``Plan`` is the static part of a call, a ``Context`` its arrays without derivative, ``Inputs``
the others. ``attn.blockwise`` attends by a plan, ``attn.figures`` measures by one.

    s = score(scale q k^T + bias), and -inf where the mask does not allow

**What never leaks.** In a tile that is not full, keys and values that no query of the tile may
attend, and queries that may attend to no key of it, are replaced by 0 before any product: what
stands there, NaN included, reaches no output and no derivative.

Letters: ``*B`` leading axes, T queries, S keys, t and s the sides of a tile, N query heads,
K key heads, G = N / K query heads that share a key head, H head width, V value width. Inside,
positions are the last axis: XLA's matrix products on CPU are fastest so, in both directions.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt32

from attn import closures, dropout
from attn.devices import example, varying
from attn.dtypes import accumulated
from attn.indices import Indices, expand, tile_indices
from attn.masks import Mask
from attn.overrides import Pull
from attn.products import scores_of
from attn.scores import Score
from attn.spread import Heads, Ring, shares_of
from attn.target import target
from attn.tile_sum import tile_sum
from attn.tiles import (
    EMPTY,
    FULL,
    KEYS,
    MIXED,
    NEITHER,
    QUERIES,
    Axes,
    Grid,
    Tile,
    TileSizes,
    crop,
    cut,
    grid_of,
    pad,
    put_row,
    sweep,
    tile_sizes,
)


class Inputs(NamedTuple):
    """What attention is differentiable in, arranged: heads first, positions last, whole tiles."""

    query: Any
    """``[*B, K, H, G, T]``."""
    key: Any
    """``[*B, K, H, S]``."""
    value: Any
    """``[*B, K, V, S]``; None if only scores are asked for."""
    bias: Any
    """Broadcastable to ``[*B, K, G, T, S]``; None is 0."""
    scale: Any
    params: Any
    """A list, of the score function."""


class Context(NamedTuple):
    """The arrays that have no derivative."""

    mask: list[Array]
    kind: list[Array]
    seed: UInt32[Array, "2"] | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """The static part of a call: sizes, and functions that take every array as an argument."""

    grid: Grid
    batch: tuple[int, ...]
    num_heads: int
    num_key_heads: int
    dtype: Any
    """Of query, key and value."""
    allow: Callable | None = None
    """``(arrays, indices) -> bool``, broadcastable to ``[*B, N, t, s]``; None is all."""
    kind: Callable | None = None
    """``(arrays, indices) -> int``, of a tile; None if all are full."""
    score: Callable | None = None
    """``(params, scores, indices) -> scores`` of ``[*B, N, t, s]``; None is the identity."""
    dropout_rate: float = 0.0
    ring: Ring | None = None
    """Over which the sequence is spread; None if all of it is here."""
    heads: Heads | None = None
    """Over which heads are spread; None if all of them are here."""
    named: str | None = "blockwise"
    """Whose kernels run, or the call fails; None is where the platform has some."""
    band: tuple[int | None, int | None] | None = None
    """How far back and ahead a query sees, of a call that is for cuDNN; else None."""

    @property
    def keys_ring(self) -> Ring | None:
        """The ring round which keys go; None if all of them are at hand."""
        return None if self.ring is None or self.ring.is_gathered else self.ring

    def indices(self, i, j) -> Indices:
        """Returns where tile (i, j) stands."""
        indices = tile_indices(self.batch, self.num_heads, *self.grid.positions(i, j))
        if self.heads is None:
            return indices
        return indices._replace(head=indices.head + self.heads.first(self.num_heads))

    @property
    def is_full(self) -> bool:
        """Whether all tiles are."""
        return self.kind is None and self.grid.is_exact

    def kinds(self, context: Context, i, columns) -> Array:
        """Returns the kinds of the tiles of row i in these columns."""
        grid = self.grid

        def of_tile(j):
            kind = FULL if self.kind is None else self.kind(context.kind, self.indices(i, j))
            if grid.is_exact:
                return jnp.asarray(kind)
            queries, keys = grid.within(i, j)
            return jnp.maximum(kind, jnp.where(queries[-1] & keys[-1], FULL, MIXED))

        return jax.vmap(of_tile)(columns)

    def arrange(
        self,
        params: list[Array],
        query: Float[Array, "*B T N H"],
        key: Float[Array, "*B S K H"],
        value: Float[Array, "*B S K V"] | None,
        bias: Float[Array, "..."] | None,
        scale: Float[Array, ""] | float,
    ) -> Inputs:
        """Returns what attention is differentiable in, heads first, positions last, padded."""
        grid = self.grid
        dtype = accumulated(query.dtype)
        if bias is not None and 1 in bias.shape[-2:]:
            # The gradient is summed along an axis; one of T x S stays as it is, cast tile by tile.
            bias = bias.astype(dtype)
        query = self.grouped(jnp.moveaxis(query.astype(dtype), -3, -1))
        inputs = Inputs(
            query=jnp.swapaxes(query, -3, -2),
            key=jnp.moveaxis(key.astype(dtype), -3, -1),
            value=None if value is None else jnp.moveaxis(value.astype(dtype), -3, -1),
            bias=None if bias is None else self.grouped(bias),
            scale=jnp.asarray(scale, dtype),
            params=params,
        )
        return jax.tree.map(functools.partial(pad, grid), inputs, axes_of(inputs))

    def restored(self, x: Float[Array, "*B K G W T"]) -> Float[Array, "*B T N W"]:
        """Returns a result of the queries, arranged as they were given."""
        x = jnp.reshape(x, (*self.batch, self.num_heads, *x.shape[-2:]))
        return jnp.moveaxis(crop(self.grid, x, QUERIES), -1, -3)

    def grouped(self, x: Array) -> Array:
        """Returns ``[..., N, A, B]`` as ``[..., K, G, A, B]``, of one head or none as 1, 1."""
        x = expand(x, len(self.batch) + 3)
        *batch, heads, first, last = x.shape
        key_heads = 1 if heads == 1 else self.num_key_heads
        return jnp.reshape(x, (*batch, key_heads, heads // key_heads, first, last))

    def sweep(
        self, context: Context, inputs: Inputs, start, visit, finish, zeros: Any, device: Any = None
    ) -> Any:
        """Returns results of the queries, one row of tiles after another.

            row = start()      row = visit(tile, parts, row)      results = finish(row)

        Args:
          context: of the call.
          inputs: of the call.
          start: gives what is carried along one row.
          visit: takes it over one tile, from the parts of the inputs there.
          finish: gives the results of a row, a pytree of arrays whose queries are their last axis.
          zeros: the results of all rows, not yet written.
          device: whose keys are at hand, of a ring.
        """
        grid, axes = self.grid, axes_of(inputs)

        def over_tile(tile: Tile, row, results):
            parts = jax.tree.map(lambda x, a: cut(grid, x, a, tile), inputs, axes)
            return visit(tile, parts, row), results

        def end(n, row, results):
            write = lambda x, part: put_row(grid, x, part, QUERIES, n)  # noqa: E731
            return jax.tree.map(write, results, finish(row))

        kinds = None if self.is_full else functools.partial(self.kinds, context)
        shares, axes_of_devices = shares_of(grid, self.ring, device), varying(inputs, context)
        return sweep(shares, kinds, start, over_tile, end, zeros, axes_of_devices)

    def sum(
        self,
        function: Callable,
        context: Context,
        operands: Any,
        in_axes: Any,
        out_axes: Any,
        pull: Pull | None = None,
    ) -> Any:
        """Returns the sum over tiles of ``function(tile, context, operands at it)``.

        ``pull``, of ``(context, operands)``, is its transpose as a kernel.
        """

        def of_tile(tile, both):
            return function(tile, *both)

        kinds = None if self.is_full else lambda i, j, both: self.kinds(both[0], i, j)
        in_axes = (jax.tree.map(lambda _: NEITHER, context), in_axes)
        whole = (context, operands)
        return tile_sum(self.grid, of_tile, kinds, whole, in_axes, out_axes, self.ring, pull)

    def scores(
        self, context: Context, tile: Tile, parts: Inputs
    ) -> tuple[Float[Array, "*B K Q s"], Any]:
        """Returns the scores of one tile, Q = G t, and its values ``[*B, K, V, s]``.

        s = score(scale q k^T + bias), and -inf where it is not allowed.
        """
        query, key, value = parts.query, parts.key, parts.value
        *batch, _, group_size, side = query.shape
        allowed = None if tile.is_full else self.allowed(context, tile)
        if allowed is not None:
            asks = jnp.any(allowed, axis=-1)[..., None, :, :]
            seen = jnp.any(allowed, axis=(-3, -2))[..., None, :]
            query = jnp.where(asks, query, 0)
            key = jnp.where(seen, key, 0)
            value = None if value is None else jnp.where(seen, value, 0)
        scores = scores_of(group_queries(query * parts.scale), key)
        scores = jnp.reshape(scores, (*batch, group_size, side, key.shape[-1]))
        scores = self.changed(tile, scores, parts.bias, parts.params, allowed)
        return jnp.reshape(scores, (*batch, group_size * side, key.shape[-1])), value

    def changed(
        self,
        tile: Tile,
        scores: Float[Array, "*B K G t s"],
        bias: Float[Array, "..."] | None,
        params: Any,
        allowed: Bool[Array, "..."] | None,
    ) -> Float[Array, "*B K G t s"]:
        """Returns the scores of a tile with bias and score function, -inf where not allowed."""
        if bias is not None:
            scores += bias.astype(scores.dtype)
        if self.score is not None:
            if bias is not None:
                # -inf is how a bias says that a pair is not allowed: so it stays, for any score.
                is_open = ~jnp.isneginf(scores)
                allowed = is_open if allowed is None else allowed & is_open
            if allowed is not None:
                scores = jnp.where(allowed, scores, 0)
            grouped = scores.shape
            scores = jnp.reshape(scores, (*self.batch, self.num_heads, *grouped[-2:]))
            scores = self.score(params, scores, self.indices(tile.i, tile.j))
            scores = jnp.reshape(scores, grouped)
        return scores if allowed is None else jnp.where(allowed, scores, -jnp.inf)

    def allowed(self, context: Context, tile: Tile) -> Bool[Array, "..."] | None:
        """Returns which pairs take part, broadcastable to ``[*B, K, G, t, s]``; None is all."""
        allowed = None
        if self.allow is not None:
            allowed = self.allow(context.mask, self.indices(tile.i, tile.j))
        if not self.grid.is_exact:
            queries, keys = self.grid.within(tile.i, tile.j)
            within = queries[:, None] & keys
            allowed = within if allowed is None else allowed & within
        return None if allowed is None else self.grouped(allowed)

    def factors(self, context: Context, tile: Tile, scores: Array) -> Array | None:
        """Returns z / (1 - rate), shaped as the scores; None without dropout."""
        if context.seed is None:
            return None
        rate, indices = self.dropout_rate, self.indices(tile.i, tile.j)
        num_heads = self.num_heads * (1 if self.heads is None else self.heads.size)
        kept = dropout.kept(context.seed, rate, indices, num_heads, self.grid.num_queries)
        return jnp.where(jnp.reshape(kept, scores.shape), 1 / (1 - rate), 0).astype(scores.dtype)


def plan(
    query: Any,
    key: Any,
    mask: Mask | None,
    score: Score | None,
    dropout_seed: UInt32[Array, "2"] | None,
    dropout_rate: float,
    sides: TileSizes | None,
    spread: Ring | Heads | None = None,
    named: str | None = "blockwise",
    band: tuple[int | None, int | None] | None = None,
) -> tuple[Plan, Context, list[Array]]:
    """Returns the static part of a call, its arrays without derivative, and its score's arrays.

    Nothing is computed but what a mask needs to be padded; what functions of masks and scores read
    is read here, at every call.

    Args:
      query: ``[*B, T, N, H]``; of the arrays, shapes and dtypes alone are looked at.
      key: ``[*B, S, K, H]``.
      mask: which pairs take part; None is all.
      score: changes the scores; None leaves them.
      dropout_seed: of ``attn.dropout.seed_of``; None is no dropout.
      dropout_rate: the probability that a weight is dropped.
      sides: the greatest of a tile; None is those of ``attn.tiles.tile_sizes``.
      spread: over which devices sequence or heads are, of which query and key are then a share.
      named: whose kernels run, or the call fails; None is where the platform has some.
      band: that a query sees, of a call that is for cuDNN.
    """
    *batch, num_queries, num_heads, _ = query.shape
    dtype = accumulated(query.dtype)
    if sides is None:
        sides = tile_sizes(target().platform, query.shape, key.shape, mask is not None)
    ring = spread if isinstance(spread, Ring) else None
    heads = spread if isinstance(spread, Heads) else None
    lengths = num_queries, key.shape[-3]
    grid = grid_of(*lengths, sides) if ring is None else ring.grid_of(*lengths, sides)
    if ring is not None and mask is not None:
        ring = ring.within(mask.reach(), *lengths)
    mask = None if mask is None else mask.pad(*grid.padded)
    sizes = grid, tuple(batch), num_heads, key.shape[-2], jnp.dtype(query.dtype)
    made = Plan(*sizes, dropout_rate=dropout_rate, ring=ring, heads=heads, named=named, band=band)
    axes = varying(query, key, mask, score)
    indices = jax.eval_shape(lambda: made.indices(0, 0))
    indices = jax.tree.map(lambda x: example(x.shape, x.dtype, axes), indices)
    allow = kind = function = None
    allow_arrays, kind_arrays, params = [], [], []
    if mask is not None:
        allow, allow_arrays = closures.explicit(mask.allow, indices)
        kind, kind_arrays = closures.explicit(functools.partial(kind_of, mask), indices)
    if score is not None:
        shape = (*batch, num_heads, grid.query_side, grid.key_side)
        function, params = closures.explicit(score, example(shape, dtype, axes), indices)
    made = dataclasses.replace(made, allow=allow, kind=kind, score=function)
    return made, Context(allow_arrays, kind_arrays, dropout_seed), params


def kind_of(mask: Mask, indices: Indices) -> Array:
    """Returns whether a tile is full, mixed or empty, as ``attn.tiles`` numbers them."""
    kind = mask.tile(indices)
    return jnp.where(kind.empty, EMPTY, jnp.where(kind.full, FULL, MIXED))


def axes_of(inputs: Inputs) -> Inputs:
    """Returns which axes of the inputs are cut; None for what is not there."""

    def of_bias(bias):
        rows, columns = bias.shape[-2:]
        return Axes(-2 if rows != 1 else None, -1 if columns != 1 else None, is_whole=True)

    return Inputs(
        query=None if inputs.query is None else QUERIES,
        key=None if inputs.key is None else KEYS,
        value=None if inputs.value is None else KEYS,
        bias=None if inputs.bias is None else of_bias(inputs.bias),
        scale=None if inputs.scale is None else NEITHER,
        params=[None if x is None else NEITHER for x in inputs.params],
    )


def group_queries(x: Float[Array, "*B G t"]) -> Float[Array, "*B Q"]:
    """Returns the queries of the heads that share a key head as one axis."""
    return jnp.reshape(x, (*x.shape[:-2], x.shape[-2] * x.shape[-1]))


def ungroup_queries(x: Float[Array, "*B Q"], group_size: int) -> Float[Array, "*B G t"]:
    """Returns them as two axes again."""
    return jnp.reshape(x, (*x.shape[:-1], group_size, x.shape[-1] // group_size))
