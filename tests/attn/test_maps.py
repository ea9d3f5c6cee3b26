"""Scores and weights, the quadratic arrays that are for looking at."""

import functools

import jax
import numpy as np
import pytest

import attn
from attn.testing import oracle
from tests.attn.cases import (
    CASES,
    FLOAT32,
    allowed_pairs,
    assert_close,
    differentiable,
    discrete,
    jit,
)


@pytest.fixture(params=["everything", "mask and bias", "no leading axes"])
def case(request):
    """One whose masks leave some query nothing, as the first two do, or one that has few axes."""
    return CASES[request.param]


def maps(case):
    """Returns inputs, and the scores and weights of them."""
    inputs = differentiable(case, dtype=np.float32)
    value = inputs.pop("value")

    def both(inputs, arrays):
        functions = attn.attention_scores, attn.attention_weights
        return [f(**inputs, **arrays, **case.options) for f in functions]

    return inputs | {"value": value}, *jax.device_get(jit(both)(inputs, discrete(case)))


def test_scores(case):
    inputs, scores, _ = maps(case)
    group = case.num_heads // case.num_key_heads
    key = np.repeat(inputs["key"], group, axis=-2)
    expected = np.einsum("...tnh,...snh->...nts", inputs["query"], key)
    expected = expected * inputs.get("scale", case.head_width**-0.5) + inputs.get("bias", 0)
    assert_close(scores, np.where(allowed_pairs(case), expected, -np.inf), **FLOAT32)


def test_weights_are_a_distribution_over_allowed_keys_and_mix_the_values(case):
    inputs, _, weights = maps(case)
    allowed = allowed_pairs(case)
    assert np.all(weights[~allowed] == 0)
    np.testing.assert_allclose(weights.sum(axis=-1), allowed.any(axis=-1), rtol=1e-5)
    value = np.repeat(inputs["value"], case.num_heads // case.num_key_heads, axis=-2)
    output, _ = oracle.attention(**inputs, **discrete(case), **case.options)
    assert_close(np.einsum("...nts,...snv->...tnv", weights, value), output, **FLOAT32)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("function", [attn.attention_scores, attn.attention_weights])
def test_maps_are_in_float32_at_least(function, dtype):
    with jax.enable_x64(True):
        x = jax.ShapeDtypeStruct((5, 1, 3), dtype)
        found = jax.eval_shape(functools.partial(function, is_causal=True), x, x)
    assert found.dtype == ("float64" if dtype == "float64" else "float32")
