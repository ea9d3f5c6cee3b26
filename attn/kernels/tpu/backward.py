"""The backward pass as two kernels: along rows for queries, along columns for keys and values.

    p = exp(s - lse)       ds = p (z v do^T + r)
    dq += f'(ds)^T k       dk += f'(ds) q       dv += p z do

with r the cotangent of lse less ``do . o``, as in ``attn.blockwise``, and f' the transpose of the
derivative of the function of pairs, by ``jax.vjp`` inside of the kernel: so bias and parameters of
a score function have their gradients from the same pass, in the form that the pairs take them in,
and outside of it the transpose of ``of_pairs`` leads back to what they were given as.

Dao et al., arXiv 2205.14135, algorithm 4; Dao, arXiv 2307.08691.

Letters: ``*B`` leading axes, N query heads, K key heads, G = N / K, T queries, S keys, H and V head
widths, t and s the sides of a tile.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float

from attn.closures import is_float
from attn.kernels import call as calls
from attn.kernels.call import Call
from attn.kernels.tpu import grid
from attn.kernels.tpu import tile as tiles
from attn.kernels.tpu.grid import Block
from attn.kernels.tpu.operations import OPERATIONS
from attn.kernels.values import KEY, NEITHER, QUERY, Value
from attn.plan import Context, Inputs
from attn.softmax_state import finite
from attn.tiles import Share


def backward(
    call: Call,
    context: Context,
    inputs: Inputs,
    lse: Float[Array, "*B K G T"],
    d_output: Float[Array, "*B K V G T"],
    d_lse: Float[Array, "*B K G T"],
    shares: tuple[Share, Share],
) -> Inputs:
    """Returns the cotangents of the inputs, arranged as they are, from the tiles at hand.

    Cost: seven matrix products a tile; no memory but that of the results.

    Args:
      call: of which it is a pass.
      context: of the call.
      inputs: of the call.
      lse: what the forward pass returned.
      d_output: the cotangent of the output.
      d_lse: that of the log-sum-exp, less ``d_output . output``.
      shares: the tiles of queries and of keys at hand.
    """
    plan, held = call.plan, tiles.held_dtype(call)
    query, key, value = calls.arrays_of(call, inputs, held)
    given, transposed = calls.moving_of_pairs(call, context, inputs, shares)
    cotangents = calls.of_heads(plan, jnp.moveaxis(d_output, -3, -1)).astype(held)
    rows = [calls.of_heads(plan, x[..., None, :]) for x in (finite(lse), d_lse)]
    arrays = _Arrays(query, key, value, given, cotangents, *rows)
    d_query, of_queries = _along_rows(call, context, shares, arrays)
    d_key, d_value, of_keys = _along_columns(call, context, shares, arrays)
    d_bias, d_scale, d_params = transposed(of_queries | of_keys)
    return Inputs(
        query=jnp.swapaxes(calls.of_groups(plan, d_query), -3, -2),
        key=jnp.swapaxes(d_key, -1, -2),
        value=jnp.swapaxes(d_value, -1, -2),
        bias=d_bias,
        scale=d_scale,
        params=d_params,
    )


class _Arrays(NamedTuple):
    """What both kernels read."""

    query: Float[Array, "*B N T H"]
    key: Float[Array, "*B K S H"]
    value: Float[Array, "*B K S V"]
    given: list[Array]
    """What the pairs take from outside."""
    d_output: Float[Array, "*B N T V"]
    lse: Float[Array, "*B N 1 T"]
    d_lse: Float[Array, "*B N 1 T"]

    def blocks(self, call: Call) -> list[Block]:
        """Returns how they are cut."""
        return [
            *grid.arrays_blocks(self.query, self.key, self.value),
            *grid.pairs_blocks(call, self.given),
            Block(self.d_output.shape, (QUERY, NEITHER)),
            Block(self.lse.shape, (NEITHER, QUERY)),
            Block(self.d_lse.shape, (NEITHER, QUERY)),
        ]


class _Gradients(NamedTuple):
    """What both kernels compute of a tile."""

    tile: tiles.Tile
    allowed: Bool[Array, "s t"] | None
    weights: Float[Array, "s t"]
    """p z."""
    d_output: Float[Array, "t V"]
    d_products: Float[Array, "s t"]
    """The cotangent of ``k q^T``."""
    d_given: dict[Value, Array]


def _gradients(call: Call, refs: Sequence[Any], *, is_full: bool) -> _Gradients:
    *refs, d_output, lse, d_lse = refs
    tile = tiles.read(call, refs)
    allowed = tiles.allowed_in(call, tile, is_full=is_full)
    products = tile.products
    if allowed is not None:
        products = jnp.where(allowed, products, 0)
    moving = [x for x in tile.given if is_float(x)]

    def scores_of(products, some):
        moved = tile._replace(given=tile.given | dict(zip(moving, some, strict=True)))
        return tiles.scores_of(call, moved, products, allowed)

    some = [tile.given[x] for x in moving]
    scores, pull = OPERATIONS.done(lambda *x: jax.vjp(scores_of, *x), products, some)
    weights = jnp.exp(scores - lse[...])
    mixed = tiles.dot(tiles.of_those_asked(tile.value, allowed, 0), d_output[...], (1, 1))
    d_scores = weights * (tiles.kept_of(call, tile, scores, mixed) + d_lse[...])
    if allowed is not None:
        d_scores = jnp.where(allowed, d_scores, 0)
    d_products, d_moving = OPERATIONS.done(pull, d_scores)
    kept = tiles.kept_of(call, tile, scores, weights)
    d_given = dict(zip(moving, d_moving, strict=True))
    return _Gradients(tile, allowed, kept, d_output[...], d_products, d_given)


def _along_rows(
    call: Call, context: Context, shares: tuple[Share, Share], arrays: _Arrays
) -> tuple[Float[Array, "*B N H T"], dict[Value, Array]]:
    """Returns the cotangent of the query, and of what the pairs take but from keys."""
    *lanes, num_queries, width = arrays.query.shape
    side, blocks = call.plan.grid.query_side, arrays.blocks(call)
    moving = [x for x in call.pairs.inputs if is_float(x) and x.depends != KEY]
    cuts, diagonals = [x for x in moving if x.is_cut], [x for x in moving if x.is_diagonal]
    rows = [x for x in moving if not (x.is_cut or x.is_diagonal)]
    of_rows = [
        Block((*lanes, width, num_queries), (NEITHER, QUERY)),
        *[Block((*lanes, 1, num_queries), (NEITHER, QUERY))] * len(rows),
    ]
    of_cuts = [Block((*lanes, num_queries, arrays.key.shape[-2]), (QUERY, KEY))] * len(cuts)
    length = side + call.plan.grid.key_side
    every = Block((*lanes, call.pairs.distances.count, length), (NEITHER, NEITHER))
    first = len(of_rows) + len(of_cuts)

    def add(refs, outputs, sums, *, member, distance, is_full):
        del member
        found = _gradients(call, refs[: len(blocks)], is_full=is_full)
        keys = tiles.of_those_asked(found.tile.key, found.allowed, 0)
        sums[0][...] += tiles.dot(keys, found.d_products.astype(keys.dtype), (0, 0))
        for x, of in zip(sums[1:], rows, strict=True):
            x[...] += found.d_given[of].astype(call.dtype)
        for x, of in zip(outputs[len(of_rows) : first], cuts, strict=True):
            x[...] = found.d_given[of].astype(call.dtype).T
        for x, of in zip(outputs[first:], diagonals, strict=True):
            x[pl.ds(distance, 1), :] += tiles.onto_diagonals(found.d_given[of].astype(call.dtype))

    def finish(outputs, sums, *, member):
        del member
        for x, total in zip(outputs[: len(of_rows)], sums, strict=True):
            x[...] = total[...]

    # Tiles that are not visited keep the 0 that they were.
    zeros = [jnp.zeros(x.shape, call.dtype) for x in of_cuts]
    d_query, *d_given = grid.run(
        call,
        "attention_backward_queries",
        add,
        finish,
        QUERY,
        context,
        shares,
        (*jax.tree.leaves(arrays), *zeros),
        inputs=[*blocks, *of_cuts],
        outputs=[*of_rows, *of_cuts, *[every] * len(diagonals)],
        sums=[(width, side), *[(1, side)] * len(rows)],
        aliases={len(blocks) + n: len(of_rows) + n for n in range(len(of_cuts))},
        totals=range(first, first + len(diagonals)),
    )
    d_given[first - 1 :] = [jnp.reshape(x, (*lanes, 1, -1)) for x in d_given[first - 1 :]]
    return d_query, dict(zip([*rows, *cuts, *diagonals], d_given, strict=True))


def _along_columns(
    call: Call, context: Context, shares: tuple[Share, Share], arrays: _Arrays
) -> tuple[Float[Array, "*B K S H"], Float[Array, "*B K S V"], dict[Value, Array]]:
    """Returns the cotangents of key and value, and of what the pairs take from keys."""
    key, value = arrays.key, arrays.value
    side, blocks = call.plan.grid.key_side, arrays.blocks(call)
    columns = [x for x in call.pairs.inputs if is_float(x) and x.depends == KEY]
    of_heads = Block((*arrays.query.shape[:-2], 1, key.shape[-2]), (NEITHER, KEY))

    def add(refs, outputs, sums, *, member, distance, is_full):
        del outputs, distance
        found = _gradients(call, refs, is_full=is_full)
        queries = tiles.of_those_asked(found.tile.query, found.allowed, 1)
        sums[0][...] += tiles.dot(found.d_products.astype(queries.dtype), queries, (1, 0))
        weights = found.weights.astype(found.d_output.dtype)
        sums[1][...] += tiles.dot(weights, found.d_output, (1, 0))
        for x, of in zip(sums[2:], columns, strict=True):
            x[member] += found.d_given[of].astype(call.dtype).T

    def finish(outputs, sums, *, member):
        # Once for each head: what is of the key alone is whole after the last of them.
        for x, total in zip(outputs[:2], sums[:2], strict=True):
            x[...] = total[...]
        for x, total in zip(outputs[2:], sums[2:], strict=True):
            x[...] = total[member]

    d_key, d_value, *d_given = grid.run(
        call,
        "attention_backward_keys",
        add,
        finish,
        KEY,
        context,
        shares,
        jax.tree.leaves(arrays),
        inputs=blocks,
        outputs=[*grid.arrays_blocks(*arrays[:3])[1:], *[of_heads] * len(columns)],
        sums=[
            (side, key.shape[-1]),
            (side, value.shape[-1]),
            *[(call.group_size, 1, side)] * len(columns),
        ],
    )
    return d_key, d_value, dict(zip(columns, d_given, strict=True))
