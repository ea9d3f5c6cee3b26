"""What every mixer of the registry keeps: no look ahead, no more reach than it says, any length.

A dependency is absent when changing the token leaves answers bitwise the same, or when the
derivative is exactly zero; no tolerance is involved.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from experiments.config import ModelConfig
from experiments.models import MIXERS, POSITIONS
from experiments.models.decoder import Decoder, receptive_field, state_bytes
from tests.attn.cases import jit
from tests.experiments.models.drawn import (
    BATCH,
    LENGTH,
    LONGEST,
    SMALL,
    VOCABULARY,
    changed,
    differs,
    draw_inputs,
    model,
)

OF_SCORES = [name for name, position in POSITIONS.items() if position.needs_scores]
WITH_WEIGHTS = [name for name, mixer in MIXERS.items() if mixer.has_weights]
every_mixer = pytest.mark.parametrize("mixer", MIXERS)
every_model = pytest.mark.parametrize(
    "config",
    [
        dataclasses.replace(SMALL, mixer=mixer, position=position, short_convolution=size)
        for mixer, module in MIXERS.items()
        for place, position in enumerate(POSITIONS)
        for size in (0, 3)
        if module.takes_scores or position not in OF_SCORES
        # Every pair for attention; for the others both sizes, and every code at one of them.
        if mixer == "attention" or place == 0 or size == 3 * (place % 2)
    ],
    ids=lambda config: f"{config.mixer}-{config.position}-{config.short_convolution}",
)


def expected_dependence(config, length):
    """Which answers depend on which inputs: bool [answer, input]."""
    distance = np.arange(length)[:, None] - np.arange(length)
    reach = receptive_field(config)
    return (distance >= 0) & (distance <= (length if reach is None else reach))


@every_model
def test_an_answer_depends_on_what_it_reaches_and_on_no_later_token(config):
    params, apply, _ = model(config)
    tokens = draw_inputs(np.random.default_rng(1))
    answers = apply(params, tokens)
    assert np.isfinite(answers).all()
    for place in (0, 1, LENGTH // 2, LENGTH - 1):
        after = differs(answers, apply(params, changed(tokens, place)))
        np.testing.assert_array_equal(after, expected_dependence(config, LENGTH)[:, place])


@every_mixer
@pytest.mark.parametrize(
    ("position", "convolution", "dtype", "compile"),
    # One of them as a model in use is compiled: to be exact must not hang on that.
    [("none", 0, "float32", jit), ("learned", 3, "float32", jax.jit), ("none", 3, "bfloat16", jit)],
    ids=["none-0", "learned-3", "none-3-bfloat16"],
)
def test_gradient_is_zero_for_inputs_out_of_reach_and_for_no_other(
    mixer, position, convolution, dtype, compile
):
    config = dataclasses.replace(
        SMALL, mixer=mixer, position=position, short_convolution=convolution, dtype=dtype
    )
    params, _, gradient = model(config)
    by_answer_and_input = np.asarray(
        compile(gradient)(params, draw_inputs(np.random.default_rng(2)))
    )
    assert np.isfinite(by_answer_and_input).all()
    depends = (by_answer_and_input != 0).any(axis=(1, 3))
    np.testing.assert_array_equal(depends, expected_dependence(config, LENGTH))


@every_mixer
def test_a_row_is_read_as_its_prefix_was(mixer):
    params, apply, _ = model(dataclasses.replace(SMALL, mixer=mixer, position="learned"))
    tokens = draw_inputs(np.random.default_rng(3), length=LONGEST)
    longest = np.asarray(apply(params, tokens))
    assert np.isfinite(longest).all()
    for length in (1, 13, 64):
        shorter = apply(params, tokens[:, :length])
        np.testing.assert_allclose(shorter, longest[:, :length], rtol=1e-4, atol=1e-4)


@every_mixer
def test_no_later_token_matters_in_a_row_of_several_chunks(mixer):
    config = dataclasses.replace(SMALL, mixer=mixer, position="learned")
    params, apply, _ = model(config)
    tokens = draw_inputs(np.random.default_rng(4), length=LONGEST)
    answers = apply(params, tokens)
    for place in (31, 32, 63, 64, 70):
        after = differs(answers, apply(params, changed(tokens, place)))
        assert not after[:place].any()
        assert after[place]


@every_mixer
def test_a_mixer_is_a_module_of_parameters_alone_and_keeps_the_dtype(mixer, float64):
    module = MIXERS[mixer]
    assert issubclass(module, linen.Module)
    x = jax.ShapeDtypeStruct((BATCH, LENGTH, SMALL.width), jnp.float32)
    mixed, variables = jax.eval_shape(module(SMALL).init_with_output, jax.random.key(0), x)
    assert (mixed.shape, mixed.dtype) == (x.shape, jnp.float32)
    assert set(variables) <= {"params"}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} <= {jnp.dtype(jnp.float32)}


@every_mixer
def test_neither_start_nor_gradient_calls_lapack(mixer):
    """On CPU such calls of several layers, mapped over seeds, can wait for each other forever."""
    module, x = MIXERS[mixer](SMALL), jnp.zeros((BATCH, LENGTH, SMALL.width))
    params = jax.eval_shape(module.init, jax.random.key(0), x)
    program = jax.jit(jax.vmap(module.init, (0, None))).trace(
        jax.random.split(jax.random.key(0), 2), x
    )
    backward = jax.jit(jax.grad(lambda params: module.apply(params, x).sum())).trace(params)
    for traced in (program, backward):
        assert "lapack" not in traced.lower().as_text()


@every_mixer
def test_a_reach_is_a_distance_or_none(mixer):
    reach = MIXERS[mixer].reach(SMALL)
    assert reach is None or (isinstance(reach, int) and reach >= 0)


WIDTH, HEADS = SMALL.width, SMALL.num_heads
PARAMETERS = {
    "attention": 4 * WIDTH**2,
    "window": 4 * WIDTH**2,
    "none": 0,
    "gru": 6 * WIDTH**2 + 4 * WIDTH,
    "lstm": 8 * WIDTH**2 + 4 * WIDTH,
    "long_convolution": 4 * WIDTH**2 + 35 * WIDTH + 2112,
    "ssd": 5 * WIDTH**2 + (WIDTH + 3) * HEADS + WIDTH,
    "delta_rule": 4 * WIDTH**2 + WIDTH * HEADS + WIDTH // HEADS,
}


@pytest.mark.parametrize("mixer", MIXERS)
def test_parameters_are_as_many_as_the_docstring_says(mixer):
    assert mixer in PARAMETERS, f"expected a row of {mixer!r} in PARAMETERS"
    x = jax.ShapeDtypeStruct((BATCH, LENGTH, WIDTH), jnp.float32)
    variables = jax.eval_shape(MIXERS[mixer](SMALL).init, jax.random.key(0), x)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == PARAMETERS[mixer]


@every_mixer
def test_a_state_is_a_number_of_bytes_that_grows_with_the_row_if_at_all(mixer):
    sizes = [MIXERS[mixer].state_bytes(SMALL, length) for length in (1, 3, 100)]
    assert all(isinstance(size, int) for size in sizes)
    assert 0 <= sizes[0] <= sizes[1] <= sizes[2]


STATES = {
    "attention": (2 * 3 * 12 * 4, 2 * 100 * 12 * 4),
    "window": (2 * 3 * 12 * 4, 2 * 4 * 12 * 4),
    "none": (0, 0),
    "gru": (12 * 4, 12 * 4),
    "lstm": (2 * 12 * 4, 2 * 12 * 4),
    "long_convolution": (3 * 12 * 4, 100 * 12 * 4),
    "ssd": (3 * 4 * 4 * 4, 3 * 4 * 4 * 4),
    "delta_rule": (3 * 4 * 4 * 4, 3 * 4 * 4 * 4),
}
"""Bytes of a layer's state of 3 and of 100 positions."""


@pytest.mark.parametrize("mixer", MIXERS)
def test_state_is_what_reading_on_takes(mixer):
    assert mixer in STATES, f"expected a row of {mixer!r} in STATES"
    short, long = STATES[mixer]
    config = dataclasses.replace(SMALL, mixer=mixer, num_layers=2, short_convolution=0)
    assert MIXERS[mixer].state_bytes(config, 3) == short
    assert (state_bytes(config, 3), state_bytes(config, 100)) == (2 * short, 2 * long)
    convolved = dataclasses.replace(config, short_convolution=3)
    assert state_bytes(convolved, 100) == 2 * (long + 2 * 12 * 4)
    assert state_bytes(convolved, 1) == state_bytes(config, 1) + 2 * 12 * 4


@every_mixer
@pytest.mark.parametrize("position", OF_SCORES)
def test_codes_of_scores_are_refused_where_there_are_no_scores(mixer, position):
    if MIXERS[mixer].takes_scores:
        assert ModelConfig(mixer=mixer, position=position).position == position
    else:
        with pytest.raises(ValueError, match=f"mixer is '{mixer}'; .*attention.*'{position}'"):
            ModelConfig(mixer=mixer, position=position)


@pytest.mark.parametrize("mixer", WITH_WEIGHTS)
def test_a_blocked_source_is_not_seen(mixer):
    config = dataclasses.replace(SMALL, mixer=mixer, short_convolution=0, position="relative")
    params, apply, _ = model(config)
    tokens = draw_inputs(np.random.default_rng(5))
    source, queries = 5, [6, 8]
    blocked = np.zeros((BATCH, LENGTH, LENGTH), bool)
    blocked[:, queries, source] = True
    answers = apply(params, tokens, blocked)
    after = differs(answers, apply(params, changed(tokens, source), blocked))
    expected = expected_dependence(config, LENGTH)[:, source]
    expected[queries] = False
    np.testing.assert_array_equal(after, expected)
    np.testing.assert_array_equal(differs(answers, apply(params, tokens))[[6, 7, 8]], [1, 0, 1])
    np.testing.assert_allclose(
        apply(params, tokens, np.zeros_like(blocked)), apply(params, tokens), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("mixer", WITH_WEIGHTS)
def test_weights_are_sown_only_when_asked_and_are_zero_where_blocked(mixer):
    config = dataclasses.replace(SMALL, mixer=mixer)
    decoder = Decoder(config, VOCABULARY, VOCABULARY, LONGEST)
    params, apply, _ = model(config)
    tokens = draw_inputs(np.random.default_rng(7))
    asked = np.broadcast_to(np.arange(LENGTH), (BATCH, LENGTH))
    blocked = np.zeros((BATCH, LENGTH, LENGTH), bool)
    blocked[:, 6, 5] = True

    @jit
    def look(params, tokens, blocked):
        variables = {"params": params}
        return decoder.apply(variables, tokens, asked, blocked, mutable=["intermediates"])

    plain = apply(params, tokens, blocked)
    assert isinstance(plain, jax.Array)
    answers, sown = look(params, tokens, blocked)
    np.testing.assert_allclose(plain, answers, rtol=1e-5, atol=1e-5)
    assert set(sown["intermediates"]) == {"mixer_0"}
    (weights,) = sown["intermediates"]["mixer_0"]["weights"]
    assert weights.shape == (BATCH, SMALL.num_heads, LENGTH, LENGTH)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    seen = expected_dependence(dataclasses.replace(config, short_convolution=0), LENGTH)
    seen[6, 5] = False
    np.testing.assert_array_equal((weights > 0).all(axis=(0, 1)), seen)
    np.testing.assert_array_equal((weights != 0).any(axis=(0, 1)), seen)


@pytest.mark.parametrize("mixer", [name for name in MIXERS if name not in WITH_WEIGHTS])
def test_nothing_is_blocked_where_there_are_no_weights(mixer):
    decoder = Decoder(dataclasses.replace(SMALL, mixer=mixer), VOCABULARY, VOCABULARY, LONGEST)
    tokens = jnp.zeros((BATCH, LENGTH), jnp.int32)
    blocked = jnp.zeros((BATCH, LENGTH, LENGTH), bool)
    with pytest.raises(ValueError, match=f"mixer is '{mixer}'; .*attention, window"):
        jax.eval_shape(decoder.init, jax.random.key(0), tokens, tokens, blocked)
