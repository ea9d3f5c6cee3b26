"""What attention means, on every implementation: masks, padding, order, extremes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn import masks
from attn.testing import oracle
from tests.attn.cases import FLOAT32, Case, assert_close, call, differentiable, jit
from tests.attn.laws import first_order, second_order

CAUSAL = Case(options={"is_causal": True})


def test_query_that_may_attend_to_nothing(implementation):
    """It is 0, with log-sum-exp -inf; whatever is asked of its derivatives is exactly 0."""
    case = Case(bias=(2, 15, 13, 17), scale=True)
    mask = np.random.default_rng(0).random((2, 1, 13, 17)) < 0.7
    mask[0, :, 3] = False
    mask[1] = False

    def pull_back_ones(inputs):
        outputs, pullback = jax.vjp(lambda x: call(case, implementation)(x, {"mask": mask}), inputs)
        return outputs, pullback(jax.tree.map(jnp.ones_like, outputs))[0]

    inputs, tangents = (differentiable(case, seed, np.float32) for seed in ("", "tangents"))
    (outputs, gradient), (moved, second) = jit(
        lambda *args: jax.jvp(pull_back_ones, args[:1], args[1:])
    )(inputs, tangents)

    assert np.all(np.isneginf(outputs[1][0, 3]))
    assert np.all(np.isneginf(outputs[1][1]))
    for x in (outputs[0], *moved, gradient["query"], second["query"]):
        assert np.all(np.asarray(x[0, 3]) == 0)
        assert np.any(np.asarray(x[0, 4]) != 0)
    for name, x in (*gradient.items(), *second.items()):
        assert np.all(np.isfinite(x)), name
        if name != "scale":
            assert np.all(np.asarray(x[1]) == 0), name


def poisoned(inputs, allowed, poison):
    """Returns the inputs with poison in all that takes part in no allowed pair."""
    *batch, num_keys, num_key_heads, _ = inputs["key"].shape
    asks = np.moveaxis(allowed.any(-1), -2, -1)[..., None]
    of_group = allowed.reshape(*batch, num_key_heads, -1, num_keys)
    seen = np.moveaxis(of_group.any(-2), -2, -1)[..., None]
    takes_part = {"query": asks, "key": seen, "value": seen, "bias": allowed, "scale": True}
    assert not np.all(asks)
    assert not np.all(seen)
    return {name: np.where(takes_part[name], x, np.float32(poison)) for name, x in inputs.items()}


LENGTHS = {
    "query_seq_lengths": np.array([5, 13], np.int32),
    "key_value_seq_lengths": np.array([17, 6], np.int32),
}
DIAGONAL = np.eye(13, 17, 6, bool) | np.eye(13, 17, 5, bool)
PADDINGS = {
    "lengths": (LENGTHS, LENGTHS),
    "window": ({"mask": masks.Window(left=1, right=0, offset=6)}, {"mask": DIAGONAL}),
}


@pytest.mark.parametrize("padding", PADDINGS)
def test_padding_never_leaks(padding, implementation):
    """NaN or infinity in what no allowed pair reads changes nothing, up to second derivatives."""
    case = Case(bias=(2, 15, 13, 17), scale=True)
    arrays, same_in_numpy = PADDINGS[padding]
    inputs, tangents = (differentiable(case, seed, np.float32) for seed in ("", "tangents"))
    allowed = oracle.allowed_pairs(inputs["query"].shape, inputs["key"].shape, **same_in_numpy)

    @jit
    def laws(inputs, tangents, arrays):
        return second_order(
            functools.partial(call(case, implementation), arrays=arrays), inputs, tangents
        )

    clean = laws(poisoned(inputs, allowed, 0), tangents, arrays)
    for poison in (np.nan, np.inf, -np.inf):
        actual = laws(poisoned(inputs, allowed, poison), tangents, arrays)
        assert_close(actual, clean, rtol=0, atol=0)


def test_tiny_and_huge_scores(implementation):
    """Small integers times a power of two are exact scores: only the softmax is tested."""
    rng = np.random.default_rng(0)
    inputs = {
        name: rng.integers(-3, 4, (2, *shape)).astype(np.float32)
        for name, shape in {"query": (13, 2, 5), "key": (17, 2, 5), "value": (17, 2, 3)}.items()
    }
    attention = functools.partial(call(CAUSAL, implementation), arrays={})
    laws = jit(lambda inputs: first_order(attention, inputs))
    for scale in (2.0**-40, 2.0**20):
        inputs["scale"] = np.float32(scale)
        actual = laws(inputs)
        assert_close(actual["value"], oracle.attention(**inputs, is_causal=True), **FLOAT32)
        assert all(np.all(np.isfinite(x)) for x in actual["gradient"].values())


def test_least_number_as_bias(implementation):
    """A common way to write a mask: as -inf, but that a row of nothing else is uniform."""
    query, key, value = np.random.default_rng(0).normal(size=(3, 1, 13, 2, 5)).astype(np.float32)
    least = np.where(np.tri(13, k=-1, dtype=bool), 0, np.finfo(np.float32).min)
    inputs = {"query": query, "key": key, "value": value, "bias": least.astype(np.float32)}
    attention = functools.partial(call(Case(), implementation), arrays={})
    laws = jit(lambda inputs: first_order(attention, inputs))

    actual = laws(inputs)
    output, lse = actual["value"]
    inputs["bias"] = np.where(least < 0, -np.inf, least).astype(np.float32)
    masked = laws(inputs)
    assert_close((output[:, 1:], lse[:, 1:]), [x[:, 1:] for x in masked["value"]], rtol=0, atol=0)
    np.testing.assert_allclose(output[0, 0], value[0].mean(axis=0), rtol=1e-5)
    assert np.all(np.asarray(masked["value"][0][0, 0]) == 0)
    for x in (*actual["gradient"].values(), *masked["gradient"].values()):
        assert np.all(np.isfinite(x))


def test_no_gradient_reaches_the_future(implementation):
    """Under a causal mask the gradient of what is at t is exactly 0 in every later token."""
    inputs = differentiable(Case(num_keys=13), dtype=np.float32)
    t = 6

    @jit
    def gradient(inputs):
        outputs = functools.partial(call(CAUSAL, implementation), arrays={})
        return jax.grad(lambda x: sum(jnp.sum(y[:, t]) for y in outputs(x)))(inputs)

    gradient = jax.device_get(gradient(inputs))
    for name in ("key", "value"):
        assert np.all(gradient[name][:, t + 1 :] == 0)
        assert np.all(np.any(gradient[name][:, : t + 1] != 0, axis=(2, 3)))
    assert np.all(gradient["query"][:, np.arange(13) != t] == 0)


def test_keys_are_a_set_and_queries_do_not_see_each_other(implementation):
    inputs = differentiable(Case(), dtype=np.float32)
    rng = np.random.default_rng(0)
    orders = {"query": rng.permutation(13)} | dict.fromkeys(("key", "value"), rng.permutation(17))
    attention = jit(functools.partial(call(Case(), implementation), arrays={}))
    expected = [x[:, orders["query"]] for x in attention(inputs)]
    permuted = attention({name: x[:, orders[name]] for name, x in inputs.items()})
    assert_close(list(permuted), expected, **FLOAT32)


def test_parts_weighted_by_their_log_sum_exp_are_the_whole(implementation):
    """Which is what split keys, ring attention and caches rely on."""
    inputs = differentiable(Case(num_keys=22), dtype=np.float32)
    attention = jit(functools.partial(call(Case(), implementation), arrays={}))

    def of_part(part):
        return attention({x: y if x == "query" else y[:, part] for x, y in inputs.items()})

    outputs, lses = zip(of_part(slice(11)), of_part(slice(11, None)), strict=True)
    lse = np.logaddexp(*lses)
    output = sum(np.exp(x - lse)[..., None] * y for x, y in zip(lses, outputs, strict=True))
    assert_close((output, lse), oracle.attention(**inputs), **FLOAT32)


def test_alignment_at_the_end_is_the_end_of_the_whole(implementation):
    """Decoding: the last queries against all keys, as they were within all queries."""
    inputs = differentiable(Case(num_queries=17), dtype=np.float32)
    options = {"is_causal": True, "local_window_size": (7, 0)}
    whole = oracle.attention(**inputs, **options)
    inputs["query"] = inputs["query"][:, -6:]
    attention = call(Case(options=options | {"alignment": "end"}), implementation)
    assert_close(jit(attention)(inputs, {}), [x[:, -6:] for x in whole], **FLOAT32)
