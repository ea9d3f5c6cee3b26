"""GRU and LSTM are the equations of their docstring, a token at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models.recurrent import GRU, LSTM, orthogonal
from tests.attn.cases import jit
from tests.experiments.models.drawn import SMALL, draw_mixer


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def dense(layer, x):
    return x @ layer["kernel"] + layer.get("bias", 0)


def test_gru_is_its_recurrence():
    params, x, y = draw_mixer(GRU, SMALL, 7)
    p = params["steps"]["cell"]
    h = np.zeros((len(x), SMALL.width))
    for t in range(x.shape[1]):
        r = sigmoid(dense(p["ir"], x[:, t]) + dense(p["hr"], h))
        z = sigmoid(dense(p["iz"], x[:, t]) + dense(p["hz"], h) + 1)
        n = np.tanh(dense(p["in"], x[:, t]) + r * dense(p["hn"], h))
        h = (1 - z) * n + z * h
        np.testing.assert_allclose(y[:, t], h, rtol=1e-5, atol=1e-5)


def test_lstm_is_its_recurrence():
    params, x, y = draw_mixer(LSTM, SMALL, 7)
    p = params["steps"]["cell"]
    h = c = np.zeros((len(x), SMALL.width))
    for t in range(x.shape[1]):
        i, f, g, o = (dense(p[f"i{n}"], x[:, t]) + dense(p[f"h{n}"], h) for n in "ifgo")
        c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        np.testing.assert_allclose(y[:, t], h, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("mixer", "gate"), [(GRU, "iz"), (LSTM, "hf")])
def test_a_gate_that_is_almost_1_forgets_in_bfloat16_too(mixer, gate):
    """From biases alone, all others 0: after t steps a share ``1 - sigmoid(7)^t`` is forgotten."""
    x = jnp.zeros((1, 100, SMALL.width), jnp.bfloat16)
    shapes = jax.eval_shape(mixer(SMALL).init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    cell = params["steps"]["cell"]
    cell[gate]["bias"] += 6.0
    cell["in" if mixer is GRU else "hg"]["bias"] += 0.01
    y = jit(mixer(SMALL).apply)({"params": params}, x)
    assert y.dtype == jnp.bfloat16
    forgotten = 1 - sigmoid(7) ** np.arange(1, 101)
    if mixer is GRU:
        expected = np.tanh(0.01) * forgotten
    else:
        expected = np.tanh(0.5 * np.tanh(0.01) * forgotten / (1 - sigmoid(7))) / 2
    expected = np.broadcast_to(expected[:, None], y.shape)
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=2**-7)


def test_recurrent_matrices_start_orthogonal():
    rngs = jax.random.split(jax.random.key(0), 20)
    matrices = np.asarray(jit(jax.vmap(lambda rng: orthogonal(rng, (16, 16))))(rngs))
    squares = matrices @ matrices.swapaxes(1, 2)
    np.testing.assert_allclose(squares, np.broadcast_to(np.eye(16), squares.shape), atol=1e-5)
    assert np.abs(matrices[0] - matrices[1]).max() > 0.1
    assert abs(matrices.mean()) < 0.02
    params = jit(GRU(SMALL).init)(jax.random.key(0), np.zeros((1, 2, SMALL.width), np.float32))
    matrix = np.asarray(params["params"]["steps"]["cell"]["hn"]["kernel"])
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(SMALL.width), atol=1e-5)
