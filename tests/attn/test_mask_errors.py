"""Masks that are wrong: the field is named, when a mask is made or when it is used."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn.masks import (
    And,
    Causal,
    Dense,
    Dilated,
    Lengths,
    Not,
    Or,
    Prefix,
    Segments,
    Strided,
    TileKind,
    Where,
    Window,
)
from tests.attn.test_masks import ANY, COLUMNS, ROWS, B, N, S, T, at, each_mask, near


def near_key(at):
    return at.key < 3


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
        (
            lambda: Lengths(key=2**40),
            ValueError,
            "Lengths.key is 1099511627776; expected an",
        ),
        (lambda: Causal(-(2**31)), ValueError, "Window.offset is -2147483648; expected an integer"),
        (
            lambda: Strided(2**31),
            ValueError,
            "Strided.stride is 2147483648; expected an",
        ),
        (lambda: Where(3), TypeError, "Where.function is 3; expected a function"),
        (lambda: Where(None), TypeError, "Where.function is None; expected a function"),
        (lambda: Where(near, tile=(False, True)), TypeError, "Where.tile is (False, True)"),
        (lambda: And(Causal(), 3), TypeError, "And.right is 3; expected a mask"),
        (lambda: Or(None, Causal()), TypeError, "Or.left is None; expected a mask"),
        (lambda: Not(ANY[0, 0, 0]), TypeError, "expected a mask"),
        (lambda: Causal().picture(0, 4), ValueError, "num_queries is 0; expected an int of 1"),
        (lambda: Causal().picture(4, 4, width=0), ValueError, "width is 0; expected an int of 1"),
        (lambda: Segments(ROWS).picture(T + 1, 4), ValueError, "a mask of 13 positions is asked"),
        (lambda: Causal() and Prefix(2), TypeError, "masks compose with &, | and ~, not with"),
        (lambda: not Causal(), TypeError, "mask Causal() is neither true nor false"),
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
        (Where(lambda at: None), TypeError, "<lambda>) returned None; expected an array of bool"),
        (
            Where(near_key, tile=lambda at: True),
            TypeError,
            "returned True of a tile; expected (surely empty, surely full)",
        ),
        (
            Where(near_key, tile=lambda at: (True, False, False)),
            TypeError,
            "returned (True, False, False) of a tile",
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
