"""Position codes against NumPy, and the property that each of them is for."""

import math

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


def t5_buckets(distances, num_buckets, max_distance, bidirectional, epsilon=0.0):
    """The formula of T5's code, in float32 as there; ``epsilon`` is in some versions of it."""
    before, offset = -np.asarray(distances), 0
    if bidirectional:
        num_buckets //= 2
        offset = np.where(before < 0, num_buckets, 0)
        before = np.abs(before)
    before = np.maximum(before, 0)
    exact = num_buckets // 2
    ratio = np.maximum(before, 1).astype(np.float32) / np.float32(exact) + np.float32(epsilon)
    step = np.log(ratio) / np.float32(math.log(max_distance / exact))
    far = exact + (step * np.float32(num_buckets - exact)).astype(np.int32)
    return offset + np.where(before < exact, before, np.minimum(far, num_buckets - 1))


def test_buckets_of_t5():
    """By hand: 16 buckets a side, 8 of them exact, then two for every doubling of the distance."""
    known = {0: 0, 1: 1, 7: 7, 8: 8, 11: 8, 12: 9, 15: 9, 16: 10, 22: 10, 23: 11}
    known |= {31: 11, 32: 12, 45: 12, 46: 13, 63: 13, 64: 14, 90: 14, 91: 15, 128: 15, 10**6: 15}
    n, buckets = np.array(list(known)), np.array(list(known.values()))
    np.testing.assert_array_equal(positions.relative_buckets(-n), buckets)
    np.testing.assert_array_equal(positions.relative_buckets(n), buckets + np.where(n > 0, 16, 0))
    one_way = positions.relative_buckets(
        np.array([9, 0, -1, -15, -16, -18, -19, -128, -999]), **ONE_WAY
    )
    np.testing.assert_array_equal(one_way, [0, 0, 1, 15, 16, 16, 17, 31, 31])


ONE_WAY = {"bidirectional": False}


@pytest.mark.parametrize("epsilon", [0.0, np.finfo(np.float32).eps])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(
    ("num_buckets", "max_distance"), [(32, 128), (32, 256), (64, 128), (16, 1000), (4, 20), (10, 7)]
)
def test_buckets_are_those_of_the_float32_formula(
    num_buckets, max_distance, bidirectional, epsilon
):
    distances = np.arange(-1500, 1500)
    expected = t5_buckets(distances, num_buckets, max_distance, bidirectional, epsilon)
    actual = positions.relative_buckets(
        distances, num_buckets, max_distance=max_distance, bidirectional=bidirectional
    )
    np.testing.assert_array_equal(actual, expected)


def test_a_bucket_starts_where_the_logarithm_is_an_integer():
    """16 exact buckets, then one for every doubling, to distances where float32 has few digits."""
    starts = 16 * 2 ** np.arange(1, 16)
    expected = 16 + np.arange(1, 16)
    options = {**ONE_WAY, "max_distance": 16 * 2**16}
    np.testing.assert_array_equal(positions.relative_buckets(-starts, 32, **options), expected)
    np.testing.assert_array_equal(
        positions.relative_buckets(1 - starts, 32, **options), expected - 1
    )
    # log 1.5 / log 1.5^3 is a third, and less than that in float32.
    assert t5_buckets([-36], 48, 81, False) == 31
    assert positions.relative_buckets(np.array([-36]), 48, max_distance=81, **ONE_WAY) == 32


def slopes_of_the_authors(n):
    """As the paper's code has it."""
    if math.log2(n).is_integer():
        start = 2 ** (-(2 ** -(math.log2(n) - 3)))
        return [start ** (h + 1) for h in range(n)]
    power = 2 ** math.floor(math.log2(n))
    return slopes_of_the_authors(power) + slopes_of_the_authors(2 * power)[0::2][: n - power]


def test_alibi_slopes():
    np.testing.assert_array_equal(positions.alibi_slopes(8), 0.5 ** np.arange(1, 9))
    for n in (1, 2, 3, 5, 7, 12, 16, 33):
        assert positions.alibi_slopes(n).dtype == jnp.float32
        np.testing.assert_allclose(positions.alibi_slopes(n), slopes_of_the_authors(n), rtol=1e-6)
    with pytest.raises(ValueError, match=r"num_heads is 0; expected 1 or more"):
        positions.alibi_slopes(0)
