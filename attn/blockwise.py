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

from attn import kernels, softmax_state
from attn.devices import vary, varying
from attn.kernels.cudnn import Asked
from attn.masks import Mask
from attn.overrides import Kernel, Opaque, Pull, Refused, options_of
from attn.plan import Context, Inputs, Plan, axes_of, group_queries, plan, ungroup_queries
from attn.scores import Score
from attn.spread import Heads, Ring
from attn.target import target
from attn.tiles import QUERIES, Tile, TileSizes

LSE = "the log-sum-exp"
"""As it is said where it is asked for."""


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
    named: str | None = "blockwise",
    beside: tuple[str, ...] = (LSE,),
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
      named: whose kernels run the two passes of first order, or the call fails; None is where
        the platform has some (``attn.overrides``), and they can take the call.
      beside: what is asked for beside the output at the usual scale, in words.

    Returns:
      Both in the dtype that all is computed in: float64 for float64 inputs, else float32.
    """
    dropped = dropout_seed, dropout_rate
    more = ("dropout", dropout_seed is not None), ("a sequence that is spread", spread is not None)
    beside = *beside, *(name for name, is_asked in more if is_asked)
    band = kernels.band_of(Asked(query, key, value, bias, mask, score, beside), named)
    how = kernels.of_tiles(named) if band is None else None

    def planned(sides, mask, score):
        return plan(query, key, mask, score, *dropped, sides, spread, named, band)

    found = None
    if how is not None:
        arrays = query, key, value, bias
        try:
            found, _ = kernels.planned(planned, sides, mask, score, arrays, scale, **how)
        except Refused:  # What runs then, loops, has tiles of its own; what is named says why not.
            if named is not None and how["interpret"]:
                raise
            if named is not None and sides is None:
                sides = kernels.tiles_of(how["kernels"], query, value)
    call, context, params = planned(sides, mask, score) if found is None else found
    return attend(call, context, params, query, key, value, bias, scale)


# Compiled here, so that a call outside of ``jit`` compiles its loops once, not every time.
@functools.partial(jax.jit, static_argnums=0)
def attend(
    call: Plan, context: Context, params: list[Array], query, key, value, bias, scale
) -> tuple[Array, Array]:
    """Returns output and log-sum-exp of a planned call."""
    inputs = call.arrange(params, query, key, value, bias, scale)
    if call.named == "fused":
        # What the hardware has no room for is known when its program is compiled.
        here = options_of(target().platform, call.named)
        of_hardware = "tpu" if here is None else here["kernels"]
        kernels.check(call, context, inputs, kernels=of_hardware, interpret=True)
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
    """The primal; a kernel may run in its place."""
    leaves, tree = jax.tree.flatten((context, inputs))

    def definition(*leaves):
        return list(_absorb_all(call, *jax.tree.unflatten(tree, leaves)))

    def by_kernels(*leaves, **platform):
        output, lse = kernels.attend(call, *jax.tree.unflatten(tree, leaves), **platform)
        # XLA drops the definition where nothing needs the log-sum-exp.
        return [output, definition(*leaves)[1] if lse is None else lse]

    kernel = None if call.named == "blockwise" else Kernel(by_kernels, call.named)
    return Outputs(*Opaque(definition, tuple(_results(inputs)), kernel)(*leaves))


def _results(inputs: Inputs) -> Outputs:
    """Returns the shapes and dtype of what these inputs give."""
    *lanes, _, group_size, num_queries = inputs.query.shape
    width, dtype = inputs.value.shape[-2], inputs.query.dtype
    return Outputs(
        jax.ShapeDtypeStruct((*lanes, width, group_size, num_queries), dtype),
        jax.ShapeDtypeStruct((*lanes, group_size, num_queries), dtype),
    )


def _absorb_all(call: Plan, context: Context, inputs: Inputs) -> Outputs:
    """The state of every query absorbs all tiles of keys."""
    *batch, _, group_size, num_queries = inputs.query.shape
    width, dtype = inputs.value.shape[-2], inputs.query.dtype

    def start():
        queries = (*batch, group_size * call.grid.query_side)
        return softmax_state.empty(queries, width, dtype)

    def visit(tile: Tile, parts: Inputs, state):
        scores, values = call.scores(context, tile, parts)
        return softmax_state.absorb(state, scores, values, call.factors(context, tile, scores))

    def ungrouped(state):
        return jax.tree.map(lambda x: ungroup_queries(x, group_size), state)

    def finish(state):
        return Outputs(*ungrouped(softmax_state.finish(state)))

    ring = call.keys_ring
    if ring is None:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), _results(inputs))
        return call.sweep(context, inputs, start, visit, finish, zeros)

    queries = (*batch, group_size * num_queries)
    nothing = vary(softmax_state.empty(queries, width, dtype), varying(inputs, context))

    def of_device(device, keys, state):
        there = inputs._replace(key=keys[0], value=keys[1])
        found = call.sweep(context, there, start, visit, ungrouped, ungrouped(nothing), device)
        return softmax_state.merge(state, jax.tree.map(group_queries, found)), ()

    state, _ = ring.around(of_device, (inputs.key, inputs.value), nothing, ())
    return finish(state)


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
        total = jnp.sum(weighted, axis=-1)
        return tuple(ungroup_queries(x, lse.shape[-2]) for x in (mixed, total, total))

    def pull(operands, cotangents, **platform):
        context, (inputs, _, lse) = operands
        given = [*cotangents, None, None][:3]
        return kernels.pull(call, context, inputs, lse, given, **platform)

    of_kernels = Pull(pull, lambda operands: operands[1][1], call.named)
    # r twice: so the backward pass is given apart what is of the output, and what of lse.
    mixed, of_output, d_lse = call.sum(
        function,
        context,
        (inputs, moving, outputs.lse),
        (axes_of(inputs), axes_of(moving), QUERIES),
        (QUERIES, QUERIES, QUERIES),
        pull=None if call.named == "blockwise" else of_kernels,
    )
    return Outputs(mixed - outputs.output * of_output[..., None, :, :], d_lse)


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
