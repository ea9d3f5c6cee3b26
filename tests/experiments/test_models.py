"""The decoder and its mixers: what an answer may depend on, and that it does.

Parameters are drawn by NumPy, all of them, so that no tap or scale hides behind a one or a zero.
A dependency is absent when changing the token leaves logits bitwise the same, or when the
derivative is exactly zero; no tolerance is involved.
"""

import dataclasses
import functools
import itertools
import typing
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from experiments.config import Config, EvaluateConfig, ModelConfig, PositionCode
from experiments.models import MIXERS
from experiments.models.decoder import Decoder, ShortConvolution, build_decoder, receptive_field
from experiments.tasks import Induction, NoisyDigits
from experiments.train import initial_state

BATCH, LENGTH, VOCABULARY, FEATURES = 2, 13, 11, 5
SMALL = ModelConfig(width=12, num_layers=1, num_heads=3, window=4)
COMMON = {"embed", "norm_0", "convolution_0", "mixer_0", "norm_out"}
"""Parameters of every decoder of SMALL's shape."""
POSITION_CODES = typing.get_args(PositionCode)


class Model(NamedTuple):
    params: Any
    apply: Any
    """Jitted: params, inputs -> logits [B, L, C] of answers asked everywhere."""


@functools.cache
def model(config: ModelConfig, mixer: str, vocabulary: int | None = VOCABULARY, classes=VOCABULARY):
    decoder = Decoder(config, mixer, vocabulary, classes, LENGTH)
    asked = jnp.asarray(np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (BATCH, LENGTH)))
    rng = np.random.default_rng(0)
    inputs = jax.eval_shape(lambda: jnp.asarray(draw_inputs(rng, vocabulary)))
    shapes = jax.eval_shape(decoder.init, jax.random.key(0), inputs, asked)
    assert set(shapes) == {"params"}
    params = jax.tree.map(lambda x: rng.normal(0, 0.6, x.shape).astype(x.dtype), shapes["params"])
    return Model(params, jax.jit(lambda params, x: decoder.apply({"params": params}, x, asked)))


def draw_inputs(rng, vocabulary: int | None = VOCABULARY):
    if vocabulary is None:
        return rng.normal(size=(BATCH, LENGTH, FEATURES)).astype(np.float32)
    return rng.integers(0, vocabulary, (BATCH, LENGTH)).astype(np.int32)


def changed(tokens, position: int):
    """The same rows with another token at one position."""
    tokens = tokens.copy()
    tokens[:, position] = (tokens[:, position] + 1) % VOCABULARY
    return tokens


def differs(left, right):
    """Where logits [B, L, C] are not bitwise the same in every row and class: bool [L]."""
    same = np.asarray(left).view(np.uint32) == np.asarray(right).view(np.uint32)
    return ~same.all(axis=(0, 2))


every_model = pytest.mark.parametrize(
    ("mixer", "position", "convolution"), list(itertools.product(MIXERS, POSITION_CODES, (0, 3)))
)


@every_model
def test_no_answer_depends_on_a_later_token(mixer, position, convolution):
    config = dataclasses.replace(SMALL, position=position, short_convolution=convolution)
    params, apply = model(config, mixer)
    tokens = draw_inputs(np.random.default_rng(1))
    logits = apply(params, tokens)
    assert np.isfinite(logits).all()
    for place in (1, LENGTH // 2, LENGTH - 1):
        after = differs(logits, apply(params, changed(tokens, place)))
        assert not after[:place].any()
        assert after[place]


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize(("position", "convolution"), [("none", 3), ("rotary", 0)])
def test_gradient_is_exactly_zero_for_inputs_out_of_reach(mixer, position, convolution):
    config = dataclasses.replace(SMALL, position=position, short_convolution=convolution)
    params, apply = model(config, mixer, None, 7)
    rng = np.random.default_rng(2)
    cotangent = rng.normal(size=(BATCH, LENGTH, 7)).astype(np.float32)

    @jax.jit
    def gradients(inputs):
        _, pull = jax.vjp(functools.partial(apply, params), inputs)
        at_one_answer = jnp.eye(LENGTH)[:, None, :, None] * cotangent
        return jax.vmap(lambda g: pull(g)[0])(at_one_answer)

    by_answer_and_input = np.asarray(gradients(draw_inputs(rng, None)))
    assert np.isfinite(by_answer_and_input).all()
    depends = (by_answer_and_input != 0).any(axis=(1, 3))
    reach = receptive_field(config, mixer)
    distance = np.arange(LENGTH)[:, None] - np.arange(LENGTH)
    np.testing.assert_array_equal(
        depends, (distance >= 0) & (distance <= (LENGTH if reach is None else reach))
    )


@pytest.mark.parametrize(
    ("layers", "window", "convolution", "reach"),
    [(1, 1, 0, 0), (2, 3, 0, 4), (2, 3, 1, 4), (2, 3, 3, 8)],
)
def test_receptive_field_is_exact(layers, window, convolution, reach):
    config = dataclasses.replace(
        SMALL, num_layers=layers, window=window, short_convolution=convolution
    )
    assert receptive_field(config, "window") == reach
    params, apply = model(config, "window")
    tokens = draw_inputs(np.random.default_rng(3))
    logits = apply(params, tokens)
    for place in (0, 2):
        after = differs(logits, apply(params, changed(tokens, place)))
        expected = (np.arange(LENGTH) >= place) & (np.arange(LENGTH) <= place + reach)
        np.testing.assert_array_equal(after, expected)


def test_attention_reaches_any_distance():
    assert receptive_field(SMALL, "attention") is None
    params, apply = model(SMALL, "attention")
    tokens = draw_inputs(np.random.default_rng(4))
    assert differs(apply(params, tokens), apply(params, changed(tokens, 0))).all()


def test_a_window_as_long_as_the_row_is_attention():
    params, apply = model(SMALL, "attention")
    tokens = draw_inputs(np.random.default_rng(5))
    _, apply_window = model(dataclasses.replace(SMALL, window=LENGTH), "window")
    np.testing.assert_allclose(
        apply(params, tokens), apply_window(params, tokens), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("position", POSITION_CODES)
def test_order_is_seen_through_the_position_code_alone(position):
    config = dataclasses.replace(SMALL, position=position, short_convolution=0)
    params, apply = model(config, "attention")
    tokens = draw_inputs(np.random.default_rng(6))
    shuffled = np.concatenate([tokens[:, :-1][:, ::-1], tokens[:, -1:]], axis=1)
    last, other = apply(params, tokens)[:, -1], apply(params, shuffled)[:, -1]
    difference = np.abs(last - other).max()
    assert difference < 1e-4 if position == "none" else difference > 1e-2


@pytest.mark.parametrize("position", POSITION_CODES)
def test_attention_and_window_start_from_the_same_parameters(position):
    config = Config(task=Induction(length=8), model=dataclasses.replace(SMALL, position=position))
    shapes = [
        jax.eval_shape(functools.partial(initial_state, config, mixer, ()))
        for mixer in ("attention", "window")
    ]
    assert jax.tree.structure(shapes[0]) == jax.tree.structure(shapes[1])
    assert jax.tree.leaves(shapes[0]) == jax.tree.leaves(shapes[1])


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_keeps_the_protocol(mixer):
    module = MIXERS[mixer]
    assert issubclass(module, linen.Module)
    x = jax.ShapeDtypeStruct((BATCH, LENGTH, SMALL.width), jnp.float32)
    mixed, variables = jax.eval_shape(module(SMALL).init_with_output, jax.random.key(0), x)
    assert mixed == x
    assert set(variables) <= {"params"}
    assert variables == jax.eval_shape(module(SMALL).init, jax.random.key(1), x)
    reach = module.reach(SMALL)
    assert reach is None or (isinstance(reach, int) and reach >= 0)


@pytest.mark.parametrize("mixer", ["attention", "window"])
def test_weights_are_sown_only_when_asked(mixer):
    decoder = Decoder(SMALL, mixer, VOCABULARY, VOCABULARY, LENGTH)
    params, apply = model(SMALL, mixer)
    tokens = draw_inputs(np.random.default_rng(7))
    asked = np.broadcast_to(np.arange(LENGTH), (BATCH, LENGTH))

    @jax.jit
    def look(params, tokens):
        return decoder.apply({"params": params}, tokens, asked, mutable=["intermediates"])

    plain = apply(params, tokens)
    assert isinstance(plain, jax.Array)
    logits, sown = look(params, tokens)
    np.testing.assert_allclose(plain, logits, rtol=1e-5, atol=1e-5)
    assert set(sown["intermediates"]) == {"mixer_0"}
    (weights,) = sown["intermediates"]["mixer_0"]["weights"]
    assert weights.shape == (BATCH, SMALL.num_heads, LENGTH, LENGTH)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    distance = np.arange(LENGTH)[:, None] - np.arange(LENGTH)
    seen = (distance >= 0) & ((distance < SMALL.window) | (mixer == "attention"))
    np.testing.assert_array_equal((weights > 0).all(axis=(0, 1)), seen)
    np.testing.assert_array_equal((weights != 0).any(axis=(0, 1)), seen)


@pytest.mark.parametrize(("size", "length"), [(1, 5), (3, 7), (4, 2)])
def test_short_convolution_is_its_sum(size, length):
    rng = np.random.default_rng(8)
    x = rng.normal(size=(2, length, 3)).astype(np.float32)
    taps = rng.normal(size=(size, 3)).astype(np.float32)
    expected = np.zeros(x.shape)
    for t in range(length):
        for i in range(min(size, t + 1)):
            expected[:, t] += taps[i].astype(np.float64) * x[:, t - i]
    result = ShortConvolution(size).apply({"params": {"taps": taps}}, x)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_short_convolution_starts_with_most_weight_on_the_token_itself():
    x = jnp.zeros((1, 4, 1024))
    taps = ShortConvolution(3).init(jax.random.key(0), x)["params"]["taps"]
    np.testing.assert_allclose(taps.mean(axis=1), [1, 0, 0], atol=0.1)


def test_answers_are_those_of_the_positions_asked():
    params, apply = model(SMALL, "attention")
    tokens = draw_inputs(np.random.default_rng(9))
    decoder = Decoder(SMALL, "attention", VOCABULARY, VOCABULARY, LENGTH)
    asked = np.array([[5, 2, 12], [0, 12, 1]])
    logits = jax.jit(decoder.apply)({"params": params}, tokens, asked)
    everywhere = np.asarray(apply(params, tokens))
    expected = np.take_along_axis(everywhere, asked[..., None], axis=1)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_answers_that_are_tokens_use_the_embedding_itself():
    params, apply = model(SMALL, "attention")
    assert set(params) == COMMON
    tokens = draw_inputs(np.random.default_rng(10), VOCABULARY - 2)
    table = params["embed"]["embedding"]
    swapped = {**params, "embed": {"embedding": table[[*range(9), 10, 9]]}}
    logits, others = apply(params, tokens), apply(swapped, tokens)
    np.testing.assert_array_equal(logits[..., [*range(9), 10, 9]], others)
    assert differs(logits, others).all()


@pytest.mark.parametrize(
    ("vocabulary", "classes", "ratio", "expected"),
    [
        (VOCABULARY, 7, 0, {"answer"}),
        (None, 7, 0, {"answer"}),
        (VOCABULARY, VOCABULARY, 2, {"mlp_norm_0", "mlp_in_0", "mlp_out_0"}),
    ],
)
def test_head_and_mlp_are_there_where_they_are_needed(vocabulary, classes, ratio, expected):
    config = dataclasses.replace(SMALL, mlp_ratio=ratio)
    params, apply = model(config, "attention", vocabulary, classes)
    assert set(params) == COMMON | expected
    logits = apply(params, draw_inputs(np.random.default_rng(11), vocabulary))
    assert logits.shape == (BATCH, LENGTH, classes)
    assert np.isfinite(logits).all()
    if ratio:
        assert params["mlp_in_0"]["kernel"].shape == (config.width, ratio * config.width)
        without = {**params, "mlp_out_0": jax.tree.map(np.zeros_like, params["mlp_out_0"])}
        tokens = draw_inputs(np.random.default_rng(11), vocabulary)
        plain = model(SMALL, "attention").apply
        skipped = {name: params[name] for name in COMMON}
        np.testing.assert_allclose(
            apply(without, tokens), plain(skipped, tokens), rtol=1e-5, atol=1e-5
        )


def test_a_decoder_is_built_from_its_task():
    decoder = build_decoder(NoisyDigits(length=9), SMALL, "window")
    assert (decoder.vocab_size, decoder.num_classes, decoder.max_length) == (None, 10, 9)
    decoder = build_decoder(Induction(length=8), SMALL, "window")
    assert (decoder.vocab_size, decoder.num_classes, decoder.max_length) == (17, 17, 8)
    assert (decoder.config, decoder.mixer) == (SMALL, "window")


def test_a_learned_position_code_refuses_longer_rows_in_the_config():
    learned = dataclasses.replace(SMALL, position="learned")
    with pytest.raises(ValueError, match=r"lengths is \(9,\).*8.*learned"):
        Config(task=Induction(length=8), model=learned, evaluate=EvaluateConfig(lengths=(9,)))
