"""The forward pass: queries stay, keys and values come.

    o += e^(s - m) v

as ``attn.kernels.tpu.forward``, queries first.

Letters: ``*B`` leading axes, K key heads, G query heads that share one, T queries, V value width.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attn.kernels import call as calls
from attn.kernels.call import Call
from attn.kernels.gpu.arrays import arrays_of, known_of, result_dtype
from attn.kernels.gpu.launch import Splitting
from attn.kernels.gpu.parts import parts_of
from attn.kernels.gpu.tile import (
    Tile,
    across,
    allowed_in,
    exp,
    factors_of,
    known_in,
    laid_out,
    scores_of,
    spoiled,
)
from attn.kernels.gpu.walk import num_splits_of, walks_of
from attn.kernels.values import QUERY
from attn.plan import Context, Inputs
from attn.softmax_state import finish as finish_state
from attn.softmax_state import finite, merge_all, of_results
from attn.tiles import Share


def forward(
    call: Call, context: Context, inputs: Inputs, shares: tuple[Share, Share]
) -> tuple[Float[Array, "*B K V G T"], Float[Array, "*B K G T"]]:
    """Returns output and log-sum-exp of the queries and keys at hand, which ``shares`` are.

    Cost: two matrix products a tile, each of them three or six in float32
    (``attn.kernels.gpu.parts``); no memory but that of the results, of copies of the arrays, of
    lists of tiles, and for a bias of distances of 128 (T + S) numbers a head. Few queries of many
    keys take a result for each split of these.
    """
    walk = walks_of(call)["forward"]
    (query, key, value), (bad_query, bad_key) = arrays_of(call, inputs)
    given = calls.of_pairs(call, calls.operands_of(context, inputs), shares)
    query, key, value = (parts_of(call, x) for x in (query, key, value))
    _, width = call.widths
    dtype = result_dtype(call)

    def start():
        return walk.zeros(value=-jnp.inf), walk.zeros(), walk.zeros(value[0].shape[-1])

    def absorb(tile: Tile, sums):
        maximum, denominator, numerator = sums
        known = known_in(tile, 2)
        (products,), allowed = tile.products((0, 0), meanwhile=lambda: allowed_in(tile, known))
        products = tile.unless_clean(functools.partial(spoiled, tile, (0, 1)), products)
        scores = laid_out(call, scores_of(call, known, products, allowed))
        greatest = jnp.maximum(maximum, jnp.max(scores, axis=1))
        base = finite(greatest)
        weights, correction = exp(call, scores, base), exp(call, maximum, base)
        numerator *= across(correction, numerator)
        denominator = correction * denominator + jnp.sum(weights, axis=1)
        kept = factors_of(call, known, scores) * weights
        tile.take_turns()
        return greatest, denominator, tile.mixed(numerator, kept, 1)

    def finish(written, at_rows, sums):
        maximum, denominator, numerator = sums
        seen = denominator != 0
        total = jnp.where(seen, denominator, 1.0)
        at_rows(written[0])[...] = (numerator / across(total, numerator)).astype(written[0].dtype)
        at_rows(written[1])[...] = jnp.where(seen, maximum + jnp.log(total), -jnp.inf)
        return sums

    def number(lanes):
        return num_splits_of(call, lanes, *(share.count for share in shares))

    def merged(of_splits):
        output, lse = of_splits
        output, lse = finish_state(merge_all(of_results(jnp.swapaxes(output, -1, -2), lse)))
        return [jnp.swapaxes(output, -1, -2).astype(dtype), lse]

    queries = query[0].shape[:-1]
    outs = [jax.ShapeDtypeStruct((*queries, value[0].shape[-1]), dtype)]
    outs += [jax.ShapeDtypeStruct(queries, call.dtype)]
    known = [bad_query, bad_key, *known_of(call, given, QUERY)]
    output, lse = walk.run(
        "attention",
        context,
        shares,
        (jnp.isnan(bad_query), jnp.isnan(bad_key)),
        [query],
        [key, value],
        known,
        start,
        absorb,
        finish,
        outs,
        splitting=Splitting(number, merged, call.dtype),
    )
    output = jnp.swapaxes(output[..., :width].astype(call.dtype), -1, -2)
    output, lse = (calls.of_groups(call.plan, x) for x in (output, lse[..., None, :]))
    return jnp.swapaxes(output, -3, -2), lse[..., 0, :]
