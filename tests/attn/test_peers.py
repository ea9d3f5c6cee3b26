"""Beside ``jax.nn.dot_product_attention``: the same calls and numbers, but where it is wrong."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attn
from attn.testing import oracle
from tests.attn.cases import FLOAT32, assert_close, jit

B, T, S, N, K, H = 2, 13, 17, 6, 3, 5


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


QUERY, KEY, VALUE = normal(B, T, N, H), normal(B, S, K, H, seed=1), normal(B, S, K, H, seed=2)
LENGTHS = np.array([5, 13], np.int32)

SHARED = {
    "nothing else": {},
    "bias": {"bias": normal(1, N, T, S)},
    "mask": {"mask": np.tri(T, S, 2, dtype=bool)[None, None]},
    "scale": {"scale": 0.7},
    "is_causal": {"is_causal": True},
    "query_seq_lengths": {"query_seq_lengths": LENGTHS},
    "key_value_seq_lengths": {"key_value_seq_lengths": LENGTHS},
    "local_window_size": {"local_window_size": 4},
    "local_window_size of two": {"local_window_size": (4, 2), "is_causal": True},
    "all": {
        "bias": normal(B, N, T, S),
        "mask": np.tri(T, S, 2, dtype=bool)[None, None],
        "scale": 0.2,
        "is_causal": True,
        "query_seq_lengths": LENGTHS,
        "key_value_seq_lengths": np.array([17, 9], np.int32),
        "local_window_size": (7, 3),
    },
}


def ours_and_theirs(*arguments, **options):
    functions = attn.dot_product_attention, jax.nn.dot_product_attention
    return [f(*arguments, **options, return_residual=True) for f in functions]


@pytest.mark.parametrize("name", SHARED)
def test_shared_arguments_give_shared_numbers(name):
    options = SHARED[name]
    (output, lse), (their_output, their_lse) = jit(functools.partial(ours_and_theirs, **options))(
        QUERY, KEY, VALUE
    )
    # What theirs does with a query that sees nothing is shown below.
    seen = ~np.isneginf(lse)
    assert np.mean(seen) > 0.5
    assert_close((output[seen], lse[seen]), (their_output[seen], their_lse[seen]), **FLOAT32)


def test_call_without_leading_axes_is_shared():
    ours, theirs = jit(ours_and_theirs)(QUERY[0], KEY[0], VALUE[0])
    assert_close(ours, theirs, **FLOAT32)


def test_signature_is_a_superset():
    ours, theirs = (
        inspect.signature(f).parameters
        for f in (attn.dot_product_attention, jax.nn.dot_product_attention)
    )
    for name, parameter in theirs.items():
        assert ours[name].kind == parameter.kind
        assert ours[name].default == parameter.default
    positional = [p.name for p in theirs.values() if p.kind is not p.KEYWORD_ONLY]
    assert list(ours)[: len(positional)] == positional


# From here on: where we differ on purpose. Each test shows both, so that it is known when
# jax.nn changes its mind.


@pytest.mark.usefixtures("float64")
def test_float64_is_float64():
    arguments = [x.astype(np.float64) for x in (QUERY, KEY, VALUE)]
    expected, _ = oracle.attention(*arguments)
    (output, _), (their_output, _) = jit(ours_and_theirs)(*arguments)
    assert np.max(np.abs(output - expected)) < 1e-14
    assert np.max(np.abs(their_output - expected)) > 1e-9


def test_query_that_sees_nothing_is_zero():
    (output, lse), (their_output, _) = jit(ours_and_theirs)(
        QUERY, KEY, VALUE, mask=np.zeros((1, 1, T, S), bool)
    )
    assert np.all(np.asarray(output) == 0)
    assert np.all(np.isneginf(lse))
    mean = np.repeat(VALUE.mean(axis=1, keepdims=True), N // K, axis=2)
    np.testing.assert_allclose(their_output, np.broadcast_to(mean, output.shape), atol=1e-5)


def test_log_sum_exp_has_a_gradient():
    """Its gradient in the bias is the weights, which sum to 1."""

    def gradients(bias):
        def of(function):
            return jax.grad(lambda x: jnp.sum(function(x)[1]))(bias)

        return [of(lambda x, i=i: ours_and_theirs(QUERY, KEY, VALUE, bias=x)[i]) for i in range(2)]

    ours, theirs = jit(gradients)(normal(B, N, T, S))
    np.testing.assert_allclose(np.sum(ours, axis=-1), 1, rtol=1e-5)
    assert np.all(np.asarray(theirs) == 0)


def test_what_is_masked_does_not_poison():
    key, value = KEY.copy(), VALUE.copy()
    key[:, -1] = value[:, -1] = np.nan
    (output, _), (their_output, _) = jit(ours_and_theirs)(
        QUERY, key, value, mask=(np.arange(S) < S - 1)[None, None, None]
    )
    expected, _ = oracle.attention(QUERY, KEY[:, :-1], VALUE[:, :-1])
    assert_close(output, expected, **FLOAT32)
    assert np.all(np.isnan(their_output))
