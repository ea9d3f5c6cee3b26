"""Operations that only say which number of a pair is which."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from attn.kernels.values import RESHAPES
from attn.kernels.written import numbers
from attn.kernels.written.numbers import Numbers, few, shape_of


def reshaped(
    writer: Any, equation: Any, operands: Sequence[Any], shape: tuple[int, ...]
) -> Numbers:
    """Returns the numbers in another shape."""
    return numbers.reshaped(operands[0], shape)


def repeated(
    writer: Any, equation: Any, operands: Sequence[Any], shape: tuple[int, ...]
) -> Numbers:
    """Returns the numbers along other axes."""
    x, axes = operands[0], [int(n) for n in equation.params["broadcast_dimensions"]]
    sizes = dict(zip(axes, x.tiles.shape, strict=True))
    lanes = {lane: axes[axis] for lane, axis in x.lanes.items()}
    tiles = np.reshape(x.tiles, [sizes.get(n, 1) for n in range(len(shape))])
    return Numbers(tiles, shape, lanes)


def transposed(writer: Any, equation: Any, operands: Sequence[Any], shape: Any) -> Numbers:
    """Returns the numbers, their axes in another order."""
    (x,), order = operands, equation.params["permutation"]
    lanes = {lane: order.index(axis) for lane, axis in x.lanes.items()}
    return Numbers(np.transpose(x.tiles, order), shape, lanes)


def reversed_(writer: Any, equation: Any, operands: Sequence[Any], _: Any) -> Numbers:
    """Returns the numbers in the opposite order."""
    (x,), axes = operands, equation.params["dimensions"]
    x.check_kept(axes, "rev")
    return x._replace(tiles=np.flip(x.tiles, axes))


def sliced(writer: Any, equation: Any, operands: Sequence[Any], shape: tuple[int, ...]) -> Numbers:
    """Returns some of the numbers."""
    (x,), params = operands, equation.params
    steps = params["strides"] or (1,) * len(shape)
    bounds = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
    return part(x, [slice(*bound) for bound in bounds], shape, "slice")


def joined(writer: Any, equation: Any, operands: Sequence[Any], shape: tuple[int, ...]) -> Numbers:
    """Returns the numbers of all along an axis."""
    axis = equation.params["dimension"]
    shapes = [shape_of(x) for x in operands]
    tiles, lanes = writer.together(operands, shapes, "concatenate")
    found = Numbers(tiles[0], shape, lanes)
    found.check_kept((axis,), "concatenate")
    sizes = [max(several) for several in zip(*(x.shape for x in tiles), strict=True)]
    tiles = [
        np.broadcast_to(x, [own[n] if n == axis else size for n, size in enumerate(sizes)])
        for x, own in zip(tiles, shapes, strict=True)
    ]
    tiles = np.concatenate(tiles, axis)
    few(tiles.shape)
    return found._replace(tiles=tiles)


def stacked(writer: Any, equation: Any, operands: Sequence[Any], _: Any) -> Numbers:
    """Returns the numbers of all along a new axis."""
    return writer.stacked(operands, equation.params["axis"])


def part(x: Numbers, bounds: Sequence[slice], shape: tuple[int, ...], name: str) -> Numbers:
    """Returns the numbers within bounds, which lanes are all."""
    cut = [n for n, size in enumerate(x.shape) if size != shape[n]]
    x.check_kept(cut, name)
    kept = (bound if n in cut else slice(None) for n, bound in enumerate(bounds))
    return Numbers(x.full(cut)[tuple(kept)], shape, x.lanes)


OPERATIONS: dict[str, Callable[..., Numbers]] = {
    "broadcast_in_dim": repeated,
    "concatenate": joined,
    "rev": reversed_,
    "slice": sliced,
    "stack": stacked,
    "transpose": transposed,
    **dict.fromkeys(RESHAPES, reshaped),
}
