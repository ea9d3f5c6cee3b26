"""Exact attention at linear memory, on any platform: one pass over tiles, and one derivative rule.

For every row of tiles a ``SoftmaxState`` absorbs the tiles of keys that its mask leaves. No T x S
array exists at any time, in any derivative of any order.

**The rule.** For query i with weights p_ij = exp(s_ij - lse_i), the tangents are

    r_i = sum_j p_ij ds_ij        do_i = sum_j p_ij ds_ij v_j - r_i o_i + sum_j p_ij dv_j
    dlse_i = r_i

with ds the tangent of the score tile, taken by ``jax.jvp`` of the function that computes it. They
are sums over tiles (``attn.tile_sum``), a family that is closed under differentiation and
transposition: the transpose of the rule is the backward pass of FlashAttention (Dao et al., arXiv
2205.14135, algorithm 4; five matrix products a tile), and so on for every higher order.

**Sinks** are a key for every head, of which only the score is given: its value is 0. **Dropout**
multiplies p_ij in the output, not in lse, by z_ij / (1 - rate); whether z_ij is 0 or 1 is a hash
of the seed and of the indices of the pair, so every pass, tile and order sees the same.

Letters: ``*B`` leading axes, T queries, S keys, N query heads, K key heads, G = N / K query heads
that share a key head, H head width, V value width.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, UInt32

from attn import softmax_state
from attn.devices import vary, varying
from attn.masks import Mask
from attn.plan import Context, Inputs, Plan, axes_of, group_queries, plan, ungroup_queries
from attn.scores import Score
from attn.softmax_state import SoftmaxState
from attn.spread import Heads, Ring
from attn.tiles import QUERIES, Tile, TileSizes


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
    spread: Ring | Heads | None = None,
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
      dropout_seed: of ``attn.dropout.seed_of``; None is no dropout.
      dropout_rate: the probability that a weight is dropped.
      sides: the greatest of a tile; None is those of ``attn.tiles.tile_sizes``.
      spread: over which devices sequence or heads are, of which query, key and value are then a
        share, and bias its rows of all columns. Masks, scores and dropout are of the whole.

    Returns:
      Both in the dtype that all is computed in: float64 for float64 inputs, else float32.
    """
    call, context, params = plan(query, key, mask, score, dropout_seed, dropout_rate, sides, spread)
    return attend(call, context, params, query, key, value, bias, scale)


# Compiled here, so that a call outside of ``jit`` compiles its loops once, not every time.
@functools.partial(jax.jit, static_argnums=0)
def attend(
    call: Plan, context: Context, params: list[Array], query, key, value, bias, scale
) -> tuple[Array, Array]:
    """Returns output and log-sum-exp of a planned call."""
    inputs = call.arrange(params, query, key, value, bias, scale)
    output, lse = _attend(call, context, inputs)
    lse = call.restored(lse[..., None, :])[..., 0]
    return call.restored(jnp.swapaxes(output, -3, -2)), lse


class Outputs(NamedTuple):
    """What attention returns, or its tangent, arranged as ``Inputs`` are."""

    output: Any
    """``[*B, K, V, G, T]``."""
    lse: Any
    """``[*B, K, G, T]``."""


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attend(call: Plan, context: Context, inputs: Inputs) -> Outputs:
    """The primal: the state of every query absorbs all tiles of keys."""
    *batch, _, group_size, num_queries = inputs.query.shape
    width, dtype = inputs.value.shape[-2], inputs.query.dtype

    def start():
        queries = (*batch, group_size * call.grid.query_side)
        return softmax_state.empty(queries, width, dtype)

    def visit(tile: Tile, parts: Inputs, state):
        scores, values = call.scores(context, tile, parts)
        return softmax_state.absorb(state, scores, values, call.factors(context, tile, scores))

    def finish(state):
        return Outputs(*(ungroup_queries(x, group_size) for x in softmax_state.finish(state)))

    zeros = Outputs(
        jnp.zeros((*batch, width, group_size, num_queries), dtype),
        jnp.zeros((*batch, group_size, num_queries), dtype),
    )
    if call.ring is None or call.ring.is_gathered:
        return call.sweep(context, inputs, start, visit, finish, zeros)

    def of_device(device, keys, state):
        there = inputs._replace(key=keys[0], value=keys[1])
        found = call.sweep(context, there, start, visit, finish, zeros, device)
        return softmax_state.merge(state, _as_state(found)), ()

    queries = (*batch, group_size * num_queries)
    nothing = vary(softmax_state.empty(queries, width, dtype), varying(inputs, context))
    state, _ = call.ring.around(of_device, (inputs.key, inputs.value), nothing, ())
    return finish(state)


def _as_state(found: Outputs) -> SoftmaxState:
    """Returns what the queries know after the keys of one device."""
    lse = group_queries(found.lse)
    return SoftmaxState(lse, jnp.where(jnp.isneginf(lse), 0.0, 1.0), group_queries(found.output))


@functools.partial(_attend.defjvp, symbolic_zeros=True)
def _attend_jvp(call: Plan, primals, tangents):
    context, inputs = primals
    outputs = _attend(call, context, inputs)
    is_zero = lambda x: isinstance(x, SymbolicZero)  # noqa: E731
    moving = jax.tree.map(lambda x: None if is_zero(x) else x, tangents[1], is_leaf=is_zero)
    return outputs, _attend_tangent(call, context, inputs, outputs, moving)


def _attend_tangent(
    call: Plan, context: Context, inputs: Inputs, outputs: Outputs, moving: Inputs
) -> Outputs:
    """The rule: linear in ``moving``, the tangents of ``inputs``, None for what is at rest."""

    def function(tile: Tile, context: Context, operands):
        inputs, moving, lse = operands
        (scores, values), (d_scores, d_values) = _jvp_where(
            functools.partial(call.scores, context, tile), inputs, moving
        )
        weights = jnp.exp(scores - softmax_state.finite(group_queries(lse))[..., None])
        factors = call.factors(context, tile, scores)
        weighted = weights * d_scores
        mixed = softmax_state.mix(weighted, values, factors)
        if moving.value is not None:
            mixed += softmax_state.mix(weights, d_values, factors)
        summed = mixed, jnp.sum(weighted, axis=-1)
        return tuple(ungroup_queries(x, lse.shape[-2]) for x in summed)

    mixed, d_lse = call.sum(
        function,
        context,
        (inputs, moving, outputs.lse),
        (axes_of(inputs), axes_of(moving), QUERIES),
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
