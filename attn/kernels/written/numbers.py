"""What a function makes of a pair, each number by itself as a tile: which is which, and where.

Letters: ``*B`` leading axes, N heads, t and s the sides of a tile.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from attn.overrides import Refused

MOST = 64
"""Numbers that are made of a pair at once."""


class Numbers(NamedTuple):
    """What a function makes of one pair, an array of numbers, each number as a tile."""

    tiles: np.ndarray
    """Of arrays ``[*B, N, t, s]``, most axes of which are 1. One for each number of the pair; along
    an axis on which all are the same it is 1, as along one of leading axes."""
    shape: tuple[int, ...]
    """Of what the function makes, leading axes among its axes."""
    lanes: dict[int, int]
    """Of ``*B`` and N those that are an axis longer than 1 here, and not all the same along it."""

    def check_kept(self, axes: Iterable[int], name: str) -> None:
        """Raises unless what is done along these axes is done to numbers of one pair."""
        if {*axes} & {*self.lanes.values()}:
            raise other_lanes(name)

    def full(self, axes: Iterable[int]) -> np.ndarray:
        """Returns the tiles, along these axes as many as there are."""
        whole, sizes = narrow(self.shape, self.lanes), list(self.tiles.shape)
        for n in axes:
            sizes[n] = whole[n]
        return np.broadcast_to(self.tiles, few(sizes))

    def at(self, n: int) -> "Numbers":
        """Returns the numbers at a place of the first axis."""
        self.check_kept((0,), "scan")
        lanes = {lane: axis - 1 for lane, axis in self.lanes.items()}
        return Numbers(self.full((0,))[n], self.shape[1:], lanes)


def other_lanes(name: str) -> Refused:
    """Returns the reason."""
    return Refused(f"its function of pairs has other leading axes than scores: {name}")


def shape_of(x: Any) -> tuple[int, ...]:
    """Returns the shape of an operand, numbers or an array that is of no pair."""
    return x.shape if isinstance(x, Numbers) else np.shape(x)


def narrow(shape: Sequence[int], lanes: dict[int, int]) -> tuple[int, ...]:
    """Returns a shape with 1 along lanes."""
    return tuple(1 if n in lanes.values() else size for n, size in enumerate(shape))


def few(shape: Sequence[int]) -> Sequence[int]:
    """Returns the shape if it is of few numbers.

    Raises:
      Refused: if not.
    """
    if math.prod(shape) > MOST:
        raise Refused(f"its function of pairs makes more than {MOST} numbers of each pair")
    return shape


def filled(shape: Sequence[int], tiles: Sequence[Any]) -> np.ndarray:
    """Returns an array of tiles, into which NumPy is not to look."""
    made = np.empty(len(tiles), object)
    for n, tile in enumerate(tiles):
        made[n] = tile
    return np.reshape(made, shape)


def merged(several: Iterable[dict[int, int]], name: str) -> dict[int, int]:
    """Returns the lanes of all that an operation is of."""
    found: dict[int, int] = {}
    for lanes in several:
        for lane, axis in lanes.items():
            if found.setdefault(lane, axis) != axis:
                raise other_lanes(name)
    if len({*found.values()}) != len(found):
        raise other_lanes(name)
    return found


def aligned(x: Any, shape: Sequence[int], lanes: dict[int, int], num_lanes: int) -> np.ndarray:
    """Returns the tiles of an operand of this shape, where lanes are those of all operands.

    Args:
      x: numbers, or an array that is of no pair, perhaps of no axes.
      shape: of the operand.
      lanes: of all.
      num_lanes: how many leading axes a tile has.
    """
    if not isinstance(x, Numbers):
        return _of_array(x, shape, lanes, num_lanes)
    tiles = x.tiles
    for lane, axis in lanes.items():
        if tiles.shape[axis] > 1:  # What was of further numbers is of a leading axis.
            along = np.moveaxis(tiles, axis, 0)
            several = np.reshape(along, (len(along), -1)).T
            if any(min(tile.shape[-2:]) > 1 for tile in along.flat):
                raise other_lanes("concatenate")
            joined = [jnp.concatenate(jnp.broadcast_arrays(*x), lane) for x in several]
            tiles = np.expand_dims(filled(along.shape[1:], joined), axis)
    return tiles


def _of_array(x: Any, shape: Sequence[int], lanes: dict[int, int], num_lanes: int) -> np.ndarray:
    one = (1,) * (num_lanes + 2)
    if isinstance(x, np.ndarray) and x.size and not any(x.strides):
        # What is a number of the program stays one, for who reads it.
        return filled((1,) * len(shape), [jnp.full(one, x.flat[0].item(), x.dtype)])
    if np.ndim(x) == 0:
        return filled((1,) * len(shape), [jnp.reshape(x, one)])
    kept, tiles = sorted(lanes.values()), []
    order = [kept.index(lanes[lane]) for lane in sorted(lanes)]
    numbers = few(narrow(shape, lanes))
    for at in np.ndindex(*numbers):
        part = x[tuple(slice(None) if n in kept else k for n, k in enumerate(at))]
        part = jnp.transpose(part, order)
        sizes = dict(zip(sorted(lanes), part.shape, strict=True))
        tiles.append(jnp.reshape(part, [sizes.get(n, 1) for n in range(num_lanes + 2)]))
    return filled(numbers, tiles)


def reshaped(x: Numbers, shape: tuple[int, ...]) -> Numbers:
    """Returns the numbers in another shape, lanes being where as many numbers are before them.

    So are axes on which all is the same; others may be taken together.
    """
    before = x.shape

    def place(axis):
        first, size = math.prod(before[:axis]), before[axis]
        places = (n for n, m in enumerate(shape) if m == size and math.prod(shape[:n]) == first)
        return next(places, None)

    lanes, same = {}, set()
    for lane, axis in x.lanes.items():
        if (found := place(axis)) is None:
            raise other_lanes("reshape")
        lanes[lane] = found
    spread = []
    for axis, size in enumerate(before):
        if size > 1 and x.tiles.shape[axis] == 1 and axis not in x.lanes.values():
            found = place(axis)
            spread += [axis] if found is None else []
            same |= set() if found is None else {found}
    tiles = x.full(spread)
    numbers = [1 if n in same else size for n, size in enumerate(narrow(shape, lanes))]
    return Numbers(np.reshape(tiles, numbers), shape, lanes)
