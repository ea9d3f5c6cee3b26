"""Exact attention at linear memory, on any platform: one pass over tiles, and one derivative rule.

For every row of tiles a ``SoftmaxState`` absorbs the tiles of keys that its mask leaves. No T x S
array exists at any time, in any derivative of any order.

**The rule.** For query i with weights p_ij = exp(s_ij - lse_i), the tangents are

    r_i = sum_j p_ij ds_ij        do_i = sum_j p_ij ds_ij v_j - r_i o_i + sum_j p_ij dv_j
    dlse_i = r_i

with ds the tangent of the score tile, taken by ``jax.jvp`` of the function that computes it. They
are sums over tiles (``attn.tiles``), a family that is closed under differentiation and
transposition: the transpose of the rule is the backward pass of FlashAttention (Dao et al., arXiv
2205.14135, algorithm 4; five matrix products a tile), and so on for every higher order.

**Sinks** are a key for every head, of which only the score is given: its value is 0. **Dropout**
multiplies p_ij in the output, not in lse, by z_ij / (1 - rate); whether z_ij is 0 or 1 is a hash
of the seed and of the indices of the pair, so every pass, tile and order sees the same.

**What never leaks.** In a tile that is not full, keys and values that no query of the tile may
attend, and queries that may attend to no key of it, are replaced by 0 before any product: what
stands there, NaN included, reaches no output and no derivative.

Letters: ``*B`` leading axes, T queries, S keys, t and s the sides of a tile, N query heads,
K key heads, G = N / K query heads that share a key head, H head width, V value width. Inside,
positions are the last axis: XLA's matrix products on CPU are fastest so, in both directions.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, UInt32

from attn import closures, dropout, softmax_state
from attn.indices import Indices, tile_indices
from attn.masks import Lengths, Mask
from attn.scores import Score
from attn.tiles import (
    EMPTY,
    FULL,
    MIXED,
    Axes,
    Grid,
    Tile,
    ceil_div,
    cut,
    pad,
    put,
    sweep,
    tile_sum,
)

QUERIES, KEYS, NEITHER = Axes(query=-1), Axes(key=-1), Axes()


class TileSizes(NamedTuple):
    """The greatest sides of a tile."""

    query: int
    key: int


def tile_sizes(
    query_shape: tuple[int, ...], key_shape: tuple[int, ...], is_masked: bool
) -> TileSizes:
    """Returns the sides that were fastest on CPU for such shapes; see ``benchmarks/README.md``.

    A tile should be large enough for both cores to share its products, and under a mask there
    should be two along an axis, so that some can be empty.
    """
    *batch, num_queries, num_heads, _ = query_shape
    most = 1024 if math.prod(batch) * num_heads == 1 else 512

    def side(length):
        halves = isinstance(length, int) and is_masked
        return min(most, max(128, ceil_div(length, 2))) if halves else most

    return TileSizes(side(num_queries), side(key_shape[-3]))


class Inputs(NamedTuple):
    """What attention is differentiable in, arranged: heads first, positions last, whole tiles."""

    query: Any
    """``[*B, K, H, G, T]``."""
    key: Any
    """``[*B, K, H, S]``."""
    value: Any
    """``[*B, K, V, S]``."""
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


class Outputs(NamedTuple):
    """What attention returns, or its tangent, arranged."""

    output: Any
    """``[*B, K, V, G, T]``."""
    lse: Any
    """``[*B, K, G, T]``."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """The static part of a call: sizes, and functions that take every array as an argument."""

    grid: Grid
    batch: tuple[int, ...]
    num_heads: int
    num_key_heads: int
    allow: Callable | None
    """``(arrays, indices) -> bool``, broadcastable to ``[*B, N, t, s]``; None is all."""
    kind: Callable | None
    """``(arrays, indices) -> int``, of a tile."""
    score: Callable | None
    """``(params, scores, indices) -> scores`` of ``[*B, N, t, s]``; None is the identity."""
    dropout_rate: float

    def indices(self, i, j) -> Indices:
        """Returns where tile (i, j) stands."""
        return tile_indices(self.batch, self.num_heads, *self.grid.positions(i, j))

    def restored(self, x: Float[Array, "*B K G W T"]) -> Float[Array, "*B T N W"]:
        """Returns a result of the queries, arranged as they were given."""
        x = jnp.reshape(x, (*self.batch, self.num_heads, *x.shape[-2:]))
        return jnp.moveaxis(x[..., : self.grid.num_queries], -1, -3)

    def kinds(self, context: Context, i) -> Array:
        """Returns the kinds of the tiles of a row."""
        kind = self.kind
        assert kind is not None

        def of_tile(j):
            return kind(context.kind, self.indices(i, j))

        return jax.vmap(of_tile)(jnp.arange(self.grid.counts[1]))


def blockwise_attention(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    value: Float[Array, "*B S K V"],
    bias: Float[Array, "..."] | None = None,
    mask: Mask | None = None,
    scale: Float[Array, ""] | float = 1.0,
    score: Score | None = None,
    dropout_seed: UInt32[Array, "2"] | None = None,
    dropout_rate: float = 0.0,
    sides: TileSizes | None = None,
) -> tuple[Float[Array, "*B T N V"], Float[Array, "*B T N"]]:
    """Returns the attention output and the log-sum-exp of the scores, at linear memory.

        s = score(scale query key^T + bias)     output = softmax(s) value     lse = log sum exp s

    Cost: O(T S (H + V)) time a head, less the tiles that the mask finds empty; O(T + S) memory a
    head, in every derivative too (a bias of size T x S is the caller's, and so is its gradient).

    Args:
      query: queries; all arguments are taken as checked by ``attn.dot_product_attention``.
      key: keys, of the same leading axes; K divides N.
      value: values.
      bias: added to the scaled scores; broadcastable to ``[*B, N, T, S]``.
      mask: which pairs take part; None is all.
      scale: factor of the scores.
      score: changes the scores; None leaves them.
      dropout_seed: of ``attn.dropout.seed_of``.
      dropout_rate: the probability that a weight is dropped.
      sides: the greatest of a tile; None is ``tile_sizes`` of these shapes.

    Returns:
      Both in the dtype that all is computed in: float64 for float64 inputs, else float32.
    """
    problem, context, params = plan(query, key, mask, score, dropout_seed, dropout_rate, sides)
    return attend(problem, context, params, query, key, value, bias, scale)


# Compiled here, so that a call outside of ``jit`` compiles its loops once, not every time.
@functools.partial(jax.jit, static_argnums=0)
def attend(
    problem: Problem, context: Context, params: list[Array], query, key, value, bias, scale
) -> tuple[Array, Array]:
    """Returns output and log-sum-exp of a planned call."""
    output, lse = _attend(
        problem, context, arrange(problem, params, query, key, value, bias, scale)
    )
    lse = problem.restored(lse[..., None, :])[..., 0]
    return problem.restored(jnp.swapaxes(output, -3, -2)), lse


def grid_of(num_queries: int, num_keys: int, most: TileSizes) -> Grid:
    """Returns the fewest tiles of at most these sides, of sides as equal as they can be.

    Along an axis of symbolic length (``jax.export``) they are of just these sides.
    """

    def side(length, most):
        return ceil_div(length, ceil_div(length, most)) if isinstance(length, int) else most

    return Grid(num_queries, num_keys, side(num_queries, most.query), side(num_keys, most.key))


def within(grid: Grid, mask: Mask | None) -> Mask | None:
    """Returns the mask over whole tiles, without what is beyond the queries and keys."""
    if mask is not None:
        mask = mask.pad(*grid.padded)
    if grid.padded == (grid.num_queries, grid.num_keys):
        return mask
    in_range = Lengths(query=jnp.int32(grid.num_queries), key=jnp.int32(grid.num_keys))
    return in_range if mask is None else mask & in_range


def plan(
    query: Array,
    key: Array,
    mask: Mask | None,
    score: Score | None,
    dropout_seed: UInt32[Array, "2"] | None,
    dropout_rate: float,
    sides: TileSizes | None,
) -> tuple[Problem, Context, list[Array]]:
    """Returns the static part of a call, its arrays without derivative, and its score's arrays.

    Nothing is computed but what a mask needs to be padded; what functions of masks and scores read
    is read here, at every call.
    """
    *batch, num_queries, num_heads, _ = query.shape
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    if sides is None:
        sides = tile_sizes(query.shape, key.shape, mask is not None)
    grid = grid_of(num_queries, key.shape[-3], sides)
    mask = within(grid, mask)
    problem = Problem(grid, tuple(batch), num_heads, key.shape[-2], None, None, None, dropout_rate)
    example = jax.eval_shape(lambda: problem.indices(0, 0))
    allow = kind = function = None
    allow_arrays, kind_arrays, params = [], [], []
    if mask is not None:
        allow, allow_arrays = closures.explicit(mask.allow, example)
        kind, kind_arrays = closures.explicit(functools.partial(kind_of, mask), example)
    if score is not None:
        shape = (*batch, num_heads, grid.query_side, grid.key_side)
        function, params = closures.explicit(score, jax.ShapeDtypeStruct(shape, dtype), example)
    problem = dataclasses.replace(problem, allow=allow, kind=kind, score=function)
    return problem, Context(allow_arrays, kind_arrays, dropout_seed), params


def arrange(
    problem: Problem,
    params: list[Array],
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    value: Float[Array, "*B S K V"] | None,
    bias: Float[Array, "..."] | None,
    scale: Float[Array, ""] | float,
) -> Inputs:
    """Returns what attention is differentiable in, heads first, positions last, padded."""
    grid, num_key_heads = problem.grid, problem.num_key_heads
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    if bias is not None and bias.shape[-2:] != (grid.num_queries, grid.num_keys):
        # The gradient is summed along an axis; one of T x S stays as it is, cast tile by tile.
        bias = bias.astype(dtype)
    query = group(jnp.moveaxis(query.astype(dtype), -3, -1), -3, num_key_heads)
    inputs = Inputs(
        query=jnp.swapaxes(query, -3, -2),
        key=jnp.moveaxis(key.astype(dtype), -3, -1),
        value=None if value is None else jnp.moveaxis(value.astype(dtype), -3, -1),
        bias=None if bias is None else group(_at_least_3d(bias), -3, num_key_heads),
        scale=jnp.asarray(scale, dtype),
        params=params,
    )
    return jax.tree.map(lambda x, axes: pad(grid, x, axes), inputs, axes_of(inputs))


def kind_of(mask: Mask, indices: Indices) -> Array:
    """Returns whether a tile is full, mixed or empty, as ``attn.tiles`` numbers them."""
    kind = mask.tile(indices)
    return jnp.where(kind.empty, EMPTY, jnp.where(kind.full, FULL, MIXED))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attend(problem: Problem, context: Context, inputs: Inputs) -> Outputs:
    """The primal: the state of every query absorbs all tiles of keys."""
    grid = problem.grid
    *batch, _, group_size, num_queries = inputs.query.shape
    width, dtype = inputs.value.shape[-2], inputs.query.dtype

    def start(_):
        queries = (*batch, group_size * grid.query_side)
        return softmax_state.empty(queries, width, dtype)

    def visit(tile: Tile, state, outputs):
        parts = jax.tree.map(lambda x, axes: cut(grid, x, axes, tile.i, tile.j), inputs, axes_in)
        scores, values = tile_scores(problem, context, tile, parts)
        factors = _factors(problem, context, tile, scores)
        return softmax_state.absorb(state, scores, values, factors), outputs

    def finish(i, state, outputs):
        parts = Outputs(*(ungroup_queries(x, group_size) for x in softmax_state.finish(state)))
        return jax.tree.map(lambda x, part: put(grid, x, part, QUERIES, i, 0), outputs, parts)

    axes_in = axes_of(inputs)
    outputs = Outputs(
        jnp.zeros((*batch, width, group_size, num_queries), dtype),
        jnp.zeros((*batch, group_size, num_queries), dtype),
    )
    kinds = None if problem.kind is None else functools.partial(problem.kinds, context)
    return sweep(grid, kinds, start, visit, finish, outputs)


@functools.partial(_attend.defjvp, symbolic_zeros=True)
def _attend_jvp(problem: Problem, primals, tangents):
    context, inputs = primals
    outputs = _attend(problem, context, inputs)
    is_zero = lambda x: isinstance(x, SymbolicZero)  # noqa: E731
    moving = jax.tree.map(lambda x: None if is_zero(x) else x, tangents[1], is_leaf=is_zero)
    return outputs, _attend_tangent(problem, context, inputs, outputs, moving)


def _attend_tangent(
    problem: Problem, context: Context, inputs: Inputs, outputs: Outputs, moving: Inputs
) -> Outputs:
    """The rule: linear in ``moving``, the tangents of ``inputs``, None for what is at rest."""

    def function(tile: Tile, operands):
        context, inputs, moving, lse = operands
        (scores, values), (d_scores, d_values) = _jvp_where(
            lambda inputs: tile_scores(problem, context, tile, inputs), inputs, moving
        )
        weights = jnp.exp(scores - softmax_state.finite(group_queries(lse))[..., None])
        factors = _factors(problem, context, tile, scores)
        weighted = weights * d_scores
        mixed = softmax_state.mix(weighted, values, factors)
        if moving.value is not None:
            mixed += softmax_state.mix(weights, d_values, factors)
        group_size = lse.shape[-2]
        return ungroup_queries(mixed, group_size), ungroup_queries(
            jnp.sum(weighted, axis=-1), group_size
        )

    mixed, d_lse = tile_sum(
        problem.grid,
        function,
        None if problem.kind is None else lambda i, operands: problem.kinds(operands[0], i),
        (context, inputs, moving, outputs.lse),
        (jax.tree.map(lambda _: NEITHER, context), axes_of(inputs), axes_of(moving), QUERIES),
        (QUERIES, QUERIES),
    )
    return Outputs(mixed - outputs.output * d_lse[..., None, :, :], d_lse)


def _jvp_where(function: Callable, inputs: Any, moving: Any):
    """Returns ``jax.jvp`` of ``function`` at ``inputs``, of which those with a tangent move."""
    leaves, tree = jax.tree.flatten(inputs)
    # A leaf of ``inputs`` is None in ``moving`` if it is at rest.
    tangents = tree.flatten_up_to(moving)

    def moved(some):
        some = iter(some)
        every = [x if dx is None else next(some) for x, dx in zip(leaves, tangents, strict=True)]
        return function(jax.tree.unflatten(tree, every))

    pairs = [(x, dx) for x, dx in zip(leaves, tangents, strict=True) if dx is not None]
    return jax.jvp(moved, ([x for x, _ in pairs],), ([dx for _, dx in pairs],))


def tile_scores(problem: Problem, context: Context, tile: Tile, parts: Inputs):
    """Returns the scores ``[*B, K, G t, s]`` and values ``[*B, K, V, s]`` of one tile.

    s = score(scale q k^T + bias), and -inf where it is not allowed.
    """
    query, key, value = parts.query, parts.key, parts.value
    *batch, _, group_size, side = query.shape
    indices = problem.indices(tile.i, tile.j)
    allowed = None
    if problem.allow is not None and not tile.is_full:
        allowed = problem.allow(context.mask, indices)
        allowed = group(_at_least_3d(allowed), -3, problem.num_key_heads)
        asks = jnp.any(allowed, axis=-1)[..., None, :, :]
        seen = jnp.any(allowed, axis=(-3, -2))[..., None, :]
        query = jnp.where(asks, query, 0)
        key = jnp.where(seen, key, 0)
        value = None if value is None else jnp.where(seen, value, 0)
    scores = _products(group_queries(query * parts.scale), key)
    scores = jnp.reshape(scores, (*batch, group_size, side, key.shape[-1]))
    if parts.bias is not None:
        scores += parts.bias.astype(scores.dtype)
    if problem.score is not None:
        if parts.bias is not None:
            # -inf is how a bias says that a pair is not allowed: it stays so, whatever the score.
            is_open = ~jnp.isneginf(scores)
            allowed = is_open if allowed is None else allowed & is_open
        if allowed is not None:
            scores = jnp.where(allowed, scores, 0)
        grouped = scores.shape
        scores = jnp.reshape(scores, (*batch[:-1], problem.num_heads, *grouped[-2:]))
        scores = jnp.reshape(problem.score(parts.params, scores, indices), grouped)
    if allowed is not None:
        scores = jnp.where(allowed, scores, -jnp.inf)
    return jnp.reshape(scores, (*batch, group_size * side, key.shape[-1])), value


def _products(query: Float[Array, "*B H Q"], key: Float[Array, "*B H s"]) -> Array:
    batch = tuple(range(query.ndim - 2))
    width = query.ndim - 2
    return lax.dot_general(query, key, (((width,), (width,)), (batch, batch)))


def _factors(problem: Problem, context: Context, tile: Tile, scores: Array) -> Array | None:
    """Returns z / (1 - rate), shaped as the scores; None without dropout."""
    if context.seed is None:
        return None
    rate = problem.dropout_rate
    kept = dropout.kept(
        context.seed,
        rate,
        problem.indices(tile.i, tile.j),
        problem.num_heads,
        problem.grid.num_queries,
    )
    return jnp.where(jnp.reshape(kept, scores.shape), 1 / (1 - rate), 0).astype(scores.dtype)


def axes_of(inputs: Inputs) -> Inputs:
    """Returns which axes of the inputs are cut; None for what is not there."""
    bias = inputs.bias
    return Inputs(
        query=None if inputs.query is None else QUERIES,
        key=None if inputs.key is None else KEYS,
        value=None if inputs.value is None else KEYS,
        bias=None
        if bias is None
        else Axes(-2 if bias.shape[-2] != 1 else None, -1 if bias.shape[-1] != 1 else None),
        scale=None if inputs.scale is None else NEITHER,
        params=[None if x is None else NEITHER for x in inputs.params],
    )


def _at_least_3d(x: Array) -> Array:
    return jnp.reshape(x, (1,) * (3 - x.ndim) + x.shape)


def group(x: Array, axis: int, num_key_heads: int) -> Array:
    """Returns ``x`` with its axis of N heads as K, G; an axis of 1 as 1, 1."""
    axis %= x.ndim
    heads = x.shape[axis]
    key_heads = 1 if heads == 1 else num_key_heads
    return jnp.reshape(x, (*x.shape[:axis], key_heads, heads // key_heads, *x.shape[axis + 1 :]))


def group_queries(x: Float[Array, "*B G t"]) -> Float[Array, "*B Q"]:
    """Returns the queries of the heads that share a key head as one axis."""
    return jnp.reshape(x, (*x.shape[:-2], x.shape[-2] * x.shape[-1]))


def ungroup_queries(x: Float[Array, "*B Q"], group_size: int) -> Float[Array, "*B G t"]:
    """Returns them as two axes again."""
    return jnp.reshape(x, (*x.shape[:-1], group_size, x.shape[-1] // group_size))
