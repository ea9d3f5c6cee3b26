"""In bfloat16: which numbers are in it, which are not, and how far the answers then are.

The yardstick is what float32 makes of parameters that alone were rounded: where answers or their
gradients depend on them strongly, they do so on all that is rounded.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models import MIXERS, POSITIONS
from experiments.models.decoder import Decoder
from tests.attn.cases import jit
from tests.experiments.models.drawn import (
    BATCH,
    LENGTH,
    LONGEST,
    SMALL,
    VOCABULARY,
    draw_inputs,
    model,
)

EPSILON = 2.0**-8
"""The most by which a number is rounded, as a share of it."""
WITH_MLP = dataclasses.replace(SMALL, mlp_ratio=2)
every_model = pytest.mark.parametrize(
    "config",
    [
        dataclasses.replace(WITH_MLP, mixer=mixer, position=position)
        for mixer in MIXERS
        for position in POSITIONS
        if mixer == "attention" or position == "none"
    ],
    ids=lambda config: f"{config.mixer}-{config.position}",
)
every_mixer = pytest.mark.parametrize("mixer", MIXERS)


def in_bfloat16(config):
    return dataclasses.replace(config, dtype="bfloat16")


def round_to_bfloat16(x):
    return x.astype(jnp.bfloat16).astype(np.float32)


def error(rounded, exact):
    """Of trees of arrays: their distance over the length of the exact one."""
    pairs = zip(jax.tree.leaves(rounded), jax.tree.leaves(exact), strict=True)
    differences = [np.ravel(np.asarray(x, np.float64) - y) for x, y in pairs]
    lengths = [np.ravel(x) for x in jax.tree.leaves(exact)]
    return np.linalg.norm(np.concatenate(differences)) / np.linalg.norm(np.concatenate(lengths))


@every_model
@pytest.mark.parametrize(("vocabulary", "classes"), [(VOCABULARY, VOCABULARY), (None, None)])
def test_parameters_are_those_of_float32(config, vocabulary, classes):
    inputs = draw_inputs(np.random.default_rng(0), vocabulary)
    asked = np.zeros((BATCH, LENGTH), np.int32)
    shapes = [
        jax.eval_shape(
            Decoder(config, vocabulary, classes, LONGEST).init, jax.random.key(0), inputs, asked
        )
        for config in (config, in_bfloat16(config))
    ]
    assert shapes[0] == shapes[1]
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}


@every_model
@pytest.mark.parametrize(("vocabulary", "classes"), [(VOCABULARY, VOCABULARY), (None, 7)])
def test_layers_pass_on_bfloat16_and_answers_are_float32(config, vocabulary, classes):
    config = dataclasses.replace(config, num_layers=2)
    params = model(config, vocabulary, classes).params
    inputs = draw_inputs(np.random.default_rng(0), vocabulary)
    decoder = Decoder(in_bfloat16(config), vocabulary, classes, LONGEST)
    asked = np.zeros((BATCH, 3), np.int32)
    answers, seen = jax.eval_shape(
        lambda params: decoder.apply({"params": params}, inputs, asked, capture_intermediates=True),
        params,
    )
    assert answers.dtype == jnp.float32
    layers = {
        name: value["__call__"][0].dtype
        for name, value in seen["intermediates"].items()
        if "__call__" in value
    }
    for name in ("norm_0", "convolution_0", "mixer_0", "mlp_norm_0", "norm_1"):
        assert layers[name] == jnp.bfloat16, name
    assert layers["norm_out"] == jnp.float32
    for weights in seen["intermediates"]["mixer_0"].get("weights", ()):
        assert weights.dtype == jnp.float32


@pytest.mark.parametrize(
    ("mixer", "products"),
    [
        ("attention", 4),
        ("window", 4),
        ("none", 0),
        ("gru", 6),
        ("lstm", 2),  # each of four matrices side by side
        ("long_convolution", 4),
        ("ssd", 5),
        ("delta_rule", 4),
    ],
)
def test_every_projection_is_a_product_in_bfloat16(mixer, products):
    module = MIXERS[mixer](dataclasses.replace(SMALL, mixer=mixer))
    x = jnp.zeros((BATCH, LENGTH, SMALL.width), jnp.bfloat16)
    params = jax.eval_shape(module.init, jax.random.key(0), x)
    program = str(jax.make_jaxpr(module.apply)(params, x))
    assert len(re.findall(r":bf16\[[\d,]*\] = dot_general", program)) == products


SUMS = ("cumsum", "exp", "log1p", "reduce_max", "reduce_sum", "rsqrt")


@every_mixer
def test_no_state_and_no_sum_or_exponential_is_in_bfloat16(mixer):
    module = MIXERS[mixer](dataclasses.replace(SMALL, mixer=mixer))
    x = jnp.zeros((BATCH, LONGEST, SMALL.width), jnp.bfloat16)
    params = jax.eval_shape(module.init, jax.random.key(0), x)
    for equation in equations(jax.make_jaxpr(module.apply)(params, x).jaxpr):
        name = equation.primitive.name
        results = equation.outvars[: int(name in SUMS)]
        if name == "scan":  # Its states are as each step gives them; what else it gives is stacked.
            of_step = zip(equation.outvars, equation.params["jaxpr"].jaxpr.outvars, strict=True)
            results = [x for x, y in of_step if x.aval.shape == y.aval.shape]
        for result in results:
            assert result.aval.dtype != jnp.bfloat16, equation


@pytest.mark.skipif(
    jax.__version_info__ >= (0, 11), reason="XLA of jax 0.11 sums on CPU in bfloat16, in products"
)
@every_mixer
def test_equal_rows_have_a_multiple_of_the_gradient_of_one(mixer):
    """In bfloat16 a sum of equal terms stops growing at 256 of them.

    Flax's recurrent cells add up a step's rows in it, 64 here, which is what 8 roundings are for.
    """
    config = in_bfloat16(dataclasses.replace(WITH_MLP, mixer=mixer))
    params, (row, _) = model(config).params, draw_inputs(np.random.default_rng(3))
    decoder = Decoder(config, VOCABULARY, VOCABULARY, LONGEST)

    def gradient(times):
        tokens = np.broadcast_to(row, (times, LENGTH))
        everywhere = np.broadcast_to(np.arange(LENGTH), tokens.shape)

        def total(params):
            return decoder.apply({"params": params}, tokens, everywhere)[..., 0].sum()

        return jit(jax.grad(total))(params)

    one, many = gradient(1), gradient(64)
    for leaf, sums in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        assert np.linalg.norm(sums - 64 * leaf) <= 8 * EPSILON * np.linalg.norm(64 * leaf)


def equations(jaxpr):
    """Those of a program and of all programs in it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@every_model
def test_answers_and_gradients_are_near_those_of_float32(config):
    params = model(config).params
    tokens = draw_inputs(np.random.default_rng(1), length=LONGEST)
    everywhere = np.broadcast_to(np.arange(LONGEST), tokens.shape)
    signs = np.random.default_rng(2).choice([-1.0, 1.0], (*tokens.shape, VOCABULARY))

    @functools.cache
    def compiled(config):
        decoder = Decoder(config, VOCABULARY, VOCABULARY, LONGEST)

        def mean(params):
            answers = decoder.apply({"params": params}, tokens, everywhere)
            return jnp.mean(signs * answers), answers

        return jit(jax.grad(mean, has_aux=True))

    def answers_and_gradient(config, params):
        gradient, answers = compiled(config)(params)
        return answers, gradient

    exact = answers_and_gradient(config, params)
    rounded = answers_and_gradient(in_bfloat16(config), params)
    yardstick = answers_and_gradient(config, jax.tree.map(round_to_bfloat16, params))
    for leaf in jax.tree.leaves(rounded):
        assert leaf.dtype == jnp.float32
        assert np.isfinite(leaf).all()
    for x, y, z in zip(rounded, yardstick, exact, strict=True):
        assert 0 < error(x, z) < 3 * error(y, z)
    assert error(rounded[0], exact[0]) < 8 * EPSILON
