"""The forward pass, and the two of the backward pass, by walks over tiles.

    forward   o += e^(s - m) v       queries stay, keys and values come
    queries   dq += f'(ds) k         queries and do stay, keys and values come
    keys      dk += f'(ds)^T q       keys and values stay, queries and do come
              dv += (p z)^T do
    distances db += f'(ds)           all come, tiles at one distance; of a bias of distances

with the rule of ``attn.kernels.tpu.backward``. A NaN or infinity in a query, key, value or
cotangent is taken out before, for products would carry it into pairs that take no part; it stands
beside as a NaN to add, in tiles that have one, to the products of those that do, and so what
depends on one is NaN in all its features.

Letters: ``*B`` leading axes, N query heads, K key heads, G = N / K, T queries, S keys, H and V head
widths; r and c the sides of what is seen at once, that which stays first.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from attn.devices import vary, varying
from attn.indices import along_diagonals
from attn.kernels import call as calls
from attn.kernels.call import ALLOWED, FACTORS, MASKED_SCORES, SCORES, Call, is_float
from attn.kernels.gpu.launch import TILED
from attn.kernels.gpu.operations import done
from attn.kernels.gpu.parts import num_parts, parts_of
from attn.kernels.gpu.tile import Tile, across, exp, laid_out
from attn.kernels.gpu.walk import Walk, walk_of
from attn.kernels.values import DISTANCE, KEY, QUERY, Value
from attn.plan import Context, Inputs
from attn.softmax_state import finite
from attn.tiles import Share


def forward(
    call: Call, context: Context, inputs: Inputs, shares: tuple[Share, Share]
) -> tuple[Float[Array, "*B K V G T"], Float[Array, "*B K G T"]]:
    """Returns output and log-sum-exp of the queries and keys at hand, which ``shares`` are."""
    walk = walks_of(call)["forward"]
    (query, key, value), (bad_query, bad_key) = _arrays(call, inputs)
    given = calls.of_pairs(call, calls.operands_of(context, inputs), shares)
    query, key, value = (parts_of(call, x) for x in (query, key, value))
    _, width = call.widths

    def start():
        return walk.zeros(value=-jnp.inf), walk.zeros(), walk.zeros(value[0].shape[-1])

    def absorb(tile: Tile, sums):
        maximum, denominator, numerator = sums
        known = _given(call, tile, 2)
        (products,), allowed = tile.products((0, 0), meanwhile=lambda: _allowed(call, tile, known))
        products = tile.unless_clean(functools.partial(_spoiled, tile, (0, 1)), products)
        scores = laid_out(call, _scores(call, known, products, allowed))
        greatest = jnp.maximum(maximum, jnp.max(scores, axis=1))
        base = finite(greatest)
        weights, correction = exp(call, scores, base), exp(call, maximum, base)
        numerator *= across(correction, numerator)
        denominator = correction * denominator + jnp.sum(weights, axis=1)
        kept = _factors(call, known, scores) * weights
        tile.take_turns()
        return greatest, denominator, tile.mixed(numerator, kept, 1)

    def finish(written, at_rows, sums):
        maximum, denominator, numerator = sums
        seen = denominator != 0
        total = jnp.where(seen, denominator, 1.0)
        at_rows(written[0])[...] = (numerator / across(total, numerator)).astype(outs[0].dtype)
        at_rows(written[1])[...] = jnp.where(seen, maximum + jnp.log(total), -jnp.inf)
        return sums

    queries = query[0].shape[:-1]
    outs = [jax.ShapeDtypeStruct((*queries, value[0].shape[-1]), _result(call))]
    outs += [jax.ShapeDtypeStruct(queries, call.dtype)]
    known = [bad_query, bad_key, *_vectors(call, given, QUERY)]
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
    )
    output = jnp.swapaxes(output[..., :width].astype(call.dtype), -1, -2)
    output, lse = (calls.of_groups(call.plan, x) for x in (output, lse[..., None, :]))
    return jnp.swapaxes(output, -3, -2), lse[..., 0, :]


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
    (query, key, value), bad = _arrays(call, inputs)
    # Of a loss that is a sum, XLA would else look through a constant number by number.
    d_output = lax.optimization_barrier(d_output)
    cotangents = calls.of_heads(plan, jnp.moveaxis(d_output, -3, -1)).astype(plan.dtype)
    rows = [calls.of_heads(plan, x[..., None, :])[..., 0, :] for x in (finite(lse), d_lse)]
    is_bad = ~(jnp.all(jnp.isfinite(cotangents), axis=-1) & jnp.isfinite(rows[1]))
    vectors = [*bad, jnp.where(is_bad, jnp.nan, 0).astype(call.dtype), *rows]
    arrays = (parts_of(call, x) for x in (query, key, value, _padded(cotangents)))
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


def walks_of(call: Call) -> dict[str, Walk]:
    """Returns how each kernel goes over tiles.

    Raises:
      attn.overrides.Refused: if there is no room for what it sees at a time.
    """
    width, value_width = (n + -n % TILED for n in call.widths)
    both, is_narrow = width + value_width, max(call.widths) <= 128 and num_parts(call) == 1
    found = {
        "forward": walk_of(call, QUERY, (width, both), 128 if is_narrow else 64),
        "queries": walk_of(call, QUERY, (both, both), 64),
        "keys": walk_of(call, KEY, (both, both), 64),
    }
    if _diagonals(call):
        found["distances"] = walk_of(call, DISTANCE, (both, both), 64)
    return found


def _diagonals(call: Call) -> list[Value]:
    """Returns what the pairs take of distances and may have a cotangent."""
    return [x for x in call.pairs.inputs if x.is_diagonal and is_float(x)]


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
            at_rows(written[0])[...] = sums[0].astype(_result(call))
            for ref, total in zip(written[1:], sums[1], strict=False):
                at_rows(ref)[...] = total
            return sums

        lanes, num_keys = like.shape[:-1], self.key[0].shape[-2]
        shapes = [*[lanes] * len(rows), *[(*lanes, num_keys)] * len(cuts)]
        outs = [jax.ShapeDtypeStruct(like.shape, _result(call))]
        outs += [jax.ShapeDtypeStruct(shape, call.dtype) for shape in shapes]
        d_query, *found = walk.run(
            "attention_backward_queries",
            self.context,
            self.shares,
            self.is_bad,
            [self.query, self.d_output],
            [self.key, self.value],
            [*self.vectors, *_vectors(call, given, QUERY)],
            start,
            add,
            finish,
            outs,
            cuts=range(1 + len(rows), len(outs)),
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
                at_rows(ref, is_of_keys=True)[...] = of_keys[name].astype(_result(call))
            for ref, total in zip(written[len(wanted) :], of_columns, strict=True):
                at_rows(ref)[...] = total
            # What is of the key alone is summed over heads, and whole after the last.
            return of_keys, [walk.zeros() for _ in columns]

        outs = [jax.ShapeDtypeStruct(x[0].shape, _result(call)) for x in wanted.values()]
        shape = *self.query[0].shape[:-2], self.key[0].shape[-2]
        outs += [jax.ShapeDtypeStruct(shape, call.dtype) for _ in columns]
        found = walk.run(
            "attention_backward_keys",
            self.context,
            self.shares,
            self.is_bad,
            [self.key, self.value],
            [self.query, self.d_output],
            [*self.vectors, *_vectors(call, given, KEY)],
            start,
            add,
            finish,
            outs,
        )
        of_columns = [x[..., None, :] for x in found[len(wanted) :]]
        of_keys = [x.astype(call.dtype) for x in found[: len(wanted)]]
        return of_keys, dict(zip(columns, of_columns, strict=True))

    def of_distances(self, given: Sequence[Array]) -> dict[Value, Array]:
        """Returns the cotangents of what the pairs take of distances."""
        call, diagonals = self.call, _diagonals(self.call)
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

        table = functools.partial(_table, call, QUERY)
        like = [jax.ShapeDtypeStruct((*lanes, *given[n].shape[-2:]), call.dtype) for n in places]
        outs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in jax.eval_shape(table, like)]
        found = walk.run(
            "attention_backward_distances",
            self.context,
            self.shares,
            self.is_bad,
            [self.query, self.d_output],
            [self.key, self.value],
            [*self.vectors, *_vectors(call, given, QUERY)],
            start,
            add,
            finish,
            outs,
            lanes=lanes,
        )
        zeros = [jnp.zeros(x.shape, x.dtype) for x in like]
        _, pull = jax.vjp(table, vary(zeros, varying(found)))
        (summed,) = pull(found)
        return dict(zip(diagonals, summed, strict=True))

    @property
    def is_bad(self) -> tuple[Bool[Array, "*B N T"], Bool[Array, "*B N S"]]:
        """Which queries, cotangents included, and which keys are not finite."""
        query, key, cotangent = (jnp.isnan(x) for x in self.vectors[:3])
        return query | cotangent, key

    def gradients(
        self, tile: Tile
    ) -> tuple[Float[Array, "r c"], Float[Array, "r c"], dict[Value, Array]]:
        """Returns ``p z``, and the cotangents of the products and of what the pairs take."""
        call = self.call
        known = _given(call, tile, len(self.vectors))

        def of_rows():
            return tile.along(3, QUERY), tile.along(4, QUERY)

        # As soon as may be, but where they would be of columns, and sums leave no registers.
        is_early = tile.order == QUERY or max(call.widths) <= TILED
        (products, mixed), (allowed, early) = tile.products(
            (0, 0),
            (1, 1),
            meanwhile=lambda: (_allowed(call, tile, known), of_rows() if is_early else None),
        )

        def only_allowed(x):
            return x if allowed is None else jnp.where(allowed, x, 0.0)

        def spoiled(x, *which):
            return only_allowed(_spoiled(tile, which, x))

        products = tile.unless_clean(lambda x: spoiled(x, 0, 1), products)
        mixed = tile.unless_clean(lambda x: spoiled(x, 2, 1), mixed)
        moving = [x for x in known if is_float(x)]

        which = SCORES if allowed is None else MASKED_SCORES

        def scores_of(products, some):
            given = known | dict(zip(moving, some, strict=True))
            return jnp.broadcast_to(call.pairs.inner(given, products, which), products.shape)

        some = [known[x] for x in moving]
        scores, pull = done(lambda *x: jax.vjp(scores_of, *x), products, some)
        scores = laid_out(call, scores)
        lse, d_sums = of_rows() if early is None else early
        weights = exp(call, scores, lse)
        factors = _factors(call, known, scores)
        d_scores = weights * (factors * mixed + d_sums)
        d_scores = tile.unless_clean(only_allowed, d_scores)
        d_products, d_moving = jax.tree.map(functools.partial(laid_out, call), done(pull, d_scores))
        d_given = dict(zip(moving, d_moving, strict=True))
        kept = tile.unless_clean(lambda x: spoiled(x, 2), factors * weights)
        tile.take_turns()
        return kept, d_products, d_given


def _with(totals: list[Array], values: Sequence[Value], found: dict[Value, Array]) -> list[Array]:
    """Returns the totals of what stays, with what is found of pairs."""
    return [
        total + jnp.sum(found[x].astype(total.dtype), axis=1)
        for total, x in zip(totals, values, strict=True)
    ]


def _arrays(call: Call, inputs: Inputs) -> tuple[list[Array], list[Array]]:
    """Returns query, key and value, finite and of padded widths; and NaN for those that were not.

    The first of these two is ``[*B, N, T]``; the second, ``[*B, N, S]``, is of key and value.
    """
    query, key, value = calls.arrays_of(call, inputs)
    is_bad = [~jnp.all(jnp.isfinite(x), axis=-1) for x in (query, key, value)]
    of_heads = jnp.repeat(is_bad[1] | is_bad[2], call.group_size, axis=-2)
    bad = [jnp.where(x, jnp.nan, 0).astype(call.dtype) for x in (is_bad[0], of_heads)]
    return [_padded(x) for x in (query, key, value)], bad


def _padded(x: Array) -> Array:
    x = jnp.where(jnp.isfinite(x), x, 0)
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % TILED)])


def _vectors(call: Call, given: Sequence[Array], order: frozenset[str]) -> list[Array]:
    """Returns what ``of_pairs`` gives as a walk takes it."""
    found = []
    for x, array in zip(call.pairs.inputs, given, strict=True):
        if x.is_cut:
            found.append(array if order == QUERY else jnp.swapaxes(array, -1, -2))
        elif x.is_diagonal:
            found.append(_table(call, order, array))
        else:
            found.append(array[..., 0, :])
    return found


def _table(call: Call, order: frozenset[str], given: Any) -> Any:
    """Returns what is known of each distance as tiles, what stays first, one below the other.

    Args:
      call: of the kernel.
      order: what stays, QUERY or KEY.
      given: arrays, as ``of_pairs`` gives them.
    """
    grid, count = call.plan.grid, call.pairs.distances.count

    def of_array(x):
        distances = jnp.reshape(x, (*x.shape[:-2], count, -1))[..., -2::-1]
        tiles = along_diagonals(distances, grid.query_side)
        tiles = tiles if order == QUERY else jnp.swapaxes(tiles, -1, -2)
        return jnp.reshape(tiles, (*x.shape[:-2], -1, tiles.shape[-1]))

    return jax.tree.map(of_array, given)


def _given(call: Call, tile: Tile, first: int) -> dict[Value, Array]:
    """Returns what the pairs take from outside; so much else is known before it."""
    known = {}
    for n, x in enumerate(call.pairs.inputs):
        if x.is_cut or x.is_diagonal:
            found = tile.pairs(first + n, is_of_distance=x.is_diagonal)
        else:
            found = tile.along(first + n, x.depends)
        known[x] = found != 0 if x.dtype == bool else found
    return known


def _spoiled(tile: Tile, which: Sequence[int], products: Array) -> Float[Array, "r c"]:
    """Returns products, NaN where what they are of was not finite.

    Args:
      tile: at hand.
      which: are known, NaN or 0: the second of keys, the others of queries.
      products: of what was made finite.
    """
    return products + sum(tile.along(n, KEY if n == 1 else QUERY) for n in which)


def _result(call: Call) -> Any:
    """Returns the dtype of what is written: that of the arrays, or that of sums still to merge."""
    return call.dtype if call.plan.keys_ring is not None else call.plan.dtype


def _allowed(call: Call, tile: Tile, known: Any) -> Bool[Array, "r c"] | None:
    if tile.is_full or not call.is_masked:
        return None
    return _inner(call, known, jnp.zeros(tile.shape, call.dtype), ALLOWED)


def _scores(call: Call, known: Any, products: Array, allowed: Array | None) -> Array:
    return _inner(call, known, products, SCORES if allowed is None else MASKED_SCORES)


def _factors(call: Call, known: Any, scores: Array) -> Any:
    """Returns ``z / (1 - rate)``, of dropout; 1 without."""
    return _inner(call, known, scores, FACTORS) if call.has_dropout else 1


def _inner(call: Call, known: dict[Value, Array], scores: Array, which: int) -> Array:
    found = done(lambda scores: call.pairs.inner(known, scores, which), scores)
    return jnp.broadcast_to(found, scores.shape)
