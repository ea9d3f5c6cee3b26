"""Masks: what they allow element by element, and what they claim to know of a tile."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attn.masks import And, Causal, Dense, Lengths, Mask, Window

T, S = 13, 17
ROWS, COLUMNS = np.arange(T), np.arange(S)


def pairs(condition):
    return np.array([[condition(i, j) for j in range(S)] for i in range(T)])


@pytest.mark.parametrize(
    ("mask", "condition"),
    [
        (Causal(), lambda i, j: j <= i),
        (Causal(4), lambda i, j: j <= i + 4),
        (Causal(-3), lambda i, j: j <= i - 3),
        (Window(), lambda i, j: True),
        (Window(left=2), lambda i, j: i - j <= 2),
        (Window(3, 1), lambda i, j: i - 3 <= j <= i + 1),
        (Window(0, 0, offset=5), lambda i, j: j == i + 5),
        (Causal() & Window(left=2), lambda i, j: i - 2 <= j <= i),
    ],
)
def test_window_allows(mask, condition):
    np.testing.assert_array_equal(mask.allow(ROWS, COLUMNS), pairs(condition))


def test_lengths_allow():
    """One length for each leading index; or one for all, without an axis of them."""
    allowed = Lengths(np.array([5, 13, 0]), np.array([17, 0, 6])).allow(ROWS, COLUMNS)
    assert allowed.shape == (3, 1, T, S)
    for found, (query, key) in zip(allowed, [(5, 17), (13, 0), (0, 6)], strict=True):
        np.testing.assert_array_equal(found[0], pairs(lambda i, j: i < query and j < key))  # noqa: B023
    one = Lengths(key=np.int32(6)).allow(ROWS, COLUMNS)
    np.testing.assert_array_equal(np.broadcast_to(one[0], (T, S)), pairs(lambda i, j: j < 6))


@pytest.mark.parametrize("shape", [(T, S), (1, S), (T, 1), (2, 3, T, S), (2, 1, 1, S)])
def test_dense_allows_what_is_written_in_the_tile(shape):
    array = np.random.default_rng(0).random(shape) < 0.5
    rows, columns = np.arange(4, 9), np.arange(10, 17)
    tile = array[..., rows if shape[-2] > 1 else [0], :][..., columns if shape[-1] > 1 else [0]]
    np.testing.assert_array_equal(Dense(array).allow(rows, columns), tile)


def test_dense_is_padded_to_be_read_beyond_its_edge():
    array = np.random.default_rng(0).random((2, T, S)) < 0.5
    mask = (Causal() & Dense(array)).pad(16, 20)
    rows, columns = np.arange(12, 16), np.arange(15, 20)
    found = np.asarray(mask.allow(rows, columns))
    assert found.shape == (2, 4, 5)
    expected = array[:, 12:, 15:] & (np.arange(15, 17) <= 12)
    np.testing.assert_array_equal(found[:, :1, :2], expected)
    assert Dense(array[:, :1]).pad(16, 20).array.shape == (2, 1, 20)
    assert Causal().pad(16, 20) == Causal()


limits = st.none() | st.integers(0, 12)
windows = st.builds(Window, limits, limits, st.integers(-12, 12))
lengths = st.none() | st.lists(st.integers(0, 14), min_size=2, max_size=2).map(np.array)
all_lengths = st.builds(Lengths, lengths, lengths)
one_length = st.builds(lambda x: Lengths(key=np.array([x, x])), st.integers(0, 14))
masks = windows | all_lengths | st.builds(And, windows | all_lengths, windows | all_lengths)
sides = st.tuples(st.integers(0, 12), st.integers(1, 6))


def truth(mask, rows, columns):
    """Returns what the mask allows, ``[2, t, s]``, without asking it."""
    if isinstance(mask, And):
        return truth(mask.left, rows, columns) & truth(mask.right, rows, columns)
    allowed = np.ones((2, rows.size, columns.size), bool)
    if isinstance(mask, Window):
        ahead = columns - rows[:, None] - mask.offset
        allowed &= mask.left is None or ahead >= -mask.left
        allowed &= mask.right is None or ahead <= mask.right
    if isinstance(mask, Lengths):
        for b in range(2):
            allowed[b] &= mask.query is None or rows[:, None] < mask.query[b]
            allowed[b] &= mask.key is None or columns < mask.key[b]
    return allowed


@given(masks, sides, sides)
def test_claims_about_tiles_are_true(mask, rows, columns):
    """A tile that is said to be empty allows nothing, one that is said to be full all."""
    rows, columns = (np.arange(start, start + side) for start, side in (rows, columns))
    allowed, kind = truth(mask, rows, columns), mask.tile(rows, columns)
    if kind.empty:
        assert not allowed.any()
    if kind.full:
        assert allowed.all()


@given(
    windows | st.builds(lambda x: Lengths(key=np.array([x, x])), st.integers(0, 14)), sides, sides
)
def test_no_tile_is_missed(mask, rows, columns):
    """Windows and lengths know every empty and every full tile: no work is done in vain."""
    rows, columns = (np.arange(start, start + side) for start, side in (rows, columns))
    allowed, kind = truth(mask, rows, columns), mask.tile(rows, columns)
    assert bool(kind.empty) == (not allowed.any())
    assert bool(kind.full) == allowed.all()


def test_what_is_not_known_of_a_tile_is_not_claimed():
    assert Mask().tile(ROWS, COLUMNS) == (False, False)
    assert Dense(np.ones((T, S), bool)).tile(ROWS, COLUMNS) == (False, False)
    kind = (Dense(np.ones((T, S), bool)) & Causal()).tile(ROWS[:3], COLUMNS[5:])
    assert kind.empty
    assert not kind.full


def test_masks_are_pytrees():
    """Their arrays can be traced and mapped; their Python numbers are part of the program."""
    mask = Window(3, 1) & Lengths(key=jnp.array([5, 0]))
    assert [x.shape for x in jax.tree.leaves(mask)] == [(2,)]
    mapped = jax.jit(jax.vmap(lambda mask: mask.allow(ROWS, COLUMNS)))(mask)
    np.testing.assert_array_equal(mapped, mask.allow(ROWS, COLUMNS))
    with pytest.raises(AttributeError):
        mask.left.right = 2
