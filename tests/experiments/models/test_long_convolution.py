"""The long convolution against its sum in plain loops, whole and in blocks of channels."""

import jax
import numpy as np
import pytest

from experiments.models import long_convolution
from experiments.models.long_convolution import LongConvolution, convolve, toeplitz
from tests.attn.cases import jit
from tests.experiments.models.drawn import SMALL, draw_mixer


def sum_of_the_past(h, u):
    y = np.zeros(u.shape)
    for t in range(u.shape[1]):
        for s in range(t + 1):
            y[:, t] += h[t - s] * u[:, s]
    return y


def test_mixer_is_its_definition(float64):
    length, width = 9, SMALL.width
    params, x, y = draw_mixer(LongConvolution, SMALL, length)
    p = params["filter"]
    h = np.zeros((length, width))
    for t in range(length):
        angles = t * 10_000.0 ** (-np.arange(16) / 16)
        units = np.stack([np.sin(angles), np.cos(angles)], axis=-1).ravel()
        for name in ("hidden_0", "hidden_1"):
            units = np.sin(units @ p[name]["kernel"] + p[name]["bias"])
        time = np.exp(p["log_time"])
        h[t] = units @ p["out"]["kernel"] + p["out"]["bias"]
        h[t] *= np.exp(-t / time) / np.sqrt(time)
    before, after, value = (x @ params[name]["kernel"] for name in ("before", "after", "value"))
    u = before * value
    expected = (after * (params["skip"] * u + sum_of_the_past(h, u))) @ params["out"]["kernel"]
    # Position codes are in float32 whatever the rest is.
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 7])
def test_blocks_of_channels_change_nothing(channels, monkeypatch, float64):
    rng = np.random.default_rng(1)
    h, u = rng.normal(size=(11, 5)), rng.normal(size=(3, 11, 5))
    cotangent = rng.normal(size=u.shape)

    def with_gradient(h, u):
        y, pull = jax.vjp(convolve, h, u)
        return y, *pull(cotangent)

    whole = jit(with_gradient)(h, u)
    monkeypatch.setattr(long_convolution, "LARGEST", channels * 11**2)
    blocks = jit(lambda *x: with_gradient(*x))(h, u)
    np.testing.assert_allclose(blocks[0], sum_of_the_past(h, u), rtol=1e-10, atol=1e-10)
    for left, right in zip(blocks, whole, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-10, atol=1e-10)


def test_a_block_holds_no_more_than_its_share(monkeypatch):
    monkeypatch.setattr(long_convolution, "LARGEST", 2 * 11**2)
    h, u = np.ones((11, 5), np.float32), np.ones((3, 11, 5), np.float32)
    gradient = jax.grad(lambda h, u: (convolve(h, u) ** 2).sum(), argnums=(0, 1))
    program = str(jax.make_jaxpr(gradient)(h, u))
    assert "[2,11,11]" in program
    assert "[5,11,11]" not in program
    assert "[3,2,11,11]" not in program


@pytest.mark.parametrize("length", [1, 2, 7])
def test_toeplitz_matrix_has_the_filter_on_its_diagonals(length):
    h = np.random.default_rng(2).normal(size=(3, length)).astype(np.float32)
    matrix = toeplitz(h)
    for t in range(length):
        for s in range(length):
            expected = h[:, t - s] if s <= t else np.zeros(3)
            np.testing.assert_array_equal(matrix[:, t, s], expected)


def test_channels_start_with_times_from_4_to_1024_tokens():
    x = np.zeros((1, 4, SMALL.width), np.float32)
    params = jit(LongConvolution(SMALL).init)(jax.random.key(0), x)["params"]
    times = np.exp(params["filter"]["log_time"])
    np.testing.assert_allclose(times, np.geomspace(4, 1024, SMALL.width), rtol=1e-5)
