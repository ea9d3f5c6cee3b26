"""Masks: what they allow pair by pair, what they claim to know of a tile, and how they look."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn.indices import tile_indices
from attn.masks import (
    And,
    Causal,
    Dense,
    Dilated,
    Lengths,
    Mask,
    Not,
    Prefix,
    Segments,
    Strided,
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


@jax.jit
def tile_of(mask, row, column):
    """Returns all that a mask says of a 4 x 6 tile from these indices on."""
    indices = tile_indices((B,), N, row + jnp.arange(4), column + jnp.arange(6))
    return jnp.broadcast_to(mask.allow(indices), (B, N, 4, 6)), mask.tile(indices)


def assert_said(found, mask, row, column):
    indices = at((row, row + 4), (column, column + 6))
    np.testing.assert_array_equal(found[0], allowed(mask, indices))
    assert tuple(map(bool, found[1])) == tuple(map(bool, mask.tile(indices)))


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


def test_a_limit_that_no_distance_can_reach_is_none():
    assert Window(sys.maxsize, 2**31) == Window()
    assert Dilated(2**30, 0, 3) == Dilated(None, 0, 3)


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


def test_no_pair_is_allowed_beyond_the_reach():
    rng = np.random.default_rng(0)

    def some(depth):
        if depth:
            left, right = some(depth - 1), some(depth - 1)
            return [left & right, left | right, ~left][rng.integers(3)]
        left, right = (None if x > 3 else int(x) for x in rng.integers(0, 6, 2))
        offset = int(rng.integers(-2, 3))
        window = Window(left, right, offset)
        return window if rng.random() < 0.8 else Strided(2)

    known = 0
    for _ in range(60):
        mask = some(int(rng.integers(3)))
        i, j = np.nonzero(allowed(mask)[0, 0])
        behind, ahead = mask.reach()
        assert behind is None or np.all(i - j <= behind)
        assert ahead is None or np.all(j - i <= ahead)
        known += behind is not None
    assert known > 10
