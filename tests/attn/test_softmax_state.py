"""The running softmax: however the keys are cut and joined, it ends as the softmax of all."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn import softmax_state
from tests.attn.cases import FLOAT32, assert_close

T, S, V = 3, 11, 5


@pytest.fixture(scope="module")
def keys():
    """Scores ``[T, S]``, some of them -inf and far apart, and values ``[V, S]``."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(T, S), scale=30)
    scores[0, :7] = scores[1, 4:] = scores[2, [0, 5]] = -np.inf
    return scores.astype(np.float32), rng.normal(size=(V, S)).astype(np.float32)


absorb, merge, finish = map(
    jax.jit, (softmax_state.absorb, softmax_state.merge, softmax_state.finish)
)


def state_of(scores, values):
    return absorb(softmax_state.empty((T,), V, jnp.float32), scores, values)


def softmax(scores, values):
    """The same at once, in float64."""
    scores, values = scores.astype(np.float64), values.astype(np.float64)
    greatest = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - greatest)
    total = weights.sum(axis=-1, keepdims=True)
    return values @ (weights / total).T, (greatest + np.log(total))[:, 0]


@pytest.mark.parametrize("cuts", [(), (4,), range(1, S)], ids=str)
def test_tiles_in_a_row_are_the_whole(keys, cuts):
    state = softmax_state.empty((T,), V, jnp.float32)
    for start, stop in itertools.pairwise((0, *cuts, S)):
        state = absorb(state, keys[0][:, start:stop], keys[1][:, start:stop])
    assert_close(finish(state), softmax(*keys), **FLOAT32)


def test_merge_in_any_order_and_grouping_is_the_whole(keys):
    scores, values = keys
    parts = [state_of(scores[:, i::3], values[:, i::3]) for i in range(3)]
    for a, b, c in itertools.permutations(parts):
        for merged in (merge(merge(a, b), c), merge(a, merge(b, c))):
            assert_close(finish(merged), softmax(*keys), **FLOAT32)
    a, b, _ = parts
    assert_close(merge(a, b), merge(b, a), rtol=0, atol=0)


def test_empty_is_the_identity_of_merge(keys):
    empty = softmax_state.empty((T,), V, jnp.float32)
    state = state_of(*keys)
    assert_close(merge(state, empty), state, rtol=0, atol=0)
    assert_close(merge(empty, state), state, rtol=0, atol=0)
    assert_close(merge(empty, empty), empty, rtol=0, atol=0)


def test_a_tile_of_nothing_allowed_changes_nothing(keys):
    state = state_of(*keys)
    nothing = np.full((T, S), -np.inf, np.float32)
    assert_close(absorb(state, nothing, keys[1]), state, rtol=0, atol=0)


def test_what_has_seen_nothing_is_zero_of_minus_infinity():
    output, lse = finish(softmax_state.empty((T,), V, jnp.float32))
    np.testing.assert_array_equal(output, np.zeros((V, T)))
    np.testing.assert_array_equal(lse, np.full(T, -np.inf))


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_a_shift_of_all_scores_shifts_the_log_sum_exp_alone(keys, shift):
    scores, values = np.round(keys[0]), keys[1]
    output, lse = finish(state_of(scores + np.float32(shift), values))
    expected, unshifted = softmax(scores, values)
    assert_close((output, lse), (expected, unshifted + shift), **FLOAT32)


def test_leading_axes_are_apart():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(2, 7, T, S)).astype(np.float32)
    values = rng.normal(size=(2, 7, V, S)).astype(np.float32)
    state = absorb(softmax_state.empty((2, 7, T), V, jnp.float32), scores, values)
    output, lse = finish(state)
    for place in itertools.product(range(2), range(7)):
        expected = softmax(scores[place], values[place])
        assert_close((output[place], lse[place]), expected, **FLOAT32)


def test_factors_are_of_the_numerator_alone(keys):
    scores, values = keys
    factors = np.random.default_rng(1).random((T, S)).astype(np.float32)
    state = absorb(softmax_state.empty((T,), V, jnp.float32), scores, values, factors)
    plain = state_of(scores, values)
    np.testing.assert_array_equal(state.denominator, plain.denominator)
    weights = np.exp(scores - np.max(scores, axis=-1, keepdims=True))
    np.testing.assert_allclose(state.numerator, values @ (weights * factors).T, rtol=1e-4)


def test_many_sets_are_merged_at_once(keys):
    """Of one key, of more, and of none that is allowed."""
    scores, values = keys
    cuts = (0, 1, 5, 7, S)
    parts = [state_of(scores[:, a:b], values[:, a:b]) for a, b in itertools.pairwise(cuts)]
    states = jax.tree.map(lambda *x: jnp.stack(x), *parts)
    found = finish(jax.jit(softmax_state.merge_all)(states))
    assert_close(found, softmax(scores, values), **FLOAT32)


def test_a_sink_is_a_key_of_value_zero(keys):
    scores, values = keys
    logit = np.array([1.5, -np.inf, 40.0], np.float32)
    output, lse = finish(state_of(scores, values))
    found = jax.jit(softmax_state.with_sink)(output.T, lse, logit)
    more = np.concatenate([scores, logit[:, None]], axis=1)
    expected, expected_lse = softmax(more, np.concatenate([values, np.zeros((V, 1))], axis=1))
    assert_close(found, (expected.T, expected_lse), **FLOAT32)


def test_a_sink_of_nothing_is_nothing():
    """A query that sees no key, and a sink of -inf: 0 and -inf, and no NaN in a derivative."""

    def total(lse, logit):
        output, joint = softmax_state.with_sink(jnp.zeros((2, V)), lse, logit)
        return jnp.sum(output) + jnp.sum(jnp.exp(joint)), (output, joint)

    lse, logit = jnp.full(2, -jnp.inf), jnp.array([-jnp.inf, 2.0])
    gradients, (output, joint) = jax.grad(total, argnums=(0, 1), has_aux=True)(lse, logit)
    np.testing.assert_array_equal(output, np.zeros((2, V)))
    np.testing.assert_allclose(joint, [-np.inf, 2.0], rtol=1e-6)
    np.testing.assert_allclose(gradients, [[0, 0], [0, np.exp(2.0)]], rtol=1e-6)
