"""Composed masks, score functions, sinks and dropout: on every implementation, at every order."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attn
from attn import masks, positions, scores
from attn.testing import oracle
from tests.attn.cases import FLOAT64, Case, assert_close, differentiable, jit
from tests.attn.laws import reversed_second_order, second_order

B, T, S, N, K = 2, 13, 17, 15, 3
CASE = Case(bias=(N, T, S), scale=True)
I, J = np.arange(T)[:, None], np.arange(S)[None, :]  # noqa: E741
RNG = np.random.default_rng(0)
QUERY_IDS, KEY_IDS = RNG.integers(0, 3, (B, T)), np.sort(RNG.integers(0, 3, (B, S)))
SAME = QUERY_IDS[:, None, :, None] == KEY_IDS[:, None, None, :]
LENGTHS = np.array([S, 6], np.int32)
CLOSED_OVER = RNG.normal(size=S)
SLOPES, TABLE = RNG.normal(size=N), RNG.normal(size=(8, N))


def seen_by(head, i, j):
    return (head[:, None, None] + i) % 3 != j % 2


ALL = np.ones((T, S), bool)
HEAD = np.arange(N)
MASKS = {
    "segments": (lambda: masks.Segments(QUERY_IDS, KEY_IDS), SAME),
    "prefix or causal": (lambda: masks.Causal() | masks.Prefix(5), (J <= I) | (J < 5)),
    "not a window": (lambda: ~masks.Window(2, 1), (J < I - 2) | (J > I + 1)),
    "strided": (lambda: masks.Strided(3), (I - J) % 3 == 0),
    "dilated": (
        lambda: masks.Dilated(2, 1, 3),
        ((I - J) % 3 == 0) & (J >= I - 6) & (J <= I + 3),
    ),
    "where": (
        lambda: masks.Where(lambda at: (at.head + at.query) % 3 != at.key % 2),
        seen_by(HEAD, I, J),
    ),
    "all of them": (
        lambda: (
            (masks.Causal(4) | masks.Segments(QUERY_IDS, KEY_IDS))
            & ~(masks.Strided(5) & masks.Window(left=9))
            & masks.Lengths(key=LENGTHS)
        ),
        ((J <= I + 4) | SAME)
        & ~(((I - J) % 5 == 0) & (J >= I - 9))
        & (LENGTHS[:, None, None, None] > J),
    ),
}


def laws_of(attend, inputs, laws):
    return jit(functools.partial(laws, attend))(inputs, tangents_of(inputs))


def tangents_of(inputs):
    rng = np.random.default_rng(1)
    return {name: rng.normal(size=np.shape(x)) for name, x in inputs.items()}


@functools.cache
def expected_under_a_mask(name):
    allowed = np.broadcast_to(MASKS[name][1], (B, N, T, S))
    attend = lambda inputs: oracle.dense(**inputs, allowed=allowed)  # noqa: E731
    return laws_of(attend, differentiable(CASE), second_order)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", MASKS)
def test_masks(name, implementation):
    def attend(inputs):
        return attn.dot_product_attention(
            **inputs, mask=MASKS[name][0](), implementation=implementation, return_residual=True
        )

    actual = laws_of(attend, differentiable(CASE), second_order)
    assert_close(actual, expected_under_a_mask(name), **FLOAT64)


def user(found, at, params):
    """Reads its parameters and, from around it, an array."""
    distance = jnp.abs(at.query - at.key)
    return found * params["gain"] - params["slope"][at.head] * distance**0.5


def user_dense(found, gain, slope):
    return found * gain - slope[:, None, None] * np.abs(I - J) ** 0.5


@jax.custom_jvp
def doubled(x, y):
    """``x y``, whose derivative is said to be twice what it is."""
    return x * y


@doubled.defjvp
def _(primals, tangents):
    (x, y), (dx, dy) = primals, tangents
    return doubled(x, y), 2 * (dx * y + x * dy)


def network(offsets, params):
    """What a layer makes of an offset, for each head ``[N, 1, t, s]``."""
    table = params["table"]
    hidden = jax.nn.softplus(offsets.reshape(offsets.shape[-2:])[..., None] / 5 - table[:, 0])
    return jnp.moveaxis(hidden @ table, -1, 0)


SCORES = {
    "soft cap": (
        {"cap": np.float64(1.5)},
        lambda p: {"score": scores.SoftCap(p["cap"])},
        lambda s, p: p["cap"] * jnp.tanh(s / p["cap"]),
    ),
    "alibi": (
        {"slopes": SLOPES},
        lambda p: {"score": scores.ALiBi(p["slopes"])},
        lambda s, p: s - p["slopes"][:, None, None] * np.abs(I - J),
    ),
    "function": (
        {"gain": np.float64(0.7), "slope": SLOPES},
        lambda p: {"score": user, "score_params": p},
        lambda s, p: user_dense(s, **p),
    ),
    "closed over": (
        {"of_key": CLOSED_OVER},
        lambda p: {"score": lambda s, at, _: s * jnp.cos(p["of_key"][at.key])},
        lambda s, p: s * jnp.cos(p["of_key"]),
    ),
    "chain": (
        {"cap": np.float64(1.5), "of_key": CLOSED_OVER},
        lambda p: {
            "score": scores.Chain(
                scores.SoftCap(p["cap"]), scores.Function(lambda s, at, _: s + p["of_key"][at.key])
            )
        },
        lambda s, p: p["cap"] * jnp.tanh(s / p["cap"]) + p["of_key"],
    ),
    "nothing of the score": (
        {"of_query": CLOSED_OVER[:13]},
        lambda p: {
            "score": lambda s, at, _: jnp.zeros_like(s) + p["of_query"][at.query],
        },
        lambda s, p: jnp.broadcast_to(p["of_query"][:, None], s.shape),
    ),
    "a table of offsets": (
        {"table": TABLE},
        lambda p: {
            "score": lambda s, at, p: s + p[jnp.clip(at.key - at.query, -3, 4) + 3, at.head],
            "score_params": p["table"],
        },
        lambda s, p: s + jnp.moveaxis(p["table"][np.clip(J - I, -3, 4) + 3], -1, 0),
    ),
    "a network of offsets": (
        {"table": TABLE},
        lambda p: {"score": lambda s, at, p: s + network(at.key - at.query, p), "score_params": p},
        lambda s, p: s + network(J - I, p),
    ),
    "a derivative of its own": (
        {"gain": np.float64(0.7)},
        lambda p: {
            "score": lambda s, at, p: doubled(s, jnp.tanh(p) + jax.nn.softplus(s)),
            "score_params": p["gain"],
        },
        lambda s, p: doubled(s, jnp.tanh(p["gain"]) + jax.nn.softplus(s)),
    ),
    "relative bias": (
        {"table": TABLE},
        lambda p: {"score": scores.RelativeBias(p["table"], max_distance=9)},
        lambda s, p: (
            s
            + jnp.moveaxis(
                p["table"][positions.relative_buckets(jnp.asarray(J - I), 8, max_distance=9)], -1, 0
            )
        ),
    ),
}


def split(inputs, params):
    return {k: v for k, v in inputs.items() if k not in params}, {k: inputs[k] for k in params}


@functools.cache
def expected_under_a_score(name):
    params, _, change = SCORES[name]

    def attend(inputs):
        arrays, moved = split(inputs, params)
        return oracle.dense(**arrays, allowed=J <= I + 2, change=lambda s: change(s, moved))

    return laws_of(attend, differentiable(CASE) | params, second_order)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", SCORES)
def test_scores(name, implementation):
    params, options, _ = SCORES[name]

    def attend(inputs):
        arrays, moved = split(inputs, params)
        return attn.dot_product_attention(
            **arrays,
            **options(moved),
            mask=masks.Causal(2),
            implementation=implementation,
            return_residual=True,
        )

    actual = laws_of(attend, differentiable(CASE) | params, second_order)
    assert_close(actual, expected_under_a_score(name), **FLOAT64)


SINKS = RNG.normal(size=N)
NO_KEY = np.broadcast_to((J <= I) & (I != 4), (B, N, T, S))


@pytest.mark.usefixtures("float64")
def test_sinks_dropout_and_all_else(implementation):
    """Which weights are dropped is read from values that are the unit vectors of the keys."""
    rng = jax.random.key(0)
    unit = np.broadcast_to(np.eye(S)[:, None], (B, S, K, S))

    def options(inputs):
        return {
            "mask": masks.Where(lambda at: (at.key <= at.query) & (at.query != 4)),
            "score": lambda s, at, slopes: s + slopes[at.head] * jnp.sin(at.key),
            "score_params": inputs["slopes"],
            "sinks": inputs["sinks"],
            "implementation": implementation,
            "return_residual": True,
        }

    def attend(inputs, **more):
        arrays, params = split(inputs, ("slopes", "sinks"))
        return attn.dot_product_attention(**(arrays | more), **options(params), **dropout)

    inputs = differentiable(CASE) | {"slopes": SLOPES, "sinks": SINKS}
    dropout = {}
    weights, _ = jit(functools.partial(attend, value=unit))(inputs)
    dropout = {"dropout_rate": 0.3, "dropout_rng": rng}
    dropped, _ = jit(functools.partial(attend, value=unit))(inputs)
    factors = np.moveaxis(
        np.divide(dropped, weights, where=weights > 0, out=np.ones_like(weights)), 1, 2
    )
    kept = factors > 0.5
    np.testing.assert_allclose(factors[kept & NO_KEY], 1 / 0.7, rtol=1e-12)
    assert np.all(factors[~kept] == 0)
    assert abs(np.mean(kept[NO_KEY]) - 0.7) < 0.03

    def expected(inputs):
        arrays, params = split(inputs, ("slopes", "sinks"))
        return oracle.dense(
            **arrays,
            allowed=NO_KEY,
            change=lambda s: s + params["slopes"][:, None, None] * np.sin(J),
            sinks=params["sinks"],
            factors=factors,
        )

    found = laws_of(attend, inputs, reversed_second_order)
    assert_close(found, laws_of(expected, inputs, reversed_second_order), **FLOAT64)


def test_dropout_is_the_same_everywhere(implementation):
    """Of a row alone, of part of the heads' batch, whatever implementation: it is where it is."""
    value = np.broadcast_to(np.eye(S, dtype=np.float32)[:, None], (B, S, K, S))
    zeros = np.zeros((B, T, N, 4), np.float32), np.zeros((B, S, K, 4), np.float32)

    def dropped(implementation, seed):
        return attn.dot_product_attention(
            *zeros,
            value,
            dropout_rate=0.4,
            dropout_rng=jax.random.key(seed),
            implementation=implementation,
        )

    found = [np.asarray(dropped(*x)) > 0 for x in ((implementation, 0), ("reference", 0))]
    np.testing.assert_array_equal(*found)
    other = np.asarray(dropped(implementation, 1)) > 0
    assert abs(np.mean(other == found[0]) - (0.6**2 + 0.4**2)) < 0.02
    # Neighbours along every axis are independent.
    for axis in range(4):
        a, b = (np.take(found[0], range(s, found[0].shape[axis] - 1 + s), axis) for s in (0, 1))
        assert abs(np.mean(a == b) - (0.6**2 + 0.4**2)) < 0.03, axis


def test_dropout_is_right_on_average(implementation):
    inputs = differentiable(Case(batch=()), dtype=np.float32)

    def attend(rng):
        return attn.dot_product_attention(
            **inputs, dropout_rate=0.2, dropout_rng=rng, implementation=implementation
        )

    draws = jit(jax.vmap(attend))(jax.random.split(jax.random.key(0), 1000))
    expected, _ = oracle.attention(**inputs)
    error = np.abs(np.mean(draws, axis=0) - expected) / (np.std(draws, axis=0) / 1000**0.5)
    assert np.max(error) < 5


@pytest.mark.usefixtures("float64")
def test_vmap_over_what_is_not_an_array_of_the_call(implementation):
    """Mask fields, score parameters, scale, sinks, an array that a function closes over."""
    inputs = differentiable(Case(batch=()))
    rng = np.random.default_rng(0)
    lanes = {
        "ids": rng.integers(0, 3, (4, S)),
        "cap": rng.uniform(1, 2, 4),
        "scale": rng.uniform(0.2, 0.4, 4),
        "sinks": rng.normal(size=(N, 4)),
        "closed": rng.normal(size=(4, S)),
    }
    axes = {"ids": 0, "cap": 0, "scale": 0, "sinks": 1, "closed": 0}

    def attend(x, query):
        def change(s, at, cap):
            return cap * jnp.tanh(s / cap) + x["closed"][at.key]

        mask = masks.Segments(x["ids"][:T], x["ids"]) | masks.Where(
            lambda at: x["closed"][at.key] > 0.5
        )
        return attn.dot_product_attention(
            **(inputs | {"query": query}),
            mask=mask,
            score=change,
            score_params=x["cap"],
            scale=x["scale"],
            sinks=x["sinks"],
            implementation=implementation,
        )

    def expected(x, query):
        return oracle.dense(
            **(inputs | {"query": query}),
            scale=x["scale"],
            allowed=(x["ids"][:T, None] == x["ids"]) | (x["closed"] > 0.5),
            change=lambda s: x["cap"] * jnp.tanh(s / x["cap"]) + x["closed"],
            sinks=x["sinks"],
        )[0]

    def laws(attend):
        def value_and_gradient(x, query):
            floats = {k: v for k, v in x.items() if k != "ids"}

            def loss(floats, query):
                return jnp.sum(jnp.sin(attend(x | floats, query)))

            return attend(x, query), jax.grad(loss, argnums=(0, 1))(floats, query)

        return jit(jax.vmap(value_and_gradient, (axes, None)))(lanes, inputs["query"])

    assert_close(laws(attend), laws(expected), **FLOAT64)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("with_sinks", [False, True])
def test_parts_are_the_whole(with_sinks, implementation):
    """Split keys, merged in any grouping: the value and second order of attention to all."""
    inputs = differentiable(Case(options={}), "parts")
    cuts = [(0, 4), (4, 5), (5, S)]
    sinks = SINKS if with_sinks else None

    def parts(inputs, order):
        query, key, value = (inputs[name] for name in ("query", "key", "value"))
        states = [
            attn.attend_partial(
                query,
                key[:, a:b],
                value[:, a:b],
                mask=masks.Causal(-a) & masks.Where(lambda at: at.query != 7),
                implementation=implementation,
            )
            for a, b in cuts
        ]
        first, second, third = (states[k] for k in order)
        return attn.finish(attn.merge(first, attn.merge(second, third)), sinks)

    def whole(inputs):
        allowed = np.broadcast_to((J <= I) & (I != 7), (B, N, T, S))
        return oracle.dense(**inputs, allowed=allowed, sinks=sinks)

    expected = laws_of(whole, inputs, second_order)
    order = (2, 0, 1) if with_sinks else (0, 1, 2)
    found = laws_of(functools.partial(parts, order=order), inputs, second_order)
    assert_close(found, expected, **FLOAT64)


def test_parts_of_different_queries_are_refused():
    x = np.zeros((1, 3, 2, 4), np.float32)
    states = [attn.attend_partial(y, x, x) for y in (x, x[:, :2])]
    with pytest.raises(ValueError, match=r"maximum of the states has shapes \(1, 2, 3\) and"):
        attn.merge(*states)


@pytest.mark.parametrize("score", [scores.SoftCap(3.0), scores.LogLength(1.0)], ids=repr)
def test_a_bias_of_minus_infinity_is_a_mask_whatever_the_score(score, implementation):
    x = np.random.default_rng(0).normal(size=(1, 7, 2, 4)).astype(np.float32)
    lower = np.tri(7, dtype=bool)

    def attend(x, **options):
        return attn.dot_product_attention(
            *(x, x, x), score=score, implementation=implementation, **options
        )

    def laws(**options):
        return jit(jax.value_and_grad(lambda x: jnp.sum(attend(x, **options) ** 2)))(x)

    found = laws(bias=np.where(lower, 0, -np.inf).astype(np.float32))
    assert_close(found, laws(is_causal=True), rtol=1e-5, atol=1e-5)
