"""The backward pass, by a walk for queries, one for keys, and one for biases of distances.

    queries   dq += f'(ds) k         queries and do stay, keys and values come
    keys      dk += f'(ds)^T q       keys and values stay, queries and do come
              dv += (p z)^T do
    distances db += f'(ds)           all come, tiles at one distance

with the rule of ``attn.kernels.tpu.backward``.

Letters: ``*B`` leading axes, N query heads, K key heads, G = N / K, T queries, S keys, H and V head
widths; r and c the sides of what is seen at once, that which stays first.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from attn.closures import is_float
from attn.devices import vary, varying
from attn.kernels import call as calls
from attn.kernels.call import MASKED_SCORES, SCORES, Call
from attn.kernels.gpu.arrays import (
    arrays_of,
    diagonals_of,
    known_of,
    padded,
    result_dtype,
    table_of,
)
from attn.kernels.gpu.launch import TILED
from attn.kernels.gpu.operations import OPERATIONS
from attn.kernels.gpu.parts import parts_of
from attn.kernels.gpu.tile import (
    Tile,
    allowed_in,
    exp,
    factors_of,
    known_in,
    laid_out,
    spoiled,
)
from attn.kernels.gpu.walk import Walk, walks_of
from attn.kernels.values import KEY, QUERY, Value
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
    """Returns the cotangents of the inputs; see ``attn.kernels.tpu.backward``.

    Cost: seven matrix products a tile, nine for heads wider than 128, two more for the gradient of
    a bias of distances, each of them three or six in float32 (``attn.kernels.gpu.parts``); no
    memory but that of the results and of copies of the arrays, of lists of tiles, and for such a
    bias of 128 (T + S) numbers a head.
    """
    plan = call.plan
    given, transposed = calls.moving_of_pairs(call, context, inputs, shares)
    (query, key, value), bad = arrays_of(call, inputs)
    # Of a loss that is a sum, XLA would else look through a constant number by number.
    d_output = lax.optimization_barrier(d_output)
    cotangents = calls.of_heads(plan, jnp.moveaxis(d_output, -3, -1)).astype(plan.dtype)
    rows = [calls.of_heads(plan, x[..., None, :])[..., 0, :] for x in (finite(lse), d_lse)]
    is_bad = ~(jnp.all(jnp.isfinite(cotangents), axis=-1) & jnp.isfinite(rows[1]))
    vectors = [*bad, jnp.where(is_bad, jnp.nan, 0).astype(call.dtype), *rows]
    arrays = (parts_of(call, x) for x in (query, key, value, padded(cotangents)))
    every = _Backward(call, context, shares, vectors, *arrays)
    d_query, of_rows = every.of_queries(given)
    d_key, d_value, of_columns = every.of_keys(given)
    d_bias, d_scale, d_params = transposed(of_rows | of_columns | every.of_distances(given))
    width, value_width = call.widths
    return Inputs(
        query=jnp.moveaxis(calls.of_groups(plan, d_query[..., :width]), -1, -3),
        key=jnp.swapaxes(d_key[..., :width], -1, -2),
        value=jnp.swapaxes(d_value[..., :value_width], -1, -2),
        bias=d_bias,
        scale=d_scale,
        params=d_params,
    )


class _Backward(NamedTuple):
    call: Call
    context: Context
    shares: tuple[Share, Share]
    vectors: list[Array]
    """Of queries, but the second of keys: NaN of query, of key or value and of cotangent, the
    log-sum-exp, and what the cotangent of it has."""
    query: list[Float[Array, "*B N T H"]]
    """In its parts, as all of these."""
    key: list[Float[Array, "*B K S H"]]
    value: list[Float[Array, "*B K S V"]]
    d_output: list[Float[Array, "*B N T V"]]

    def of_queries(self, given: Sequence[Array]) -> tuple[Array, dict[Value, Array]]:
        """Returns the cotangent of the query, and of what the pairs take but from keys."""
        call, walk, like = self.call, walks_of(self.call)["queries"], self.query[0]
        moving = [x for x in call.pairs.inputs if is_float(x) and x.depends != KEY]
        moving = [x for x in moving if not x.is_diagonal]
        rows, cuts = ([x for x in moving if x.is_cut == is_cut] for is_cut in (False, True))

        def start():
            return walk.zeros(like.shape[-1]), [walk.zeros() for _ in rows]

        def add(tile: Tile, sums):
            d_query, of_rows = sums
            _, d_products, d_given = self.gradients(tile)
            for n, x in enumerate(cuts):
                tile.write(1 + len(rows) + n, d_given[x].astype(call.dtype))
            return tile.mixed(d_query, d_products, 0), _with(of_rows, rows, d_given)

        def finish(written, at_rows, sums):
            at_rows(written[0])[...] = sums[0].astype(result_dtype(call))
            for ref, total in zip(written[1:], sums[1], strict=False):
                at_rows(ref)[...] = total
            return sums

        lanes, num_keys = like.shape[:-1], self.key[0].shape[-2]
        shapes = [*[lanes] * len(rows), *[(*lanes, num_keys)] * len(cuts)]
        outs = [jax.ShapeDtypeStruct(like.shape, result_dtype(call))]
        outs += [jax.ShapeDtypeStruct(shape, call.dtype) for shape in shapes]
        d_query, *found = self.run(
            "queries", walk, given, start, add, finish, outs, cuts=range(1 + len(rows), len(outs))
        )
        found[: len(rows)] = [x[..., None, :] for x in found[: len(rows)]]
        return d_query.astype(call.dtype), dict(zip([*rows, *cuts], found, strict=True))

    def of_keys(self, given: Sequence[Array]) -> tuple[Array, Array, dict[Value, Array]]:
        """Returns the cotangents of key and value, and of what the pairs take from keys."""
        every = {"key": self.key, "value": self.value}
        if max(x[0].shape[-1] for x in every.values()) <= 128:
            (d_key, d_value), of_columns = self._of_keys(given, every)
        else:  # Both at once do not fit in registers.
            (d_key,), of_columns = self._of_keys(given, {"key": self.key})
            (d_value,), _ = self._of_keys(given, {"value": self.value})
        return d_key, d_value, of_columns

    def _of_keys(
        self, given: Sequence[Array], wanted: dict[str, list[Array]]
    ) -> tuple[list[Array], dict[Value, Array]]:
        call, walk = self.call, walks_of(self.call)["keys"]
        columns = [x for x in call.pairs.inputs if is_float(x) and x.depends == KEY]
        columns = columns if "key" in wanted else []

        def start():
            sums = {name: walk.zeros(x[0].shape[-1]) for name, x in wanted.items()}
            return sums, [walk.zeros() for _ in columns]

        def add(tile: Tile, sums):
            of_keys, of_columns = sums
            weights, d_products, d_given = self.gradients(tile)
            from_queries = {"key": (d_products, 0), "value": (weights, 1)}
            of_keys = {name: tile.mixed(of_keys[name], *from_queries[name]) for name in of_keys}
            return of_keys, _with(of_columns, columns, d_given)

        def finish(written, at_rows, sums):
            of_keys, of_columns = sums
            for ref, name in zip(written, wanted, strict=False):
                at_rows(ref, is_of_keys=True)[...] = of_keys[name].astype(result_dtype(call))
            for ref, total in zip(written[len(wanted) :], of_columns, strict=True):
                at_rows(ref)[...] = total
            # What is of the key alone is summed over heads, and whole after the last.
            return of_keys, [walk.zeros() for _ in columns]

        outs = [jax.ShapeDtypeStruct(x[0].shape, result_dtype(call)) for x in wanted.values()]
        shape = *self.query[0].shape[:-2], self.key[0].shape[-2]
        outs += [jax.ShapeDtypeStruct(shape, call.dtype) for _ in columns]
        found = self.run("keys", walk, given, start, add, finish, outs)
        of_columns = [x[..., None, :] for x in found[len(wanted) :]]
        of_keys = [x.astype(call.dtype) for x in found[: len(wanted)]]
        return of_keys, dict(zip(columns, of_columns, strict=True))

    def of_distances(self, given: Sequence[Array]) -> dict[Value, Array]:
        """Returns the cotangents of what the pairs take of distances."""
        call, diagonals = self.call, diagonals_of(self.call)
        if not diagonals:
            return {}
        walk = walks_of(call)["distances"]
        places = [call.pairs.inputs.index(x) for x in diagonals]
        lanes = jnp.broadcast_shapes(*(given[n].shape[:-2] for n in places))

        def start():
            return [walk.zeros(walk.piece) for _ in diagonals]

        def add(tile: Tile, sums):
            _, _, d_given = self.gradients(tile)
            return [
                total + d_given[x].astype(call.dtype)
                for x, total in zip(diagonals, sums, strict=True)
            ]

        def finish(written, at_rows, sums):
            for ref, total in zip(written, sums, strict=True):
                at_rows(ref)[...] = total
            return sums

        table = functools.partial(table_of, call, QUERY)
        like = [jax.ShapeDtypeStruct((*lanes, *given[n].shape[-2:]), call.dtype) for n in places]
        outs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in jax.eval_shape(table, like)]
        found = self.run("distances", walk, given, start, add, finish, outs, lanes=lanes)
        zeros = [jnp.zeros(x.shape, x.dtype) for x in like]
        _, pull = jax.vjp(table, vary(zeros, varying(found)))
        (summed,) = pull(found)
        return dict(zip(diagonals, summed, strict=True))

    def run(
        self,
        of: str,
        walk: Walk,
        given: Sequence[Array],
        start: Callable,
        add: Callable,
        finish: Callable,
        outs: Sequence[jax.ShapeDtypeStruct],
        **options: Any,
    ) -> list[Array]:
        """Returns the results of one of the kernels, as ``Walk.run`` does."""
        query, key, cotangent = (jnp.isnan(x) for x in self.vectors[:3])
        of_queries, of_keys = [self.query, self.d_output], [self.key, self.value]
        order = KEY if walk.order == KEY else QUERY
        return walk.run(
            f"attention_backward_{of}",
            self.context,
            self.shares,
            (query | cotangent, key),
            *((of_keys, of_queries) if order == KEY else (of_queries, of_keys)),
            [*self.vectors, *known_of(self.call, given, order)],
            start,
            add,
            finish,
            outs,
            **options,
        )

    def gradients(
        self, tile: Tile
    ) -> tuple[Float[Array, "r c"], Float[Array, "r c"], dict[Value, Array]]:
        """Returns ``p z``, and the cotangents of the products and of what the pairs take."""
        call = self.call
        known = known_in(tile, len(self.vectors))

        def of_rows():
            return tile.along(3, QUERY), tile.along(4, QUERY)

        # As soon as may be, but where they would be of columns, and sums leave no registers.
        is_early = tile.order == QUERY or max(call.widths) <= TILED
        (products, mixed), (allowed, early) = tile.products(
            (0, 0),
            (1, 1),
            meanwhile=lambda: (allowed_in(tile, known), of_rows() if is_early else None),
        )

        def only_allowed(x):
            return x if allowed is None else jnp.where(allowed, x, 0.0)

        def nan(x, *which):
            return only_allowed(spoiled(tile, which, x))

        products = tile.unless_clean(lambda x: nan(x, 0, 1), products)
        mixed = tile.unless_clean(lambda x: nan(x, 2, 1), mixed)
        moving = [x for x in known if is_float(x)]

        which = SCORES if allowed is None else MASKED_SCORES

        def scores_of(products, some):
            given = known | dict(zip(moving, some, strict=True))
            return jnp.broadcast_to(call.pairs.inner(given, products, which), products.shape)

        some = [known[x] for x in moving]
        scores, pull = OPERATIONS.done(lambda *x: jax.vjp(scores_of, *x), products, some)
        scores = laid_out(call, scores)
        lse, d_sums = of_rows() if early is None else early
        weights = exp(call, scores, lse)
        factors = factors_of(call, known, scores)
        d_scores = weights * (factors * mixed + d_sums)
        d_scores = tile.unless_clean(only_allowed, d_scores)
        d_products, d_moving = jax.tree.map(
            functools.partial(laid_out, call), OPERATIONS.done(pull, d_scores)
        )
        d_given = dict(zip(moving, d_moving, strict=True))
        kept = tile.unless_clean(lambda x: nan(x, 2), factors * weights)
        tile.take_turns()
        return kept, d_products, d_given


def _with(totals: list[Array], values: Sequence[Value], found: dict[Value, Array]) -> list[Array]:
    """Returns the totals of what stays, with what is found of pairs."""
    return [
        total + jnp.sum(found[x].astype(total.dtype), axis=1)
        for total, x in zip(totals, values, strict=True)
    ]
