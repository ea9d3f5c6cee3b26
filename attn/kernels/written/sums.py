"""Operations that make one number of many, of the same pair."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from attn.kernels.written.numbers import Numbers, few, filled, merged, shape_of
from attn.overrides import Refused

PRODUCTS = 1024
"""The most of numbers of a pair, in a product of matrices."""
FOLDS: dict[str, Callable] = {
    "reduce_sum": jnp.add,
    "reduce_prod": jnp.multiply,
    "reduce_max": jnp.maximum,
    "reduce_min": jnp.minimum,
    "reduce_and": jnp.bitwise_and,
    "reduce_or": jnp.bitwise_or,
    "cumsum": jnp.add,
    "cumprod": jnp.multiply,
    "cummax": jnp.maximum,
    "cummin": jnp.minimum,
}
"""What makes one number of many, or of all up to each, as what is done to two."""


def folded(writer: Any, equation: Any, operands: Sequence[Any], shape: tuple[int, ...]) -> Numbers:
    """Returns a sum and the like of all numbers along some axes."""
    (x,), name = operands, equation.primitive.name
    together = functools.partial(functools.reduce, FOLDS[name])
    return of_all(x, equation.params["axes"], together, name, shape)


def accumulated(
    writer: Any, equation: Any, operands: Sequence[Any], shape: tuple[int, ...]
) -> Numbers:
    """Returns a sum and the like of all numbers up to each."""
    (x,), name, params = operands, equation.primitive.name, equation.params
    axis, step = params["axis"], -1 if params["reverse"] else 1
    x.check_kept((axis,), name)
    along = np.moveaxis(x.full((axis,)), axis, 0)[::step].copy()
    for n in range(1, len(along)):
        pairs = zip(along[n - 1].flat, along[n].flat, strict=True)
        along[n] = filled(along[n].shape, [FOLDS[name](*pair) for pair in pairs])
    return Numbers(np.moveaxis(along[::step], 0, axis), shape, x.lanes)


def extremum(
    writer: Any, equation: Any, operands: Sequence[Any], shape: tuple[int, ...]
) -> Numbers:
    """Returns which number is the greatest or the least: the first of these, or that is NaN."""
    (x,), name, params = operands, equation.primitive.name, equation.params
    is_past = jnp.greater if name == "argmax" else jnp.less

    def which(tiles):
        best, place = tiles[0], jnp.zeros((), params["index_dtype"])
        for n, tile in enumerate(tiles[1:], 1):
            is_better = is_past(tile, best) | ((tile != tile) & (best == best))
            best = jnp.where(is_better, tile, best)
            place = jnp.where(is_better, jnp.asarray(n, place.dtype), place)
        return jnp.broadcast_to(place, best.shape)

    tiles = [y.astype(jnp.int32) if y.dtype == bool else y for y in x.tiles.flat]
    x = x._replace(tiles=filled(x.tiles.shape, tiles))
    return of_all(x, params["axes"], which, name, shape)


def of_all(
    x: Numbers, axes: Sequence[int], together: Callable, name: str, shape: tuple[int, ...]
) -> Numbers:
    """Returns one number of all along some axes."""
    x.check_kept(axes, name)
    left = [n for n in range(len(x.shape)) if n not in axes]
    moved = np.transpose(x.full(axes), (*left, *axes))
    several = np.reshape(moved, (math.prod(moved.shape[: len(left)]), -1))
    lanes = {lane: left.index(axis) for lane, axis in x.lanes.items()}
    tiles = filled(moved.shape[: len(left)], [together(list(y)) for y in several])
    return Numbers(tiles, shape, lanes)


def product(writer: Any, equation: Any, operands: Sequence[Any], shape: tuple[int, ...]) -> Numbers:
    """Returns a product of matrices, as sums of products."""
    contracted, batch = equation.params["dimension_numbers"]
    shapes = [shape_of(x) for x in operands]
    free = [
        [n for n in range(len(of)) if n not in (*axes, *outer)]
        for of, axes, outer in zip(shapes, contracted, batch, strict=True)
    ]
    # Where an axis of either is in the result: those of the batch, then the free ones.
    starts = len(batch[0]), len(batch[0]) + len(free[0])
    places = [
        {n: at for at, n in enumerate(batch[k])}
        | {n: at for at, n in enumerate(free[k], starts[k])}
        for k in range(2)
    ]
    several = []
    for x, place, axes in zip(operands, places, contracted, strict=True):
        if isinstance(x, Numbers):
            x.check_kept(axes, "dot_general")
            several.append({lane: place[axis] for lane, axis in x.lanes.items()})
    lanes, sides = merged(several, "dot_general"), []
    for k, x in enumerate(operands):
        own = {lane: n for lane, at in lanes.items() for n in places[k] if places[k][n] == at}
        tiles = writer.aligned(x, shapes[k], own)
        summed = [shapes[k][n] if n in contracted[k] else m for n, m in enumerate(tiles.shape)]
        tiles = np.broadcast_to(tiles, few(summed))
        tiles = np.transpose(tiles, (*batch[k], *free[k], *contracted[k]))
        tiles = np.reshape(tiles, (*tiles.shape[: tiles.ndim - len(contracted[k])], -1))
        missing = {*range(len(shape))} - {*places[k].values()}
        sides.append(np.expand_dims(tiles, tuple(sorted(missing))))
    left, right = np.broadcast_arrays(*sides)
    if left.size > PRODUCTS:
        raise Refused(f"its function of pairs has more than {PRODUCTS} products of each pair")
    dtype, terms = equation.outvars[0].aval.dtype, left.shape[-1]

    def sum_of(rows, columns):
        pairs = zip(rows, columns, strict=True)
        return functools.reduce(jnp.add, (x.astype(dtype) * y.astype(dtype) for x, y in pairs))

    pairs = zip(np.reshape(left, (-1, terms)), np.reshape(right, (-1, terms)), strict=True)
    return Numbers(filled(few(left.shape[:-1]), [sum_of(*pair) for pair in pairs]), shape, lanes)


OPERATIONS: dict[str, Callable[..., Numbers]] = {
    "argmax": extremum,
    "argmin": extremum,
    "dot_general": product,
    **{name: folded if name.startswith("reduce_") else accumulated for name in FOLDS},
}
