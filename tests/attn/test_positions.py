"""Position codes against NumPy, and the property that each of them is for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn import positions

rotary = jax.jit(positions.rotary)


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_sinusoidal():
    t = np.array([[0, 1, 5], [7, 100, 2]])
    code = positions.sinusoidal(jnp.asarray(t), 10)
    assert code.shape == (2, 3, 10)
    assert code.dtype == jnp.float32
    for i in range(5):
        angle = t / 10_000 ** (2 * i / 10)
        np.testing.assert_allclose(code[..., 2 * i], np.sin(angle), atol=1e-5)
        np.testing.assert_allclose(code[..., 2 * i + 1], np.cos(angle), atol=1e-5)


def test_learned_is_the_first_rows():
    table = normal(7, 3)
    np.testing.assert_array_equal(positions.learned(jnp.asarray(table), 5), table[:5])
    np.testing.assert_array_equal(positions.learned(jnp.asarray(table), 7), table)
    with pytest.raises(ValueError, match=r"num_positions is 8; expected at most 7"):
        positions.learned(jnp.asarray(table), 8)


def test_rotary_turns_each_plane():
    x, t = normal(2, 5, 3, 6), np.arange(5) * 3
    actual = rotary(x, t)
    planes = x[..., 0::2] + 1j * x[..., 1::2]
    angles = t[:, None] * 10_000 ** (-np.arange(0, 6, 2) / 6)
    turned = planes * np.exp(1j * angles)[:, None, :]
    np.testing.assert_allclose(actual[..., 0::2], turned.real, atol=1e-5)
    np.testing.assert_allclose(actual[..., 1::2], turned.imag, atol=1e-5)


def test_rotary_keeps_lengths_and_leaves_position_zero():
    x = normal(5, 3, 6)
    rotated = rotary(x, np.arange(5))
    np.testing.assert_allclose(
        np.linalg.norm(rotated, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5
    )
    np.testing.assert_array_equal(rotated[0], x[0])


def test_rotary_scores_depend_on_the_difference_of_positions_alone():
    query, key = normal(2, 1, 1, 6)

    def score(i, j):
        return float(jnp.vdot(rotary(query[None], np.array([i])), rotary(key[None], np.array([j]))))

    for i, j in ((9, 2), (40, 0), (2, 9)):
        np.testing.assert_allclose(score(i, j), score(i + 31, j + 31), atol=1e-4)
    assert abs(score(9, 2) - score(2, 9)) > 0.01


def test_rotary_positions_of_each_row():
    """Positions ``[*B, T]``, as packed or left-padded rows have them."""
    x = normal(2, 5, 3, 6)
    t = np.array([[0, 1, 2, 3, 4], [3, 4, 0, 1, 2]])
    expected = [rotary(x[b], t[b]) for b in range(2)]
    np.testing.assert_allclose(rotary(x, t), expected, atol=1e-6)


def test_base_is_that_of_the_slowest_plane():
    x = np.array([[[0.0, 0, 0, 0, 1, 0]]], np.float32)
    rotated = positions.rotary(jnp.asarray(x), jnp.array([1000]), base=1000.0)
    angle = 1000 * 1000 ** (-4 / 6)
    np.testing.assert_allclose(rotated[0, 0, 4:], [np.cos(angle), np.sin(angle)], atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_rotary_is_in_the_dtype_of_its_input(dtype):
    """Angles are not: position 1001 in bfloat16 would be 1000."""
    x = jnp.asarray(normal(1, 3, 6), dtype)
    rotated = rotary(x, np.array([1001]))
    assert rotated.dtype == dtype
    exact = rotary(x.astype(jnp.float32), np.array([1001]))
    np.testing.assert_array_equal(rotated, exact.astype(dtype))


@pytest.mark.usefixtures("float64")
def test_rotary_of_float64():
    assert rotary(np.ones((2, 1, 6)), np.arange(2)).dtype == jnp.float64


@pytest.mark.parametrize("width", [5, 1, 0])
def test_odd_widths_are_refused(width):
    with pytest.raises(ValueError, match=rf"head width of x is {width}; expected an even number"):
        positions.rotary(jnp.zeros((2, 3, width)), jnp.arange(2))
    with pytest.raises(ValueError, match=rf"width is {width}; expected an even number"):
        positions.sinusoidal(jnp.arange(2), width)
