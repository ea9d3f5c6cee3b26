"""The delta rule: chunks are the recurrence, the recurrence its plain loop, and it overwrites."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models.delta_rule import DeltaRule, chunked, invert, normalize, recurrent
from tests.attn.cases import jit
from tests.experiments.models.drawn import SMALL, draw_mixer


def loop(query, key, value, rate):
    batch, length, heads, width = query.shape
    y = np.zeros(value.shape)
    for b in range(batch):
        for n in range(heads):
            state = np.zeros((value.shape[-1], width))
            for t in range(length):
                k, step = key[b, t, n], rate[b, t, n]
                state = state @ (np.eye(width) - step * np.outer(k, k))
                state += step * np.outer(value[b, t, n], k)
                y[b, t, n] = state @ query[b, t, n]
    return y


def draw(length):
    rng = np.random.default_rng(length)
    query, key = rng.normal(size=(2, 2, length, 3, 5))
    key /= np.linalg.norm(key, axis=-1, keepdims=True)
    value = rng.normal(size=(2, length, 3, 7))
    return query, key, value, rng.uniform(size=(2, length, 3))


@pytest.mark.parametrize(("length", "chunk"), [(1, 8), (5, 8), (8, 8), (29, 8), (9, 1), (20, 32)])
def test_chunks_and_recurrence_are_the_loop(length, chunk, float64):
    operands = draw(length)
    expected = loop(*operands)
    for y in (jit(recurrent)(*operands), jit(functools.partial(chunked, chunk=chunk))(*operands)):
        np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("length", [8, 29])
def test_chunks_have_the_gradient_of_the_recurrence(length, float64):
    operands = draw(length)
    cotangent = np.random.default_rng(0).normal(size=operands[2].shape)

    def gradient(function, *options):
        return jit(lambda *x: jax.vjp(lambda *x: function(*x, *options), *x)[1](cotangent))

    by_step = gradient(recurrent)(*operands)
    by_chunk = gradient(chunked, 8)(*operands)
    for left, right in zip(by_chunk, by_step, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-10, atol=1e-10)


def test_one_key_again_and_again_recalls_the_last_value_in_float32():
    _, key, value, _ = (x.astype(np.float32) for x in draw(100))
    key = np.broadcast_to(key[:, :1], key.shape)
    y = jit(chunked)(key, key, value, np.ones(key.shape[:3], np.float32))
    np.testing.assert_allclose(y, value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 16])
def test_inverse_and_its_derivative(size, float64):
    below = np.tril(np.random.default_rng(1).normal(size=(2, 3, size, size)), -1)
    direction = np.tril(np.random.default_rng(2).normal(size=below.shape), -1)

    def expected(below):
        return jnp.linalg.inv(jnp.eye(size) + below)

    for left, right in zip(
        jit(lambda *x: jax.jvp(invert, x[:1], x[1:]))(below, direction),
        jit(lambda *x: jax.jvp(expected, x[:1], x[1:]))(below, direction),
        strict=True,
    ):
        np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-9)


def test_models_of_several_seeds_have_the_gradient_of_each():
    operands = [np.stack([x, x[::-1]]).astype(np.float32) for x in draw(70)]
    gradient = jax.grad(lambda *x: (chunked(*x) ** 2).sum(), argnums=(0, 1, 2, 3))
    together = jit(jax.vmap(gradient))(*operands)
    alone = jit(gradient)
    for seed in range(2):
        for left, right in zip(together, alone(*(x[seed] for x in operands)), strict=True):
            np.testing.assert_allclose(left[seed], right, rtol=1e-3, atol=1e-3)


def test_mixer_is_its_equations(float64):
    length, width = 9, SMALL.width
    params, x, y = draw_mixer(DeltaRule, SMALL, length)
    query, key, value = (
        np.einsum("btd,dnh->btnh", x, params[name]["kernel"]) for name in ("query", "key", "value")
    )
    query, key = (z / (1 + np.exp(-z)) for z in (query, key))
    query, key = (z / np.sqrt((z**2).sum(-1, keepdims=True) + 1e-6) for z in (query, key))
    rate = 1 / (1 + np.exp(-x @ params["rate"]["kernel"]))
    read = loop(query, key, value, rate)
    read /= np.sqrt((read**2).mean(-1, keepdims=True) + 1e-6)
    read *= params["norm"]["scale"]
    expected = read.reshape(-1, length, width) @ params["out"]["kernel"]
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)


def test_a_vector_of_zeros_has_a_finite_gradient():
    gradient = jax.jacobian(normalize)(np.zeros(3, np.float32))
    assert np.isfinite(gradient).all()
