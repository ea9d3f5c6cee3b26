"""The sums over tiles behind ``attn.diagnostics``: figures of a map that is never made.

A ``Map`` is what the tiles of an attention map are computed from, its log-sum-exps included; a
figure is a function of it. Nearly all are one ``tile_sum`` of a function of weights and distances.

Letters: ``*B`` leading axes, T queries, S keys, t and s the sides of a tile, N query heads, K key
heads, G = N / K query heads that share a key head, W positions asked about.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from attn import arguments, devices, softmax_state
from attn.blockwise import attend
from attn.dot_product import Options
from attn.indices import expand
from attn.plan import Context, Inputs, Plan, axes_of, plan, ungroup_queries
from attn.tiles import KEYS, NEITHER, QUERIES, Tile, TileSizes, pad

SIDES: TileSizes | None = None
"""The greatest sides of a tile; None is those of ``dot_product_attention``."""

BRANCHES = 8
"""How many times shorter a pass of ``distance_quantile`` makes the interval that it searches."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["context", "inputs", "lse"],
    meta_fields=["call", "offset"],
)
@dataclasses.dataclass(frozen=True)
class Map:
    """An attention map as what its tiles are computed from."""

    call: Plan
    offset: int
    context: Context
    inputs: Inputs
    lse: Float[Array, "*B K G T"]


class Part(NamedTuple):
    """A tile of a map."""

    logs: Float[Array, "*B K G t s"]
    """log p_ij, -inf where it is not allowed."""
    distances: Int[Array, "... t s"]
    """``i + offset - j``."""
    start: Int[Array, ""] | int
    """The first key."""

    @property
    def weights(self) -> Float[Array, "*B K G t s"]:
        return jnp.exp(self.logs)


def of_call(
    figure: Callable,
    settings: tuple,
    query: Array,
    key: Array,
    bias: Any,
    mask: Any,
    options: Options,
    average: bool = False,
    arrays: tuple = (),
) -> Any:
    """Returns ``figure(map, *settings, *arrays)``, of checked arguments, averaged if asked for."""
    query, key = arguments.arrays(query=query, key=key)
    resolved = arguments.resolve(query, key, bias, mask, **options)
    offset = key.shape[-3] - query.shape[-3] if options.get("alignment") == "end" else 0

    def measured(query, key, bias, mask, scale, score, arrays):
        call, context, params = plan(query, key, mask, score, None, 0.0, SIDES)
        scored = (context, params, bias, scale)
        return evaluated(figure, settings, offset, bool(average), call, query, key, scored, arrays)

    every = query, key, *resolved[:4], arrays
    every = devices.vary(every, devices.varying(every))
    return devices.automatic(measured, query, query.ndim - 3, *every)


# Compiled here, so that a call outside of ``jit`` compiles its loops once, not every time.
@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def evaluated(figure, settings, offset, average, call, query, key, scored, arrays):
    """Returns the figure of a planned call."""
    context, params, bias, scale = scored
    zeros = jnp.zeros((*key.shape[:-1], 1), key.dtype)
    _, lse = attend(call, context, params, query, key, zeros, bias, scale)
    inputs = call.arrange(params, query, key, None, bias, scale)
    lse = call.grouped(jnp.swapaxes(lse, -1, -2)[..., None, :])[..., 0, :]
    found = Map(call, offset, context, inputs, pad(call.grid, lse, QUERIES))
    result = figure(found, *settings, *arrays)
    if not average:
        return result
    attends = ~jnp.isneginf(call.restored(found.lse[..., None, :])[..., 0])
    axis = len(call.batch)

    def mean(x):
        seen = jnp.reshape(attends, attends.shape + (1,) * (x.ndim - attends.ndim))
        total = jnp.sum(jnp.where(seen, x, 0).astype(lse.dtype), axis)
        return total / jnp.maximum(jnp.sum(seen, axis), 1)

    return jax.tree.map(mean, result)


def over_tiles(found: Map, function: Callable, arrays: Any, in_axes: Any, out_axes: Any) -> Any:
    """Returns the sum over tiles of ``function(part, arrays at it)``."""
    call = found.call

    def of_tile(tile: Tile, context: Context, operands):
        inputs, lse, arrays = operands
        scores, _ = call.scores(context, tile, inputs)
        scores = jnp.reshape(scores, (*lse.shape, scores.shape[-1]))
        # Scores of -inf stay out of every sum and derivative, those of a bias of -inf too.
        seen = ~jnp.isneginf(scores)
        logs = jnp.where(seen, scores - softmax_state.finite(lse)[..., None], -jnp.inf)
        indices = call.indices(tile.i, tile.j)
        distances = expand(indices.query + found.offset - indices.key, logs.ndim)
        return function(Part(logs, distances, tile.j * call.grid.key_side), arrays)

    return call.sum(
        of_tile,
        found.context,
        (found.inputs, found.lse, arrays),
        (axes_of(found.inputs), QUERIES, in_axes),
        out_axes,
    )


def of_queries(
    found: Map, function: Callable, arrays: Any = (), in_axes: Any = ()
) -> Float[Array, "*B T N"]:
    """Returns the sum of ``function(part, arrays)``, ``[*B, K, G, t]``, for every query."""
    summed = over_tiles(found, function, arrays, in_axes, QUERIES)
    return found.call.restored(summed[..., None, :])[..., 0]


def entropy(found: Map) -> Float[Array, "*B T N"]:
    """Returns ``-sum_j p_ij log p_ij``."""

    def function(part, _):
        logs = jnp.where(jnp.isneginf(part.logs), 0, part.logs)
        return jnp.sum(part.weights * -logs, axis=-1)

    return of_queries(found, function)


def expected_distance(found: Map, signed: bool = False) -> Float[Array, "*B T N"]:
    """Returns ``sum_j p_ij |i + offset - j|``, or with its sign."""

    def function(part, _):
        distances = part.distances if signed else jnp.abs(part.distances)
        return jnp.sum(part.weights * distances.astype(part.logs.dtype), axis=-1)

    return of_queries(found, function)


def mass_by_distance(found: Map, signed: bool, edges: Array) -> Float[Array, "*B T N W"]:
    """Returns the weight in every bin between two edges."""

    def function(part, edges):
        distances = part.distances if signed else jnp.abs(part.distances)
        distances = jnp.reshape(distances, (*distances.shape[-2:], 1))
        edges = expand(edges, 3)
        bins = (edges[..., :-1] <= distances) & (distances < edges[..., 1:])
        # A product, since masked sums, one for each bin, were each as large as all weights.
        highest = lax.Precision.HIGHEST
        bins = bins.astype(part.logs.dtype)
        return jnp.einsum("...ts,tsw->...wt", part.weights, bins, precision=highest)

    return found.call.restored(over_tiles(found, function, edges, NEITHER, QUERIES))


def distance_quantile(found: Map, fraction: Array) -> Int[Array, "*B T N"]:
    """Returns the least distance within which that fraction of the weight is."""
    found, grid = lax.stop_gradient(found), found.call.grid
    ends = (found.offset - grid.num_keys + 1, found.offset + grid.num_queries - 1)
    is_known = all(isinstance(end, int) for end in ends)
    width = max(map(abs, ends)) + 1 if is_known else 2**31

    steps = []
    while width > 1:
        width = math.ceil(width / BRANCHES)
        steps.append(width)

    def function(part, arrays):
        low, step = arrays
        weights, distances = part.weights, jnp.abs(part.distances)

        def within(n):
            # The whole weight too, summed as its parts are: so at a fraction of 1 it is reached.
            is_in = (distances <= (low + n * step)[..., None]) | (n == BRANCHES)
            return jnp.sum(jnp.where(is_in, weights, 0), axis=-1)

        masses = lax.map(within, jnp.arange(1, BRANCHES + 1, dtype=jnp.int32))
        return jnp.moveaxis(masses, 0, -2)

    def narrow(low, step):
        """The result is in ``(low, low + step BRANCHES]``, then in ``(low, low + step]``."""
        masses = over_tiles(found, function, (low, step), (QUERIES, NEITHER), QUERIES)
        is_short = masses[..., :-1, :] < share * masses[..., -1:, :]
        return low + step * jnp.sum(is_short, axis=-2, dtype=jnp.int32), None

    dtype = found.lse.dtype
    share = fraction.astype(dtype) * (1 - 8 * jnp.finfo(dtype).eps)
    low = jnp.full(found.lse.shape, -1, jnp.int32)
    low = devices.vary(low, devices.varying(found))
    low, _ = lax.scan(narrow, low, jnp.asarray(steps, jnp.int32))
    quantile = jnp.where(jnp.isneginf(found.lse), -1, low + 1)
    return found.call.restored(quantile[..., None, :])[..., 0]


def mass_on(found: Map, positions: Int[Array, "*B T W"]) -> Float[Array, "*B T N"]:
    """Returns the weight on positions; negative ones are none."""
    positions = jnp.swapaxes(positions, -1, -2)[..., None, None, :, :]
    positions = pad(found.call.grid, positions, QUERIES)
    return of_queries(
        found, lambda part, at: jnp.sum(weights_at(part, at), axis=-2), positions, QUERIES
    )


def weights_at(part: Part, positions: Int[Array, "*B K G W t"]) -> Float[Array, "*B K G W t"]:
    """Returns the weights of the keys at these indices, 0 for those that are not of this tile."""
    within = jnp.swapaxes(positions, -1, -2) - part.start
    is_here = (within >= 0) & (within < part.logs.shape[-1])
    logs = jnp.take_along_axis(part.logs, jnp.where(is_here, within, 0), axis=-1)
    return jnp.swapaxes(jnp.where(is_here, jnp.exp(logs), 0), -1, -2)


def largest_weight(found: Map) -> Float[Array, "*B T N"]:
    """Returns ``max_j p_ij``."""
    return top_keys(found, 1)[1][..., 0]


def top_keys(found: Map, k: int) -> tuple[Int[Array, "*B T N k"], Float[Array, "*B T N k"]]:
    """Returns the indices and weights of the k keys of greatest weight."""
    indices, weights = ranked(lax.stop_gradient(found), k)
    weights = as_found(found, indices, weights)
    return found.call.restored(indices), found.call.restored(weights)


def ranked(found: Map, k: int) -> tuple[Int[Array, "*B K G k T"], Float[Array, "*B K G k T"]]:
    """Returns the indices and weights of the k greatest scores, by merging those of tiles."""
    call, grid = found.call, found.call.grid
    *batch, group_size, num_queries = found.lse.shape
    dtype, nobody = found.lse.dtype, jnp.asarray(grid.num_keys, jnp.int32)

    def start():
        shape = (*batch, group_size * grid.query_side, k)
        return jnp.full(shape, -jnp.inf, dtype), jnp.full(shape, nobody)

    def visit(tile: Tile, parts: Inputs, best):
        scores, _ = call.scores(found.context, tile, parts)
        scores, at = lax.top_k(scores, min(k, grid.key_side))
        at = at + tile.j * grid.key_side
        at = jnp.where(jnp.isneginf(scores), nobody, at).astype(jnp.int32)
        # By score, then by index, since tiles do not come in the order of their keys.
        scores, at = (
            jnp.concatenate(pair, axis=-1) for pair in zip(best, (scores, at), strict=True)
        )
        descending, at = lax.sort((-scores, at), num_keys=2)
        return -descending[..., :k], at[..., :k]

    def finish(best):
        return tuple(ungroup_queries(jnp.swapaxes(x, -1, -2), group_size) for x in best)

    shape = (*batch, k, group_size, num_queries)
    zeros = jnp.zeros(shape, dtype), jnp.zeros(shape, jnp.int32)
    ranked = call.sweep(found.context, found.inputs, start, visit, finish, zeros)
    scores, indices = (jnp.swapaxes(x, -2, -3) for x in ranked)
    weights = jnp.exp(scores - softmax_state.finite(found.lse)[..., None, :])
    return jnp.where(jnp.isneginf(scores), -1, indices), weights


@jax.custom_jvp
def as_found(
    found: Map, indices: Int[Array, "*B K G k T"], weights: Float[Array, "*B K G k T"]
) -> Float[Array, "*B K G k T"]:
    """Returns ``weights``, those at ``indices``, with their derivatives."""
    del found, indices
    return weights


@as_found.defjvp
def as_found_jvp(primals, tangents):
    """The tangents of weights are those of the map at the keys found."""
    found, indices, _ = primals

    def at_indices(found):
        return over_tiles(found, weights_at, indices, QUERIES, QUERIES)

    # Not ``weights``: the rule is differentiated too, and they have no derivatives of their own.
    return as_found(*primals), jax.jvp(at_indices, (found,), (tangents[0],))[1]


def column_sums(found: Map) -> Float[Array, "*B S N"]:
    """Returns ``sum_i p_ij``."""
    call = found.call
    summed = over_tiles(found, lambda part, _: jnp.sum(part.weights, axis=-2), (), (), KEYS)
    summed = jnp.reshape(summed, (*call.batch, call.num_heads, summed.shape[-1]))
    return jnp.swapaxes(summed[..., : call.grid.num_keys], -1, -2)


def summary(found: Map) -> dict[str, Float[Array, "*B T N"]]:
    """Returns the figures that need no argument, by name."""
    return {
        "entropy": entropy(found),
        "expected_distance": expected_distance(found),
        "largest_weight": largest_weight(found),
    }
