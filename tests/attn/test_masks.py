"""Masks: what they allow pair by pair, what they claim to know of a tile, and how they look."""

import dataclasses
import re

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attn.indices import tile_indices
from attn.masks import (
    And,
    Causal,
    Dense,
    Dilated,
    Lengths,
    Mask,
    Not,
    Or,
    Prefix,
    Segments,
    Strided,
    TileKind,
    Where,
    Window,
    mask_class,
)

B, N, T, S = 2, 3, 13, 17
RNG = np.random.default_rng(0)
ROWS = np.sort(RNG.integers(0, 4, (B, T)))
COLUMNS = RNG.integers(0, 4, (B, S))
ANY = RNG.random((B, N, T, S)) < 0.5
SLOPES = np.array([1, 2, 5])


def at(rows=(0, T), columns=(0, S)):
    """Returns the indices of the tile of these ranges."""
    return tile_indices((B,), N, np.arange(*rows), np.arange(*columns))


def allowed(mask, indices=None):
    indices = at() if indices is None else indices
    shape = (B, N, indices.query.size, indices.key.size)
    return np.broadcast_to(mask.allow(indices), shape)


def pairs(condition):
    every = np.ndindex(B, N, T, S)
    return np.reshape([bool(condition(*index)) for index in every], (B, N, T, S))


# A mask of every kind and the condition it stands for, of batch, head, query and key.
MASKS = {
    "causal": (Causal(), lambda b, n, i, j: j <= i),
    "causal, ahead": (Causal(4), lambda b, n, i, j: j <= i + 4),
    "causal, behind": (Causal(np.int32(-3)), lambda b, n, i, j: j <= i - 3),
    "causal, each its own": (Causal(np.array([-2, 6])), lambda b, n, i, j: j <= i + [-2, 6][b]),
    "window of all": (Window(), lambda b, n, i, j: True),
    "window of the past": (Window(left=2), lambda b, n, i, j: i - j <= 2),
    "window": (Window(3, 1), lambda b, n, i, j: i - 3 <= j <= i + 1),
    "window of one": (Window(0, 0, offset=5), lambda b, n, i, j: j == i + 5),
    "strided": (Strided(4), lambda b, n, i, j: i - j in range(-40, 40, 4)),
    "strided, in phase 1": (Strided(3, phase=1), lambda b, n, i, j: i - j in range(-29, 40, 3)),
    "strided, each its own": (
        Strided(3, phase=np.array([1, 8])),
        lambda b, n, i, j: i - j - [1, 2][b] in range(-30, 30, 3),
    ),
    "dilated": (Dilated(2, 1, 3), lambda b, n, i, j: j in (i - 6, i - 3, i, i + 3)),
    "dilated, no limit": (Dilated(None, 0, 2), lambda b, n, i, j: j in range(i % 2, i + 1, 2)),
    "dilated, each its own": (
        Dilated(1, 0, 5, offset=np.array([4, 7], np.uint8)),
        lambda b, n, i, j: j - i in ([4, -1], [7, 2])[b],
    ),
    "segments": (Segments(ROWS, COLUMNS), lambda b, n, i, j: ROWS[b, i] == COLUMNS[b, j]),
    "segments, shared": (
        Segments(ROWS[0], COLUMNS[1:]),
        lambda b, n, i, j: ROWS[0, i] == COLUMNS[1, j],
    ),
    "lengths": (
        Lengths(np.array([5, 13]), [17, 0]),
        lambda b, n, i, j: i < [5, 13][b] and j < [17, 0][b],
    ),
    "lengths, shared": (Lengths(query=jnp.int32(7)), lambda b, n, i, j: i < 7),
    "prefix": (Prefix(6), lambda b, n, i, j: j < 6),
    "prefixes": (Prefix(np.array([0, 9])), lambda b, n, i, j: j < [0, 9][b]),
    "dense": (Dense(ANY), lambda b, n, i, j: ANY[b, n, i, j]),
    "where": (
        Where(lambda at: (at.query + at.head * at.key + at.batch[0]) % 3 == 0),
        lambda b, n, i, j: (i + n * j + b) % 3 == 0,
    ),
    "where, of params": (
        Where(lambda at, slopes: at.query < slopes[at.head] * at.key, SLOPES),
        lambda b, n, i, j: i < SLOPES[n] * j,
    ),
    "and": (Causal() & Lengths(key=np.array([5, 9])), lambda b, n, i, j: j <= i and j < [5, 9][b]),
    "or": (Causal() | Prefix(6), lambda b, n, i, j: j <= i or j < 6),
    "not": (~Segments(ROWS, COLUMNS), lambda b, n, i, j: ROWS[b, i] != COLUMNS[b, j]),
    "nested": (
        ~(Causal() | ~Dense(ANY)) & Strided(2),
        lambda b, n, i, j: j > i and ANY[b, n, i, j] and (i - j) % 2 == 0,
    ),
}
each_mask = pytest.mark.parametrize("mask", [mask for mask, _ in MASKS.values()], ids=MASKS)


@pytest.mark.parametrize("name", MASKS)
def test_allows_what_its_condition_says(name):
    mask, condition = MASKS[name]
    np.testing.assert_array_equal(allowed(mask), pairs(condition))


@each_mask
def test_a_tile_is_a_part_of_the_whole(mask):
    found = allowed(mask, at((4, 9), (10, 17)))
    np.testing.assert_array_equal(found, allowed(mask)[:, :, 4:9, 10:])


def test_keys_have_the_segments_of_the_queries():
    found = Segments(COLUMNS).allow(at((3, 7), (2, 11)))
    np.testing.assert_array_equal(found, Segments(COLUMNS, COLUMNS).allow(at((3, 7), (2, 11))))


@pytest.mark.parametrize("shape", [(), (S,), (1,), (T, S), (1, S), (T, 1), (N, 1, S), (B, 1, T, 1)])
def test_dense_is_broadcast(shape):
    array = np.array(RNG.random(shape) < 0.5)
    found = np.broadcast_to(Dense(array).pad(20, 20).allow(at((4, 9), (10, 17))), (B, N, 5, 7))
    np.testing.assert_array_equal(found, np.broadcast_to(array, (B, N, T, S))[:, :, 4:9, 10:])


@each_mask
def test_padded_mask_is_the_same_within_and_readable_beyond(mask):
    found = allowed(mask.pad(16, 20), at((11, 16), (14, 20)))
    np.testing.assert_array_equal(found[:, :, :2, :3], allowed(mask)[:, :, 11:, 14:])


def test_nothing_is_padded_without_need():
    assert Causal().pad(16, 20) == Causal()
    assert Segments(ROWS, COLUMNS).pad(T, S).key is COLUMNS
    assert Dense(ANY[:, :1, :1]).pad(16, 20).array.shape == (B, 1, 1, 20)


def test_padding_adds_no_segment():
    """The last tile, padded, is still known to be full, or to be empty."""
    mask = Segments(np.array([0, 0, 7, 7, 7])).pad(8, 12)
    assert mask.tile(at((4, 8), (4, 8))).full
    assert mask.tile(at((0, 2), (4, 8))).empty


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


@jax.jit
def tile_of(mask, row, column):
    """Returns all that a mask says of a 4 x 6 tile from these indices on."""
    indices = tile_indices((B,), N, row + jnp.arange(4), column + jnp.arange(6))
    return jnp.broadcast_to(mask.allow(indices), (B, N, 4, 6)), mask.tile(indices)


def assert_said(found, mask, row, column):
    indices = at((row, row + 4), (column, column + 6))
    np.testing.assert_array_equal(found[0], allowed(mask, indices))
    assert tuple(map(bool, found[1])) == tuple(map(bool, mask.tile(indices)))


@each_mask
def test_traced_and_mapped_over_where_the_tile_starts(mask):
    assert_said(tile_of(mask, 5, 3), mask, 5, 3)
    starts = jnp.array([0, 3, 11])
    found = jax.vmap(tile_of, in_axes=(None, None, 0))(mask, 7, starts)
    for n, start in enumerate(starts.tolist()):
        assert_said(jax.tree.map(lambda x: x[n], found), mask, 7, start)  # noqa: B023


@pytest.mark.parametrize("name", [x for x in MASKS if jax.tree.leaves(MASKS[x][0])])
def test_mapped_over_its_arrays(name):
    mask, _ = MASKS[name]
    two = [mask, jax.tree.map(lambda x: np.flip(x) if np.ndim(x) else x + 1, mask)]
    both = jax.tree.map(lambda *x: np.stack(x), *two)
    axes = jax.tree.map(lambda _: 0, mask)
    found = jax.vmap(tile_of, in_axes=(axes, None, None))(both, 5, 3)
    for n, one in enumerate(two):
        assert_said(jax.tree.map(lambda x: x[n], found), one, 5, 3)  # noqa: B023


def test_axes_of_a_mask_are_written_as_a_mask():
    """Beside arrays in the same mask that are not mapped, and numbers that are the program's."""
    mask = Causal(np.int32(1)) & Lengths(key=np.array([[1, 9], [8, 3], [4, 5]]))
    axes = And(jax.tree.map(lambda _: None, mask.left), Lengths(key=0))
    found = jax.vmap(tile_of, in_axes=(axes, None, None))(mask, 5, 3)
    for n in range(3):
        one = mask.left & Lengths(key=mask.right.key[n])
        assert_said(jax.tree.map(lambda x: x[n], found), one, 5, 3)  # noqa: B023


@each_mask
def test_anything_can_stand_in_place_of_an_array(mask):
    leaves, tree = jax.tree.flatten(mask)
    assert jax.tree.leaves(jax.tree.map(lambda _: None, mask)) == []
    for marker in (0, 1.5, "x", True, object()):
        assert jax.tree.leaves(jax.tree.map(lambda _: marker, mask)) == [marker] * len(leaves)  # noqa: B023
    assert jax.tree.unflatten(tree, leaves) == mask


def test_numbers_of_a_pattern_are_part_of_the_program():
    mask = Window(3, 1, offset=2) & Strided(2, 1) & Dense(ANY)
    assert [x.shape for x in jax.tree.leaves(mask)] == [ANY.shape]
    assert jax.tree.structure(Causal(2)) != jax.tree.structure(Causal(3))
    assert len(jax.tree.leaves([Causal(jnp.int32(2)), Lengths(3), Prefix(3)])) == 3
    [(path, _)], _ = jax.tree_util.tree_flatten_with_path(~Lengths(key=3))
    assert jax.tree_util.keystr(path) == ".mask.key"
    for name in ("left", "offset"):
        with pytest.raises(AttributeError):
            setattr(mask.left.left, name, 2)


def test_used_under_grad():
    """A mask that depends on what is differentiated passes no derivative on."""
    x = jnp.arange(S, dtype=jnp.float32)

    @jax.grad
    def slope(x):
        mask = Where(lambda at, x: x[at.key] < 5, x) & Where(lambda at: x[at.key] > 2) | Prefix(
            (x[3] > 0).astype(int)
        )
        return jnp.sum(jnp.where(mask.allow(at((0, 1)))[0], x**2, 0))

    np.testing.assert_array_equal(slope(x), 2 * x * ((x > 2) & (x < 5)))


def test_where_closes_over_arrays_that_are_traced():
    def count(slopes):
        mask = Where(lambda at: at.query < slopes[at.head] * at.key)
        return jnp.sum(mask.allow(at())), mask.tile(at((0, 2), (3, 5)))

    expected = np.sum(allowed(MASKS["where, of params"][0]))
    found, kind = jax.jit(count)(SLOPES)
    assert found * B == expected
    assert kind.full
    mapped, _ = jax.vmap(count)(jnp.stack([SLOPES, SLOPES[::-1]]))
    assert mapped.tolist() == [found, found]


def test_where_takes_the_word_of_its_rule():
    indices = at()
    assert Where(lambda at: at.key >= 0).tile(indices) == (False, True)
    assert Where(lambda at: at.key >= 0, tile=lambda at: (False, False)).tile(indices).full is False
    rule = Where(lambda at, n: at.key < n, 5, tile=lambda at, n: (at.keys[0] >= n, False))
    assert rule.tile(at(columns=(5, 9))).empty
    assert not rule.tile(at(columns=(4, 9))).empty


@mask_class
class Blocks(Mask):
    """A user's own: all that it must define is ``allow``."""

    starts: jax.Array
    side: int = dataclasses.field(default=2, metadata={"static": True})

    def allow(self, indices):
        return indices.key // self.side == self.starts[..., None, None, None] + indices.query * 0


def test_a_mask_of_ones_own():
    mask = ~(Blocks(np.array([2, 3])) & Causal(4))
    np.testing.assert_array_equal(
        allowed(mask), pairs(lambda b, n, i, j: not (j // 2 == 2 + b and j <= i + 4))
    )
    assert Blocks(np.array([2, 2])).tile(at(columns=(4, 6))) == (False, True)
    assert Blocks(np.array([2, 3])).tile(at(columns=(8, 10))) == (True, False)
    mask.check((B,), N, T, S)
    with pytest.raises(NotImplementedError, match="Mask must define allow"):
        Mask().allow(at())


def test_equality_reads_no_array():
    assert Window(2, 0) & Prefix(3) == Window(2, 0) & Prefix(3)
    assert hash(Window(2, 0) | Prefix(3)) == hash(Window(2, 0) | Prefix(3))
    assert Causal() == Window(right=0)
    assert Causal() != Causal(1)
    assert Causal() & Strided(2) != Causal() | Strided(2)
    assert Prefix(3) != Prefix(4)
    assert Causal() != "Causal()"
    assert Dense(ANY) == Dense(ANY)
    assert Dense(ANY) != Dense(ANY.copy())
    assert hash(Dense(ANY)) == hash(Dense(ANY.copy()))


def near(at, reach):
    return abs(at.query - at.key) < reach["of"]


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (Causal(), "Causal()"),
        (Causal(3), "Causal(offset=3)"),
        (Causal(np.array([3, 4])), "Causal(offset=int64[2])"),
        (Window(), "Window()"),
        (Window(3, 0), "Window(left=3, right=0)"),
        (Window(right=2, offset=jnp.int32(1)), "Window(right=2, offset=1)"),
        (Strided(4), "Strided(stride=4)"),
        (Dilated(2, 0, 3, 1), "Window(left=6, right=0, offset=1) & Strided(stride=3, phase=-1)"),
        (Lengths(key=5), "Lengths(key=5)"),
        (Lengths(), "Lengths()"),
        (Prefix(0), "Prefix(length=0)"),
        (Dense(ANY), "Dense(array=bool[2,3,13,17])"),
        (Where(near, {"of": jnp.zeros(2)}), "Where(function=near, params={'of': float32[2]})"),
        (Where(near), "Where(function=near)"),
        (Causal() & ~Segments(jnp.zeros((2, 16), int)), "Causal() & ~Segments(query=int32[2,16])"),
        (Causal() & Prefix(1) | ~Prefix(2), "Causal() & Prefix(length=1) | ~Prefix(length=2)"),
        ((Causal() | Prefix(1)) & Prefix(2), "(Causal() | Prefix(length=1)) & Prefix(length=2)"),
        (Prefix(2) & (Causal() | Prefix(1)), "Prefix(length=2) & (Causal() | Prefix(length=1))"),
        (~(Causal() & Prefix(1)), "~(Causal() & Prefix(length=1))"),
        (~(Causal() | Prefix(1)), "~(Causal() | Prefix(length=1))"),
        (Not(Not(Causal())), "~~Causal()"),
        (jax.tree.map(lambda _: None, Lengths(3, 4) & Causal()), "Lengths() & Causal()"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_repr(mask, expected):
    assert repr(mask) == expected


def test_repr_of_what_is_traced():
    shown = []
    jax.jit(lambda mask: shown.append(repr(mask)))(Prefix(3) | Lengths(key=np.array([1, 2])))
    assert shown == ["Prefix(length=int32[]) | Lengths(key=int32[2])"]


@pytest.mark.parametrize(
    ("mask", "options", "expected"),
    [
        (Causal(), {}, ["█····", "██···", "███··"]),
        (Lengths(key=np.array([1, 2])), {}, ["█····"] * 3),
        (Lengths(key=np.array([1, 2])), {"batch": (1,)}, ["██···"] * 3),
        (
            Where(lambda at: at.batch[1] * at.head == at.key),
            {"batch": (5, 2), "head": 2},
            ["····█"] * 3,
        ),
        (Dense(ANY) & Prefix(0), {"batch": (1,), "head": 2}, ["·····"] * 3),
        (
            Dense(np.arange(6).reshape(2, 3, 1, 1) == 5) & Prefix(np.array([9, 2])),
            {"batch": (1,), "head": 2},
            ["██···"] * 3,
        ),
        (Where(lambda at: True), {}, ["█████"] * 3),
        (Causal(), {"width": 3}, ["▒··", "█▒·"]),
        (Prefix(4), {"width": 3}, ["██·"] * 2),
        (Prefix(5), {"width": 3}, ["███"] * 2),
        (Prefix(1), {"width": 1}, ["▒"]),
    ],
)
def test_picture(mask, options, expected):
    assert mask.picture(3, 5, **options).split("\n") == expected


def test_picture_is_no_larger_than_its_width():
    lines = Causal().picture(1000, 130).split("\n")
    assert len(lines) <= 64
    assert {len(line) for line in lines} == {9}
    assert len(Causal().picture(130, 1000).split("\n")[0]) == 63


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Window(left=-1), ValueError, "Window.left is -1; expected None or an int of 0"),
        (lambda: Window(right=-2), ValueError, "Window.right is -2"),
        (lambda: Window(right=True), TypeError, "Window.right is True"),
        (lambda: Window(left=1.0), TypeError, "Window.left is 1.0"),
        (lambda: Window(left=jnp.int32(1)), TypeError, "Window.left is Array"),
        (lambda: Causal(1.5), TypeError, "Window.offset is 1.5; expected integers"),
        (lambda: Causal(False), TypeError, "Window.offset is False"),
        (lambda: Strided(0), ValueError, "Strided.stride is 0; expected an int of 1 or more"),
        (lambda: Strided("2"), TypeError, "Strided.stride is '2'"),
        (lambda: Strided(2, phase=0.5), TypeError, "Strided.phase is 0.5"),
        (lambda: Dilated(1, 1, 0), ValueError, "Dilated.dilation is 0"),
        (lambda: Dilated(-1, 1, 2), ValueError, "Dilated.left is -1"),
        (lambda: Dilated(1, 1.0, 2), TypeError, "Dilated.right is 1.0"),
        (lambda: Dilated(1, 1, 2, 0.5), TypeError, "Dilated.offset is 0.5"),
        (lambda: Lengths(True), TypeError, "Lengths.query is True"),
        (lambda: Lengths(key=3.0), TypeError, "Lengths.key is 3.0"),
        (lambda: Prefix(3.0), TypeError, "Prefix.length is 3.0"),
        (lambda: Segments("ids"), TypeError, "Segments.query is 'ids'"),
        (lambda: Where(3), TypeError, "Where.function is 3; expected a function"),
        (lambda: Where(None), TypeError, "Where.function is None; expected a function"),
        (lambda: Where(near, tile=(False, True)), TypeError, "Where.tile is (False, True)"),
        (lambda: Causal() & ANY, TypeError, "unsupported operand"),
        (lambda: ANY | Causal(), TypeError, "unsupported operand"),
    ],
)
def test_wrong_when_made(make, error, words):
    with pytest.raises(error, match=re.escape(words)):
        make()


@each_mask
def test_what_fits_is_not_refused(mask):
    mask.check((B,), N, T, S)


@pytest.mark.parametrize(
    ("mask", "error", "words"),
    [
        (
            Segments(np.zeros((3, 7), int), COLUMNS),
            ValueError,
            "mask Segments.query has shape (3, 7); expected (..., 13) broadcastable to "
            "[*B, T] = (2, 13)",
        ),
        (
            Segments(ROWS, COLUMNS[..., :1]),
            ValueError,
            "Segments.key has shape (2, 1); expected (..., 17) broadcastable to [*B, S] = (2, 17)",
        ),
        (Segments(np.zeros((3, T), int), COLUMNS), ValueError, "Segments.query has shape (3, 13)"),
        (Segments(ROWS), ValueError, "Segments.key is None; expected the ids of the S = 17 keys"),
        (Segments(ROWS * 1.0, COLUMNS), TypeError, "Segments.query has dtype float64; expected"),
        (Segments(ROWS, 0), ValueError, "Segments.key has shape ()"),
        (
            Lengths(key=np.zeros(3, int)),
            ValueError,
            "Lengths.key has shape (3,); expected one broadcastable to [*B] = (2,)",
        ),
        (Lengths(query=np.zeros((1, 1, 2), int)), ValueError, "Lengths.query has shape (1, 1, 2)"),
        (Lengths(query=np.ones(2, bool)), TypeError, "Lengths.query has dtype bool"),
        (Lengths(query=object()), TypeError, "Lengths.query is a object; expected integers"),
        (Prefix(np.zeros((2, 1), int)), ValueError, "Prefix.length has shape (2, 1)"),
        (Causal(np.zeros(3, int)), ValueError, "Window.offset has shape (3,)"),
        (Strided(2, np.zeros(2)), TypeError, "Strided.phase has dtype float64"),
        (Dense(ANY * 1.0), TypeError, "Dense.array has dtype float64; expected bool"),
        (Dense([[1, 0]]), TypeError, "Dense.array has dtype int64; expected bool"),
        (Dense(None), TypeError, "Dense.array is a NoneType"),
        (
            Dense(np.ones((B, T, S), bool)),
            ValueError,
            "Dense.array has shape (2, 13, 17); expected one broadcastable to [*B, N, T, S] = "
            "(2, 3, 13, 17)",
        ),
        (Where(lambda at: at.query), TypeError, "<lambda>) returned dtype int32; expected bool"),
        (Where(lambda at: jnp.ones((T, S), bool)), ValueError, "returned shape (13, 17); expected"),
        (Where(lambda at: at.query == at.batch[0][..., None]), ValueError, "(2, 1, 1, 2, 1)"),
        (
            Where(lambda at: at.key == 0, tile=lambda at: (at.batch[0] > 0, False)),
            ValueError,
            "empty with shape (2, 1, 1, 1) and dtype bool; expected a single bool",
        ),
        (
            Where(lambda at: at.key == 0, tile=lambda at: (False, 1)),
            ValueError,
            "full with shape ()",
        ),
    ],
)
def test_wrong_when_used(mask, error, words):
    for composed in (mask, Causal() & mask, ~(mask | Causal())):
        with pytest.raises(error, match=re.escape(words)):
            composed.check((B,), N, T, S)
        with pytest.raises(error):
            jax.tree.map(lambda x: x, composed).check((B,), N, T, S)


def test_kinds_are_pairs():
    assert Or(Causal(), Prefix(S)).tile(at()) == TileKind(empty=False, full=True)
    assert Window().tile(at()) == TileKind(empty=False, full=True)
