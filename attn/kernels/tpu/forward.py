"""The forward pass as a kernel: the state of a row of queries absorbs one tile of keys a step.

    s = f(k q^T)      m, l, a absorb exp(s) and v      o = a / l      lse = m + log l

as ``attn.softmax_state`` does, but with keys first. Dao et al., arXiv 2205.14135, algorithm 1; Dao,
arXiv 2307.08691.

Letters: ``*B`` leading axes, K key heads, G query heads that share one, T queries, V value width.
"""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float

from attn.kernels import call as calls
from attn.kernels.call import Call
from attn.kernels.tpu import grid
from attn.kernels.tpu import tile as tiles
from attn.kernels.tpu.grid import Block
from attn.kernels.tpu.operations import OPERATIONS
from attn.kernels.values import NEITHER, QUERY
from attn.plan import Context, Inputs
from attn.softmax_state import finite
from attn.tiles import Share


def forward(
    call: Call, context: Context, inputs: Inputs, shares: tuple[Share, Share]
) -> tuple[Float[Array, "*B K V G T"], Float[Array, "*B K G T"]]:
    """Returns output and log-sum-exp of the queries and keys at hand, which ``shares`` are.

    Cost: two matrix products a tile; no memory but that of the results.
    """
    arrays = calls.arrays_of(call, inputs, tiles.held_dtype(call))
    given = calls.of_pairs(call, calls.operands_of(context, inputs), shares)
    side, width = call.plan.grid.query_side, arrays[2].shape[-1]
    *lanes, num_queries, _ = arrays[0].shape

    def absorb(refs, outputs, state, *, member, distance, is_full):
        del outputs, member, distance
        maximum, denominator, numerator = state
        tile = tiles.read(call, refs)
        allowed = tiles.allowed_in(call, tile, is_full=is_full)
        of_products = functools.partial(tiles.scores_of, call, tile, allowed=allowed)
        scores = OPERATIONS.done(of_products, tile.products)
        greatest = jnp.maximum(maximum[...], jnp.max(scores, axis=0, keepdims=True))
        weights = jnp.exp(scores - finite(greatest))
        correction = jnp.exp(maximum[...] - finite(greatest))
        kept = tiles.kept_of(call, tile, scores, weights)
        values = tiles.of_those_asked(tile.value, allowed, 0)
        mixed = tiles.dot(values, kept.astype(values.dtype), (0, 0))
        total = jnp.sum(weights, axis=0, keepdims=True)
        maximum[...] = greatest
        denominator[...] = correction * denominator[...] + total
        numerator[...] = correction * numerator[...] + mixed

    def finish(outputs, state, *, member):
        del member
        (output, lse), (maximum, denominator, numerator) = outputs, state
        seen = denominator[...] != 0
        total = jnp.where(seen, denominator[...], 1)
        output[...] = numerator[...] / total
        lse[...] = jnp.where(seen, maximum[...] + jnp.log(total), -jnp.inf)

    output, lse = grid.run(
        call,
        "attention",
        absorb,
        finish,
        QUERY,
        context,
        shares,
        (*arrays, *given),
        inputs=[*grid.arrays_blocks(*arrays), *grid.pairs_blocks(call, given)],
        outputs=[
            Block((*lanes, width, num_queries), (NEITHER, QUERY)),
            Block((*lanes, 1, num_queries), (NEITHER, QUERY)),
        ],
        sums=[(1, side), (1, side), (width, side)],
        starts=[-jnp.inf],
    )
    output, lse = (calls.of_groups(call.plan, x) for x in (output, lse))
    return jnp.swapaxes(output, -3, -2), lse[..., 0, :]
