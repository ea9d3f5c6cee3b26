"""Exact attention at linear memory, on any platform: a scan over tiles, and one derivative rule.

The queries are cut into tiles; for each of them a scan over tiles of keys carries a
``SoftmaxState``. No T x S array exists at any time, in any derivative of any order.

**The rule.** For query i with weights p_ij = exp(s_ij - lse_i), the tangents are

    r_i = sum_j p_ij ds_ij        do_i = sum_j p_ij ds_ij v_j - r_i o_i + sum_j p_ij dv_j
    dlse_i = r_i

with ds the tangent of the score tile, taken by ``jax.jvp`` of the function that computes it. The
rule is itself a scan over tiles whose bodies are rematerialised, so nothing of size T x S is saved
for a later pass. JAX transposes it into the backward pass of FlashAttention (Dao et al., arXiv
2205.14135, algorithm 4; five matrix products a tile), and because the rule is differentiable in
all that it reads, o and lse included, applying it again gives every higher order.

**What never leaks.** In a tile that is not full, keys and values that no query of the tile may
attend, and queries that may attend to no key of it, are replaced by 0 before any product: what
stands there, NaN included, reaches no output and no derivative.

Letters: ``*B`` leading axes, T queries, S keys, t and s the sides of a tile, N query heads,
K key heads, G = N / K query heads that share a key head, H head width, V value width.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, DTypeLike, Float, Shaped

from attn import softmax_state
from attn.masks import Lengths, Mask


class Inputs(NamedTuple):
    """All that attention is differentiable in: whole, cut into tiles, or one tile of it."""

    query: Any
    key: Any
    value: Any
    bias: Any
    scale: Any


class Outputs(NamedTuple):
    """What attention returns, or its tangent: whole, cut into tiles, or one tile of it."""

    output: Any
    lse: Any


class TileSizes(NamedTuple):
    """The greatest sides of a tile."""

    query: int = 256
    key: int = 256


class Grid(NamedTuple):
    """Queries and keys cut into the fewest tiles, of sides as equal as they can be."""

    num_queries: int
    num_keys: int
    num_key_heads: int
    sides: TileSizes

    @property
    def counts(self) -> tuple[int, int]:
        """How many tiles of queries and of keys; the last of each may be padded."""
        return (
            _ceil_div(self.num_queries, self.sides.query),
            _ceil_div(self.num_keys, self.sides.key),
        )

    @property
    def padded(self) -> tuple[int, int]:
        """How many queries and keys there are with the padding."""
        return self.counts[0] * self.sides.query, self.counts[1] * self.sides.key


EMPTY, FULL, MIXED = range(3)
"""Kinds of tiles; see ``attn.masks.TileKind``."""


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@functools.partial(jax.jit, static_argnames=("tile_sizes",))
def blockwise_attention(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    value: Float[Array, "*B S K V"],
    bias: Float[Array, "..."] | None,
    mask: Mask | None,
    scale: Float[Array, ""] | float,
    tile_sizes: TileSizes = TileSizes(),  # noqa: B008 - immutable
) -> tuple[Float[Array, "*B T N V"], Float[Array, "*B T N"]]:
    """Returns the attention output and the log-sum-exp of the scores, at linear memory.

        s = scale query key^T + bias        output = softmax(s) value        lse = log sum exp s

    Cost: O(T S (H + V)) time a head, less the tiles that the mask finds empty; O(T + S) memory a
    head, in every derivative too (a bias of size T x S is the caller's, and so is its gradient).

    Args:
      query: queries; all arguments are taken as checked by ``attn.dot_product_attention``.
      key: keys, of the same leading axes; K divides N.
      value: values.
      bias: added to the scaled scores; broadcastable to ``[*B, N, T, S]``.
      mask: which pairs take part; None is all.
      scale: factor of the scores.
      tile_sizes: greatest sides of a tile.

    Returns:
      Both in the dtype that all is computed in: float64 for float64 inputs, else float32.
    """
    num_queries, num_keys = query.shape[-3], key.shape[-3]
    sides = TileSizes(
        query=_ceil_div(num_queries, _ceil_div(num_queries, tile_sizes.query)),
        key=_ceil_div(num_keys, _ceil_div(num_keys, tile_sizes.key)),
    )
    grid = Grid(num_queries, num_keys, key.shape[-2], sides)
    if mask is not None:
        mask = mask.pad(*grid.padded)
    if grid.padded != (num_queries, num_keys):
        in_range = Lengths(query=jnp.int32(num_queries), key=jnp.int32(num_keys))
        mask = in_range if mask is None else mask & in_range
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    return _attend(grid, mask, Inputs(query, key, value, bias, jnp.asarray(scale, dtype)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attend(grid: Grid, mask: Mask | None, inputs: Inputs) -> Outputs:
    """The primal: the state of every query absorbs all tiles of keys."""

    def start(row: Inputs):
        *batch, t, k, g, _ = row.query[0].shape
        return softmax_state.empty((*batch, k, g, t), row.value.shape[-1], row.query.dtype)

    def step(tile: Inputs, state, allowed):
        return softmax_state.absorb(state, *_scores(allowed, tile))

    def finish(_, state):
        output, lse = softmax_state.finish(state)
        return Outputs(output, lse[..., None])

    return _over_tiles(
        grid, mask, _cut_inputs(grid, inputs, inputs.scale.dtype), start, step, finish
    )


@functools.partial(_attend.defjvp, symbolic_zeros=True)
def _attend_jvp(grid: Grid, primals, tangents):
    mask, inputs = primals
    outputs = _attend(grid, mask, inputs)
    moving = Inputs(*(None if isinstance(x, SymbolicZero) else x for x in tangents[1]))
    return outputs, _attend_tangent(grid, mask, inputs, outputs, moving)


def _attend_tangent(
    grid: Grid, mask: Mask | None, inputs: Inputs, outputs: Outputs, moving: Inputs
):
    """The tangent, linear in ``moving``: the tangents of ``inputs``, None for what is at rest."""
    operands = (
        _cut_inputs(grid, inputs, inputs.scale.dtype),
        _cut_inputs(grid, moving, inputs.scale.dtype),
        Outputs(*(_cut_queries(grid, x) for x in (outputs.output, outputs.lse[..., None]))),
    )

    def start(row):
        return jax.tree.map(lambda x: jnp.zeros_like(_heads_first(x[0])), row[2])

    def step(operands, sums, allowed):
        tile, moving, outputs = operands
        moving = {name: x for name, x in moving._asdict().items() if x is not None}
        (scores, values), (d_scores, d_values) = jax.jvp(
            lambda moved: _scores(allowed, tile._replace(**moved)),
            [{name: getattr(tile, name) for name in moving}],
            [moving],
        )
        weights = jnp.exp(scores - softmax_state.finite(_heads_first(outputs.lse)))
        weighted = weights * d_scores
        return Outputs(
            sums.output + weighted @ values + weights @ d_values,
            sums.lse + jnp.sum(weighted, axis=-1, keepdims=True),
        )

    def finish(row, sums):
        return Outputs(sums.output - sums.lse * _heads_first(row[2].output[0]), sums.lse)

    return _over_tiles(grid, mask, operands, start, step, finish)


def _scores(allowed: Bool[Array, "..."] | None, tile: Inputs):
    """Returns the scores ``[*B, K, G, t, s]`` and values ``[*B, K, 1, s, V]`` of one tile.

    s = scale q k^T + bias, and -inf where it is not allowed; None allows all.
    """
    query, key, value = tile.query, tile.key, tile.value
    if allowed is not None:
        asks = jnp.any(allowed, axis=-1, keepdims=True)
        query = jnp.where(_heads_last(asks), query, 0)
        seen = jnp.any(allowed, axis=(-3, -2))[..., None]
        key, value = (jnp.where(jnp.swapaxes(seen, -2, -3), x, 0) for x in (key, value))
    scores = jnp.einsum("...tkgh,...skh->...kgts", query * tile.scale, key)
    if tile.bias is not None:
        scores += tile.bias
    if allowed is not None:
        scores = jnp.where(allowed, scores, -jnp.inf)
    return scores, jnp.moveaxis(value, -3, -2)[..., None, :, :]


def _over_tiles(grid: Grid, mask: Mask | None, operands, start, step, finish) -> Outputs:
    """Returns what ``finish`` makes of every row of tiles, uncut.

    The leaves of ``operands`` are indexed by query tile, then by key tile. For each row of tiles a
    carry begins as ``start(row)``, becomes ``step(tile, carry, allowed)`` at every tile that is
    not empty, and ends as ``finish(row, carry)``. Both bodies are rematerialised: a derivative
    of these scans keeps their carries, never a tile.
    """

    def over_row(_, i, row):
        def over_tile(carry, j, tile):
            rows = i * grid.sides.query + jnp.arange(grid.sides.query)
            columns = j * grid.sides.key + jnp.arange(grid.sides.key)
            return _visit(grid, mask, rows, columns, functools.partial(step, tile), carry), None

        carry, _ = _scan(over_tile, start(row), row, grid.counts[1])
        return None, jax.tree.map(_heads_last, finish(row, carry))

    _, tiles = _scan(over_row, None, operands, grid.counts[0])
    return Outputs(_uncut_queries(grid, tiles.output), _uncut_queries(grid, tiles.lse)[..., 0])


def _visit(grid: Grid, mask: Mask | None, rows, columns, step, carry):
    """Returns the carry after one tile: unchanged if it is empty, unmasked if it is full."""
    if mask is None:
        return step(carry, allowed=None)

    def mixed(carry):
        allowed = mask.allow(rows, columns)
        allowed = jnp.reshape(allowed, (1,) * (3 - allowed.ndim) + allowed.shape)
        return step(carry, allowed=_group_heads(allowed, -3, grid))

    if grid.counts == (1, 1):
        return mixed(carry)
    kind = mask.tile(rows, columns)
    if kind.empty is False and kind.full is False:
        return mixed(carry)
    branches = [lambda carry: carry, functools.partial(step, allowed=None), mixed]
    index = jnp.where(kind.empty, EMPTY, jnp.where(kind.full, FULL, MIXED))
    return lax.switch(_agreed(index), branches, carry)


@jax.custom_batching.custom_vmap
def _agreed(kind):
    """The identity; under ``vmap``, the kind of a tile on which all agree, or else mixed.

    So the choice of a branch is never batched: a tile that is empty for all is still skipped, and
    ``lax.switch`` stays one. (As a select, its linear part cannot be transposed: jax 0.10, 0.11.)
    """
    return kind


@_agreed.def_vmap
def _agreed_rule(axis_size, in_batched, kinds):
    del in_batched
    if axis_size == 0:
        return jnp.full_like(kinds, MIXED, shape=()), False
    return _agreed(jnp.where(jnp.all(kinds == kinds[0]), kinds[0], MIXED)), False


def _scan(body: Callable, carry, operands, count: int):
    """``lax.scan`` of ``body(carry, index, operands)``, rematerialised.

    Leaves of ``operands`` have a leading axis of ``count``, or of 1 if they serve every index.
    """
    leaves, tree = jax.tree.flatten(operands)
    shared = [x[0] if x.shape[0] == 1 else None for x in leaves]

    def step(carry, indexed):
        index, sliced = indexed
        merged = [x if x is not None else y for x, y in zip(shared, sliced, strict=True)]
        return body(carry, index, jax.tree.unflatten(tree, merged))

    if count == 1:
        carry, result = step(carry, (0, shared))
        return carry, jax.tree.map(lambda x: x[None], result)
    sliced = [x if y is None else None for x, y in zip(leaves, shared, strict=True)]
    step = jax.checkpoint(step, prevent_cse=False)
    return lax.scan(step, carry, (jnp.arange(count), sliced))


def _cut_inputs(grid: Grid, inputs: Inputs, dtype: DTypeLike) -> Inputs:
    """Returns the inputs cut, in one dtype; what is None stays None."""
    query, key, value, bias, scale = (None if x is None else x.astype(dtype) for x in inputs)
    return Inputs(
        query=None if query is None else _cut_queries(grid, query),
        key=None if key is None else _cut_axis(key, -3, grid, 1)[None],
        value=None if value is None else _cut_axis(value, -3, grid, 1)[None],
        bias=None if bias is None else _cut_bias(grid, bias),
        scale=None if scale is None else scale[None, None],
    )


def _cut_queries(grid: Grid, x: Float[Array, "*B T N W"]) -> Float[Array, "i 1 *B t K G W"]:
    return _cut_axis(_group_heads(x, -2, grid), -4, grid, 0)[:, None]


def _uncut_queries(grid: Grid, x: Float[Array, "i *B t K G W"]) -> Float[Array, "*B T N W"]:
    *batch, _, k, g, width = x.shape[1:]
    x = jnp.reshape(jnp.moveaxis(x, 0, -5), (*batch, grid.padded[0], k * g, width))
    return x[..., : grid.num_queries, :, :]


def _cut_bias(grid: Grid, bias: Float[Array, "..."]) -> Float[Array, "i j *B K G t s"]:
    """Any of the axes, i and j included, may be 1 and serve all."""
    bias = jnp.reshape(bias, (1,) * (3 - bias.ndim) + bias.shape)
    return _cut_axis(_cut_axis(_group_heads(bias, -3, grid), -1, grid, 1), -2, grid, 0)


def _cut_axis(x: Array, axis: int, grid: Grid, which: int) -> Array:
    """Returns ``x`` with an axis of queries (0) or keys (1) cut: first the tile, then within it."""
    length, side, count = x.shape[axis], grid.sides[which], grid.counts[which]
    if length == 1:
        return x[None]
    axis %= x.ndim
    x = jnp.pad(x, [(0, side * count - length if a == axis else 0) for a in range(x.ndim)])
    x = jnp.reshape(x, (*x.shape[:axis], count, side, *x.shape[axis + 1 :]))
    return jnp.moveaxis(x, axis, 0)


def _group_heads(x: Array, axis: int, grid: Grid) -> Array:
    """Returns ``x`` with its axis of N heads as K, G; an axis of 1 as 1, 1."""
    axis %= x.ndim
    heads = x.shape[axis]
    key_heads = 1 if heads == 1 else grid.num_key_heads
    return jnp.reshape(x, (*x.shape[:axis], key_heads, heads // key_heads, *x.shape[axis + 1 :]))


def _heads_first(x: Shaped[Array, "*B t K G W"]) -> Shaped[Array, "*B K G t W"]:
    return jnp.moveaxis(x, -4, -2)


def _heads_last(x: Shaped[Array, "*B K G t W"]) -> Shaped[Array, "*B t K G W"]:
    return jnp.moveaxis(x, -2, -4)
