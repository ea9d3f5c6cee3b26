"""The decoder: its reach, its head, its codes, what it keeps of the embedded inputs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.config import Config, EvaluateConfig
from experiments.models import POSITIONS
from experiments.models.decoder import Decoder, ShortConvolution, build_decoder, receptive_field
from experiments.tasks import Induction, NoisyDigits
from tests.attn.cases import jit
from tests.experiments.models.drawn import (
    BATCH,
    LENGTH,
    SMALL,
    VOCABULARY,
    changed,
    differs,
    draw_inputs,
    model,
)

COMMON = {"embed", "norm_0", "convolution_0", "mixer_0", "norm_out"}
"""Parameters of every decoder of SMALL's shape."""
WINDOW = dataclasses.replace(SMALL, mixer="window")


@pytest.mark.parametrize(
    ("layers", "window", "convolution", "reach"),
    [(1, 1, 0, 0), (2, 3, 0, 4), (2, 3, 1, 4), (2, 3, 3, 8)],
)
def test_receptive_field_is_exact(layers, window, convolution, reach):
    config = dataclasses.replace(
        WINDOW, num_layers=layers, window=window, short_convolution=convolution
    )
    assert receptive_field(config) == reach
    params, apply, _ = model(config)
    tokens = draw_inputs(np.random.default_rng(3))
    logits = apply(params, tokens)
    for place in (0, 2):
        after = differs(logits, apply(params, changed(tokens, place)))
        expected = (np.arange(LENGTH) >= place) & (np.arange(LENGTH) <= place + reach)
        np.testing.assert_array_equal(after, expected)


def test_attention_reaches_any_distance():
    assert receptive_field(SMALL) is None
    params, apply, _ = model(SMALL)
    tokens = draw_inputs(np.random.default_rng(4))
    assert differs(apply(params, tokens), apply(params, changed(tokens, 0))).all()


def test_a_window_as_long_as_the_row_is_attention():
    params, apply, _ = model(SMALL)
    tokens = draw_inputs(np.random.default_rng(5))
    _, apply_window, _ = model(dataclasses.replace(WINDOW, window=LENGTH))
    np.testing.assert_allclose(
        apply(params, tokens), apply_window(params, tokens), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("position", POSITIONS)
def test_order_is_seen_through_the_position_code_alone(position):
    config = dataclasses.replace(SMALL, position=position, short_convolution=0)
    params, apply, _ = model(config)
    tokens = draw_inputs(np.random.default_rng(6))
    shuffled = np.concatenate([tokens[:, :-1][:, ::-1], tokens[:, -1:]], axis=1)
    last, other = apply(params, tokens)[:, -1], apply(params, shuffled)[:, -1]
    difference = np.abs(last - other).max()
    assert difference < 1e-4 if position == "none" else difference > 1e-2


@pytest.mark.parametrize("position", POSITIONS)
def test_attention_and_window_start_from_the_same_parameters(position):
    tokens = jnp.zeros((BATCH, LENGTH), jnp.int32)
    configs = [dataclasses.replace(config, position=position) for config in (SMALL, WINDOW)]
    shapes = [
        jax.eval_shape(Decoder(config, 11, 11, 13).init, jax.random.key(0), tokens, tokens)
        for config in configs
    ]
    assert shapes[0] == shapes[1]
    table = shapes[0]["params"]["mixer_0"].get("relative")
    assert (table.shape == (32, SMALL.num_heads)) if position == "relative" else table is None


def test_alibi_and_relative_codes_are_their_biases():
    tokens = draw_inputs(np.random.default_rng(12))
    asked = np.broadcast_to(np.arange(LENGTH), tokens.shape)
    distance = np.arange(LENGTH)[:, None] - np.arange(LENGTH)

    def weights_of(position, params):
        decoder = Decoder(
            dataclasses.replace(SMALL, position=position), VOCABULARY, VOCABULARY, LENGTH
        )
        look = jit(lambda p: decoder.apply(p, tokens, asked, mutable=["intermediates"])[1])
        (weights,) = look({"params": params})["intermediates"]["mixer_0"]["weights"]
        return np.asarray(weights, np.float64)

    params = model(SMALL).params
    table = np.random.default_rng(15).normal(size=(32, SMALL.num_heads)).astype(np.float32)
    coded = {**params, "mixer_0": {**params["mixer_0"], "relative": table}}
    plain = weights_of("none", params)
    biases = {
        "alibi": -np.array([2**-4, 2**-8, 2**-2])[:, None, None] * distance,
        # Below 16 tokens, each distance has a bucket of its own.
        "relative": np.moveaxis(table[np.maximum(distance, 0)], -1, 0),
    }
    for position, bias in biases.items():
        expected = plain * np.exp(np.where(distance >= 0, bias, 0))
        expected /= expected.sum(-1, keepdims=True)
        weights = weights_of(position, coded if position == "relative" else params)
        np.testing.assert_allclose(weights, expected, rtol=1e-4, atol=1e-6)


def test_the_perturbation_is_that_of_the_embedding():
    params = model(SMALL).params
    tokens = draw_inputs(np.random.default_rng(13))
    decoder = Decoder(SMALL, VOCABULARY, VOCABULARY, LENGTH)
    asked = np.broadcast_to(np.arange(LENGTH), tokens.shape)
    table = params["embed"]["embedding"]
    # Real inputs of one-hot tokens have the embedding as a matrix, and none of its other use.
    real = Decoder(SMALL, None, VOCABULARY, LENGTH)
    shared = {
        **params,
        "embed": {"kernel": table, "bias": np.zeros(SMALL.width, np.float32)},
        "answer": {"kernel": table.T, "bias": np.zeros(VOCABULARY, np.float32)},
    }

    @jit
    def by_input(x):
        return jax.grad(lambda x: real.apply({"params": shared}, x, asked)[:, -1, 0].sum())(x)

    @jit
    def by_embedded(embedded):
        def answer(embedded):
            variables = {"params": params, "perturbations": {"embedded": embedded}}
            return decoder.apply(variables, tokens, asked)[:, -1, 0].sum()

        return jax.grad(answer)(embedded)

    zeros = np.zeros((BATCH, LENGTH, SMALL.width), np.float32)
    expected = by_input(np.eye(VOCABULARY, dtype=np.float32)[tokens])
    np.testing.assert_allclose(by_embedded(zeros) @ table.T, expected, rtol=1e-4, atol=1e-5)


def test_perturbations_that_are_not_passed_cost_nothing():
    params = model(SMALL).params
    decoder = Decoder(SMALL, VOCABULARY, VOCABULARY, LENGTH)
    tokens = jnp.zeros((BATCH, LENGTH), jnp.int32)

    def additions(**collections):
        variables = {"params": params, **collections}
        jaxpr = jax.make_jaxpr(lambda x: decoder.apply(variables, x, tokens))(tokens)
        return str(jaxpr).count("= add ")

    zeros = jnp.zeros((BATCH, LENGTH, SMALL.width))
    assert additions(perturbations={"embedded": zeros}) == additions() + 1


def test_answers_that_are_numbers_have_no_class_axis():
    for vocabulary in (None, VOCABULARY):
        params, apply, _ = model(SMALL, vocabulary, None)
        assert set(params) == COMMON | {"answer"}
        assert params["answer"]["kernel"].shape == (SMALL.width, 1)
        inputs = draw_inputs(np.random.default_rng(14), vocabulary)
        numbers = apply(params, inputs)
        assert numbers.shape == (BATCH, LENGTH)
        moved = {**params, "answer": {**params["answer"], "bias": params["answer"]["bias"] + 1}}
        np.testing.assert_allclose(apply(moved, inputs), numbers + 1, rtol=1e-5, atol=1e-5)


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
    params, apply, _ = model(SMALL)
    tokens = draw_inputs(np.random.default_rng(9))
    decoder = Decoder(SMALL, VOCABULARY, VOCABULARY, LENGTH)
    asked = np.array([[5, 2, 12], [0, 12, 1]])
    logits = jit(decoder.apply)({"params": params}, tokens, asked)
    everywhere = np.asarray(apply(params, tokens))
    expected = np.take_along_axis(everywhere, asked[..., None], axis=1)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_answers_that_are_tokens_use_the_embedding_itself():
    params, apply, _ = model(SMALL)
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
    params, apply, _ = model(config, vocabulary, classes)
    assert set(params) == COMMON | expected
    logits = apply(params, draw_inputs(np.random.default_rng(11), vocabulary))
    assert logits.shape == (BATCH, LENGTH, classes)
    assert np.isfinite(logits).all()
    if ratio:
        assert params["mlp_in_0"]["kernel"].shape == (config.width, ratio * config.width)
        without = {**params, "mlp_out_0": jax.tree.map(np.zeros_like, params["mlp_out_0"])}
        tokens = draw_inputs(np.random.default_rng(11), vocabulary)
        plain = model(SMALL).apply
        skipped = {name: params[name] for name in COMMON}
        np.testing.assert_allclose(
            apply(without, tokens), plain(skipped, tokens), rtol=1e-5, atol=1e-5
        )


def test_a_decoder_is_built_from_its_task():
    decoder = build_decoder(NoisyDigits(length=9), SMALL)
    assert (decoder.vocab_size, decoder.num_classes, decoder.max_length) == (None, 10, 9)
    decoder = build_decoder(Induction(length=8), WINDOW)
    assert (decoder.vocab_size, decoder.num_classes, decoder.max_length) == (17, 17, 8)
    assert decoder.config == WINDOW


def test_a_learned_position_code_refuses_longer_rows_in_the_config():
    learned = dataclasses.replace(SMALL, position="learned")
    with pytest.raises(ValueError, match=r"lengths has 9; .*8.*learned"):
        Config(
            task=Induction(length=8),
            models=("attention",),
            model=learned,
            evaluate=EvaluateConfig(lengths=(9,)),
        )
