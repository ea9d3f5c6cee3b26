"""FLOPs of a step, against what its sizes say."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from experiments.config import Config, ModelConfig, TrainConfig
from experiments.flops import flops_of, products
from experiments.mesh import MeshConfig
from experiments.runs import places_for
from experiments.tasks import Recall
from experiments.train import build_program

X = jnp.zeros((4, 6))
CONFIG = Config(
    task=Recall(vocab_size=16, length=16, num_pairs=2),
    models=("none", "attention", "gru"),
    model=ModelConfig(width=8, num_layers=2, short_convolution=0, mlp_ratio=2),
    train=TrainConfig(steps=4, batch_size=4, steps_per_dispatch=2, checkpoint_every=2),
)
TOKENS, ANSWERS = 4 * 16, 4 * 2


def found(model, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    program = build_program(config, model, places_for(config.mesh, 1), ())
    return flops_of(config, model, program, ())


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (jnp.sin, 0),
        (lambda x: x @ x.T, 2 * 4 * 6 * 4),
        (lambda x: jnp.einsum("ij,kj->k", x, x), 2 * 6 * 4),
        (jax.jit(lambda x: jnp.sum(jax.vmap(jnp.dot, (0, None))(x, x[0]))), 2 * 4 * 6),
        (
            lambda x: lax.scan(lambda x, _: (x @ x.T @ x, None), x, length=5)[0],
            5 * 2 * 2 * 4 * 6 * 4,
        ),
        (lambda x: lax.cond(x[0, 0] > 0, lambda x: x @ x.T @ x, lambda x: x, x), 2 * 2 * 4 * 6 * 4),
        (lambda x: jnp.fft.fft(x), 5 * 4 * 6 * math.log2(6)),
        (lambda x: jnp.fft.irfft(jnp.fft.rfft(x)), 5 * 4 * 6 * math.log2(6)),
    ],
)
def test_products_are_counted(function, expected):
    assert products(jax.make_jaxpr(function)(X).jaxpr) == pytest.approx(expected)


def test_a_model_of_matrices_alone_takes_six_a_parameter_and_token():
    width, layers = 8, 2
    matrices = layers * 2 * width * 2 * width
    expected = 6 * (matrices * TOKENS + ANSWERS * width * 16)
    assert found("none") == pytest.approx(expected, rel=0.01)


def test_a_recurrence_is_counted_at_every_token():
    width, layers = 8, 2
    of_gates = layers * 3 * 2 * width * width
    assert found("gru") - found("none") == pytest.approx(6 * of_gates * TOKENS, rel=0.2)


@pytest.mark.parametrize("model", ["none", "gru", "attention"])
def test_they_are_of_one_run_and_step_wherever_it_is(model):
    train = dataclasses.replace(CONFIG.train, steps_per_dispatch=1)
    assert found(model, train=train) == found(model)
    assert found(model, mesh=MeshConfig(data=2)) == found(model)
