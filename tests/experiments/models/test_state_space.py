"""SSD: chunks are the recurrence, the recurrence is its plain loop, the mixer its equations."""

import functools

import jax
import numpy as np
import pytest

from experiments.models.state_space import SSD, chunked, recurrent
from tests.attn.cases import jit
from tests.experiments.models.drawn import SMALL, draw_mixer


def loop(query, key, value, log_gate):
    batch, length, heads, width = query.shape
    y = np.zeros(value.shape)
    for b in range(batch):
        for n in range(heads):
            state = np.zeros((width, value.shape[-1]))
            for t in range(length):
                gate = np.exp(log_gate[b, t, n])
                state = gate * state + np.outer(key[b, t, n], value[b, t, n])
                y[b, t, n] = query[b, t, n] @ state
    return y


def draw(length, scale=1.0):
    rng = np.random.default_rng(length)
    query, key = rng.normal(size=(2, 2, length, 3, 5))
    value = rng.normal(size=(2, length, 3, 7))
    return query, key, value, -scale * np.exp(rng.normal(size=(2, length, 3)))


@pytest.mark.parametrize(("length", "chunk"), [(1, 8), (5, 8), (8, 8), (29, 8), (29, 1), (20, 64)])
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


@pytest.mark.parametrize("scale", [0.0, 1e-6, 100.0])
def test_gates_near_0_and_1_neither_overflow_nor_vanish_in_float32(scale):
    operands = [x.astype(np.float32) for x in draw(200, scale)]

    def total(*operands):
        return (chunked(*operands) ** 2).sum()

    y = jit(chunked)(*operands)
    gradients = jit(jax.grad(total, argnums=(0, 1, 2, 3)))(*operands)
    assert all(np.isfinite(x).all() for x in gradients)
    expected = loop(*(x.astype(np.float64) for x in operands))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_mixer_is_its_equations(float64):
    length, width, heads = 9, SMALL.width, SMALL.num_heads
    params, x, y = draw_mixer(SSD, SMALL, length)

    def silu(x):
        return x / (1 + np.exp(-x))

    query, key, value, gate = (
        silu(np.einsum("btd,dnh->btnh", x, params[name]["kernel"]))
        for name in ("query", "key", "value", "gate")
    )
    dt = np.log1p(np.exp(x @ params["step"]["kernel"] + params["step"]["bias"]))
    log_gate = -dt * np.exp(params["log_rate"])
    read = loop(query, dt[..., None] * key, value, log_gate)
    read = ((read + params["skip"][:, None] * value) * gate).reshape(-1, length, width)
    read /= np.sqrt((read**2).mean(-1, keepdims=True) + 1e-6)
    expected = (read * params["norm"]["scale"]) @ params["out"]["kernel"]
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)
    assert heads > 1


def test_heads_start_with_memories_from_10_to_1000_tokens():
    x = np.zeros((1, 4, SMALL.width), np.float32)
    params = jit(SSD(SMALL).init)(jax.random.key(0), x)["params"]
    steps = np.log1p(np.exp(np.asarray(params["step"]["bias"], np.float64)))
    memories = 1 / (steps * np.exp(params["log_rate"]))
    np.testing.assert_allclose(memories, 10 ** np.array([4 / 3, 2, 8 / 3]), rtol=1e-4)
