"""What masks claim to know of a tile: true always, and all there is to know where they can."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attn.indices import tile_indices
from attn.masks import Causal, Dense, Dilated, Lengths, Prefix, Segments, Strided, Where, Window
from tests.attn.test_masks import (
    COLUMNS,
    ROWS,
    B,
    N,
    S,
    T,
    assert_said,
    at,
    each_mask,
    tile_of,
)

# Masks beside what they allow in the whole range, written again in NumPy.
_, row, column = np.ogrid[:B, :T, :S]
some = {"min_size": B, "max_size": B}
offsets = st.integers(-12, 12)
limits, few = (st.none() | st.integers(0, most) for most in (12, 3))
each_offset = st.lists(offsets, **some).map(np.array)
lengths = st.integers(0, S) | st.lists(st.integers(0, S), **some).map(np.array)
seeds, shares = st.integers(0, 99), st.sampled_from([0.02, 0.5, 0.98])


def per_batch(x):
    return np.reshape(x, (-1, 1, 1))


def between(x, left, right):
    return (x >= (-99 if left is None else -left)) & (x <= (99 if right is None else right))


def window(left, right, offset):
    return Window(left, right, offset), between(column - row - per_batch(offset), left, right)


def strided(stride, phase):
    return Strided(stride, phase), np.mod(row - column - per_batch(phase), stride) == 0


def dilated(left, right, dilation, offset):
    ahead = column - row - per_batch(offset)
    within = between(ahead / dilation, left, right)
    return Dilated(left, right, dilation, offset), within & (ahead % dilation == 0)


def lengths_of(query, key):
    truth = np.ones((B, T, S), bool)
    truth &= True if query is None else row < per_batch(query)
    truth &= True if key is None else column < per_batch(key)
    return Lengths(query, key), truth


def prefix(length):
    return Prefix(length), column < per_batch(length)


def segments(query, key):
    return Segments(query, key), query[:, :, None] == key[:, None, :]


def dense(seed, share):
    array = np.random.default_rng(seed).random((B, T, S)) < share
    return Dense(array[:, None]), array


def where(seed, share):
    _, array = dense(seed, share)
    return Where(lambda at: jnp.asarray(array)[at.batch[0], at.query, at.key]), array


def ids(length, least, greatest):
    """Ids that count up by ``least`` to ``greatest`` at a time."""
    steps = st.lists(st.integers(least, greatest), min_size=B * length, max_size=B * length)
    return steps.map(lambda x: np.cumsum(np.reshape(x, (B, length)), axis=-1))


EXACT = {
    "window": st.builds(window, limits, limits, offsets | each_offset),
    "strided": st.builds(strided, st.integers(1, 9), offsets | each_offset),
    "dilated": st.builds(dilated, few, few, st.integers(1, 5), offsets),
    "lengths": st.builds(lengths_of, st.none() | lengths, st.none() | lengths),
    "prefix": st.builds(prefix, lengths),
    "segments": st.builds(segments, ids(T, 0, 1), ids(S, 0, 1)),
    "dense": st.builds(dense, seeds, shares),
    "where": st.builds(where, seeds, shares),
}
INEXACT = {
    "dilated, each its own": st.builds(dilated, few, few, st.integers(1, 5), each_offset),
    "segments in any order": st.builds(segments, ids(T, -2, 2), ids(S, -2, 2)),
}
OPERATORS = {
    "and": lambda x, y: x & y,
    "or": lambda x, y: x | y,
    "and not": lambda x, y: x & ~y,
    "nor": lambda x, y: ~(x | y),
}


def composed(masks):
    def compose(name, *operands):
        return tuple(OPERATORS[name](*pair) for pair in zip(*operands, strict=True))

    return st.builds(compose, st.sampled_from(list(OPERATORS)), masks, masks)


single = st.one_of(*EXACT.values(), *INEXACT.values())
double = composed(single)
sides = st.sampled_from([(1, 1), (3, 4), (6, 2)])


def assert_claims_are_true(mask, truth, t, s):
    """Checks all tiles of these sides, wherever they stand; returns what is missed of them."""

    def tile(row, column):
        indices = tile_indices((B,), N, row + jnp.arange(t), column + jnp.arange(s))
        shown = jnp.broadcast_to(mask.allow(indices), (B, N, t, s))[:, 0]
        return shown, *map(jnp.asarray, mask.tile(indices))

    truth = np.lib.stride_tricks.sliding_window_view(
        np.broadcast_to(truth, (B, T, S)), (t, s), axis=(1, 2)
    )
    truth = np.moveaxis(truth, 0, 2)
    starts = np.indices(truth.shape[:2]).reshape(2, -1)
    shown, empty, full = jax.vmap(tile)(*starts)
    truth = truth.reshape(shown.shape)
    np.testing.assert_array_equal(shown, truth)
    none, all_ = ~truth.any(axis=(1, 2, 3)), truth.all(axis=(1, 2, 3))
    np.testing.assert_array_less(empty, none + 1, "a tile that is said to be empty is not")
    np.testing.assert_array_less(full, all_ + 1, "a tile that is said to be full is not")
    return {"empty": np.sum(none & ~empty), "full": np.sum(all_ & ~full)}


@hypothesis.settings(max_examples=40)
@given(composed(single | double | composed(single | double)))
def test_claims_about_tiles_are_true(mask_and_truth):
    """A tile that is said to be empty allows nothing, one that is said to be full all."""
    assert_claims_are_true(*mask_and_truth, 3, 4)


@pytest.mark.parametrize("name", EXACT)
def test_no_tile_is_missed(name):
    """These know every empty and every full tile: no work is done in vain."""

    @hypothesis.settings(max_examples=30)
    @given(EXACT[name], sides)
    def test(mask_and_truth, sides):
        missed = assert_claims_are_true(*mask_and_truth, *sides)
        assert missed == {"empty": 0, "full": 0}

    test()


@pytest.mark.parametrize("name", INEXACT)
def test_claims_that_are_not_all_there_is_to_claim_are_true(name):
    @hypothesis.settings(max_examples=30)
    @given(INEXACT[name], sides)
    def test(mask_and_truth, sides):
        missed = assert_claims_are_true(*mask_and_truth, *sides)
        assert missed["full"] == 0

    test()


@each_mask
def test_not_swaps_empty_and_full(mask):
    for columns in ((0, 2), (5, 10), (15, 17)):
        kind, swapped = mask.tile(at((0, 2), columns)), (~mask).tile(at((0, 2), columns))
        assert (kind.empty, kind.full) == (swapped.full, swapped.empty)
    assert ~~mask == mask


@pytest.mark.parametrize(
    ("kinds", "either", "both"),
    [
        (("empty", "full"), "full", "empty"),
        (("empty", "mixed"), "mixed", "empty"),
        (("full", "mixed"), "full", "mixed"),
        (("mixed", "mixed"), "mixed", "mixed"),
    ],
)
def test_compositions_keep_what_is_known(kinds, either, both):
    known = {"empty": Prefix(0), "full": Prefix(S), "mixed": Causal()}
    for left, right in (kinds, kinds[::-1]):
        left, right = known[left], known[right]
        for mask, expected in ((left | right, either), (left & right, both)):
            kind = mask.tile(at())
            assert (bool(kind.empty), bool(kind.full)) == (expected == "empty", expected == "full")


@pytest.mark.parametrize(
    "mask",
    [
        *(
            Causal(),
            Causal(np.array([1, 2])),
            Strided(2),
            Dilated(1, 1, 2),
            Segments(ROWS, COLUMNS),
        ),
        *(Lengths(3, np.array([2, 4])), Prefix(3), ~(Causal() | Prefix(3))),
        Where(lambda at: at.key == at.query, tile=lambda at: (at.keys[0] > at.queries[-1], False)),
    ],
    ids=repr,
)
def test_corners_need_no_array_of_pairs(mask):
    """Not even of the tile: nothing that the rule computes has t or more times s elements."""
    jaxpr = jax.make_jaxpr(lambda *x: mask.tile(tile_indices((B,), N, *x)))(
        jnp.arange(T), jnp.arange(S)
    )
    sizes = [x.aval.size for equation in jaxpr.eqns for x in equation.outvars]
    assert max(sizes) <= B * S < T * S


@each_mask
def test_claims_are_single_booleans(mask):
    for flag in mask.tile(at((0, 5), (5, 11))):
        assert np.shape(flag) == ()
        assert np.asarray(flag).dtype == bool


@each_mask
def test_traced_and_mapped_over_where_the_tile_starts(mask):
    assert_said(tile_of(mask, 5, 3), mask, 5, 3)
    starts = jnp.array([0, 3, 11])
    found = jax.vmap(tile_of, in_axes=(None, None, 0))(mask, 7, starts)
    for n, start in enumerate(starts.tolist()):
        assert_said(jax.tree.map(lambda x: x[n], found), mask, 7, start)  # noqa: B023
