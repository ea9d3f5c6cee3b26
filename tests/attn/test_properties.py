"""Whatever the sizes, dtypes and masks: drawn at random, against the formula in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import attn
from attn import masks
from attn.blockwise import blockwise_attention
from attn.dot_product import IMPLEMENTATIONS
from attn.testing import oracle
from attn.tiles import TileSizes
from tests.attn.cases import FLOAT64, assert_close, jit
from tests.attn.laws import second_order

B = 2
SIDES = (1, 2, 3, 5, 7, 8, 13, 17)
# Each draw compiles: few draws of small sizes, cut into tiles of 3 x 4 (primes are padded).
FEW = settings(max_examples=12)
# None is one of the others.
IMPLEMENTATIONS = {
    name: of for name, of in IMPLEMENTATIONS.items() if name not in (None, "cudnn")
} | {"tiles": functools.partial(blockwise_attention, sides=TileSizes(query=3, key=4))}


@st.composite
def calls(draw):
    """Returns sizes, a mask value and, from its definition, the pairs that it allows."""
    num_queries, num_keys = draw(st.sampled_from(SIDES)), draw(st.sampled_from(SIDES))
    num_key_heads, group = draw(st.sampled_from([(1, 1), (1, 3), (2, 1), (2, 2)]))
    i, j = np.arange(num_queries)[:, None], np.arange(num_keys)[None, :]
    seed = draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)

    def every(condition):
        return np.broadcast_to(condition, (B, 1, num_queries, num_keys))

    def leaf(kind):
        a, b = (int(x) for x in rng.integers(0, 9, 2))
        lengths = rng.integers(0, num_keys + 2, B)
        ids = rng.integers(0, 3, (B, num_queries)), rng.integers(0, 3, (B, num_keys))
        array = rng.random((B, 1, num_queries, num_keys)) < 0.6
        return {
            "causal": (masks.Causal(a - 4), every(j <= i + a - 4)),
            "window": (masks.Window(a, b), every((j >= i - a) & (j <= i + b))),
            "segments": (
                masks.Segments(*ids),
                every(ids[0][:, None, :, None] == ids[1][:, None, None, :]),
            ),
            "lengths": (masks.Lengths(key=lengths), every(j < lengths[:, None, None, None])),
            "prefix": (masks.Prefix(a), every(j < a)),
            "strided": (masks.Strided(a + 1), every((i - j) % (a + 1) == 0)),
            "dense": (masks.Dense(array), array),
            "where": (
                masks.Where(lambda at: (at.key * a + at.query) % 3 < 2),
                every((j * a + i) % 3 < 2),
            ),
        }[kind]

    kinds = st.sampled_from(
        ["causal", "window", "segments", "lengths", "prefix", "strided", "dense", "where"]
    )
    mask, allowed = leaf(draw(kinds))
    for _ in range(draw(st.integers(0, 3))):
        other, also = leaf(draw(kinds))
        mask, allowed = draw(
            st.sampled_from(
                [
                    (mask & other, allowed & also),
                    (mask | other, allowed | also),
                    (~mask, ~allowed),
                    (mask & ~other, allowed & ~also),
                ]
            )
        )
    shapes = {
        "query": (B, num_queries, num_key_heads * group, 5),
        "key": (B, num_keys, num_key_heads, 5),
        "value": (B, num_keys, num_key_heads, 3),
    }
    inputs = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    return inputs, mask, allowed


def attend(name, mask, inputs):
    resolved = attn.arguments.resolve(inputs["query"], inputs["key"], None, mask)
    return IMPLEMENTATIONS[name](inputs["query"], inputs["key"], inputs["value"], *resolved)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@FEW
@given(call=calls())
def test_any_composition_at_every_order(name, call):
    inputs, mask, allowed = call
    with jax.enable_x64(True):
        law = functools.partial(second_order, functools.partial(attend, name, mask))
        dense = functools.partial(second_order, lambda x: oracle.dense(**x, allowed=allowed))
        tangents = {k: np.cos(x) for k, x in inputs.items()}
        assert_close(jit(law)(inputs, tangents), jit(dense)(inputs, tangents), **FLOAT64)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@FEW
@given(call=calls(), what=st.sampled_from([np.nan, np.inf, -np.inf]))
def test_what_no_query_sees_reaches_nothing(name, call, what):
    """Keys, values and queries that take part in no allowed pair may hold anything."""
    inputs, mask, allowed = call
    law = jit(functools.partial(second_order, functools.partial(attend, name, mask)))
    unseen, unasked = ~allowed.any(axis=(1, 2)), ~allowed.any(axis=(1, 3))
    filled = {
        "query": np.where(unasked[..., None, None], what, inputs["query"]),
        "key": np.where(unseen[..., None, None], what, inputs["key"]),
        "value": np.where(unseen[..., None, None], what, inputs["value"]),
    }
    with jax.enable_x64(True):
        tangents = {k: np.cos(x) for k, x in inputs.items()}
        expected, found = law(inputs, tangents), law(filled, tangents)
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(found["gradient"]))
        assert_close(found, expected, **FLOAT64)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("size", [1e-30, 1e-3, 30.0, 1e4])
def test_scores_of_any_size(name, dtype, size):
    """Scores up to 10^8, far past the largest float16: finite, and right to their precision."""
    rng = np.random.default_rng(0)
    query, key, value = (
        jnp.asarray(rng.normal(size=(1, 7, 2, 4)) * s, dtype) for s in (size, size, 1)
    )
    mask = masks.Causal()

    def law(inputs):
        outputs, pull_back = jax.vjp(functools.partial(attend, name, mask), inputs)
        return outputs, pull_back(jax.tree.map(jnp.ones_like, outputs))[0]

    inputs = {"query": query, "key": key, "value": value}
    (output, lse), gradient = jit(law)(inputs)
    exact = oracle.attention(query, key, value, is_causal=True)
    np.testing.assert_allclose(lse, exact[1], rtol=1e-5, atol=1e-5)
    # A score of 10^8 is known to about 8 in float32: where the greatest two are closer, anything
    # between their values is right.
    if size < 1e4:
        np.testing.assert_allclose(output, exact[0], rtol=1e-2, atol=1e-3)
    assert np.max(np.abs(output)) <= np.max(np.abs(value.astype(np.float32))) + 1e-6
    assert all(np.all(np.isfinite(x.astype(np.float32))) for x in gradient.values())
