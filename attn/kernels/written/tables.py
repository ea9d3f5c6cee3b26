"""What is looked up for a pair in an array that is of no pair.

By what the place depends on, seen from its shape: of queries alone or of keys alone, it is given to
a kernel from outside. Of both, the entry is selected among those that may be it, if they are few;
else it is a pair's own (``attn.indices.of_pairs``), or goes by how far the two are apart, which who
reads the function finds out (``attn.kernels.reading``).
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from attn.devices import vary
from attn.indices import of_pairs
from attn.kernels.written.moves import part
from attn.kernels.written.numbers import Numbers, few, filled, shape_of
from attn.overrides import Refused

FEW = 64
"""Entries that one is selected among."""
BOTH = (True, True)


def looked_up(table: Array, places: Sequence[Array], mode: Any, fill: Any = None) -> Array:
    """Returns ``table[places]``, a tile.

    Args:
      table: of as many axes as there are places.
      places: integers ``[*B, N, t, s]``, or of 1 along some of these.
      mode: ``lax.GatherScatterMode``, for places that are not there.
      fill: what is there if it is ``FILL_OR_DROP``; None is what JAX fills with.
    """
    sides = [tuple(size > 1 for size in x.shape[-2:]) for x in places]
    if tuple(map(any, zip(*sides, strict=True))) != BOTH:
        return _entries(table, places, mode, fill)
    of_both, of_queries, of_keys = (
        [n for n, side in enumerate(sides) if side == kind]
        for kind in (BOTH, (True, False), (False, True))
    )
    fewer = min(of_queries, of_keys, key=lambda axes: math.prod(table.shape[n] for n in axes))
    one_of = sorted({*of_both, *(fewer if of_queries and of_keys else ())})
    if math.prod(table.shape[n] for n in one_of) <= FEW:
        found = _selected(table, places, one_of, mode, fill)
    elif (
        not of_both
        and _is_vector(places, of_queries)
        and _is_vector(places, of_keys)
        and mode != lax.GatherScatterMode.FILL_OR_DROP
    ):
        found = _of_pairs(table, places, *of_queries, *of_keys)
    else:
        return _entries(table, places, mode, fill)
    if mode != lax.GatherScatterMode.PROMISE_IN_BOUNDS:
        return found
    # Past its end a table that is promised to be longer is read at its end, without a derivative.
    sizes = zip(places, table.shape, strict=True)
    is_there = functools.reduce(jnp.logical_and, ((x >= 0) & (x < size) for x, size in sizes))
    return jnp.where(is_there, found, lax.stop_gradient(found))


def _entries(table: Array, places: Sequence[Array], mode: Any, fill: Any) -> Array:
    if not places:
        return table
    axes = tuple(range(table.ndim))
    indices = jnp.concatenate([x[..., None] for x in jnp.broadcast_arrays(*places)], axis=-1)
    numbers = lax.GatherDimensionNumbers((), axes, axes)
    return lax.gather(table, indices, numbers, (1,) * table.ndim, mode=mode, fill_value=fill)


def _selected(
    table: Array, places: Sequence[Array], one_of: Sequence[int], mode: Any, fill: Any
) -> Array:
    """Returns the same, of some axes by looking at all their places, one after the other."""
    is_filled = mode == lax.GatherScatterMode.FILL_OR_DROP
    last = {n: table.shape[n] - 1 for n in one_of}
    asked = {n: places[n] if is_filled else jnp.clip(places[n], 0, last[n]) for n in one_of}
    rest = [x for n, x in enumerate(places) if n not in one_of]

    def row(at: Sequence[int]) -> Array:
        here = dict(zip(one_of, at, strict=True))
        of_row = table[tuple(here.get(n, slice(None)) for n in range(table.ndim))]
        return _entries(of_row, rest, mode, fill)

    found = row([0] * len(one_of))
    if is_filled:
        found = jnp.full_like(found, _nothing(table.dtype) if fill is None else fill)
    for at in itertools.product(*(range(table.shape[n]) for n in one_of)):
        if is_filled or any(at):
            is_there = functools.reduce(
                jnp.logical_and, (asked[n] == k for n, k in zip(one_of, at, strict=True))
            )
            found = jnp.where(is_there, row(at), found)
    return found


def _nothing(dtype: Any) -> Any:
    """Returns what JAX fills with."""
    if jnp.issubdtype(dtype, jnp.inexact):
        return jnp.nan
    if jnp.issubdtype(dtype, jnp.bool_):
        return True
    is_signed = jnp.issubdtype(dtype, jnp.signedinteger)
    return jnp.iinfo(dtype).min if is_signed else jnp.iinfo(dtype).max


def _is_vector(places: Sequence[Array], which: Sequence[int]) -> bool:
    return len(which) == 1 and all(n == 1 for n in places[which[0]].shape[:-2])


def _of_pairs(table: Array, places: Sequence[Array], of_queries: int, of_keys: int) -> Array:
    """Returns the same of an array of all pairs, perhaps for each lane."""
    lanes = [n for n in range(table.ndim) if n not in (of_queries, of_keys)]
    table = jnp.transpose(table, (*lanes, of_queries, of_keys))
    if lanes:
        of_lanes = jnp.broadcast_arrays(*(places[n] for n in lanes))
        table = table.at[tuple(x[..., 0, 0] for x in of_lanes)].get(mode="clip")
    return of_pairs(table, places[of_queries], places[of_keys])


def cut(writer: Any, equation: Any, operands: Sequence[Any], shape: tuple[int, ...]) -> Numbers:
    """Returns a part of an array, from a place on that a pair decides."""
    x, *starts = operands
    whole = shape_of(x)
    axes = [n for n, size in enumerate(whole) if size != shape[n]]
    if isinstance(x, Numbers):
        if any(not isinstance(starts[n], np.ndarray) for n in axes):
            raise Refused("its function of pairs looks up what it makes: dynamic_slice")
        bounds = [slice(None)] * len(shape)
        for n in axes:
            first = min(max(int(starts[n]), 0), whole[n] - shape[n])
            bounds[n] = slice(first, first + shape[n])
        return part(x, bounds, shape, "dynamic_slice")
    for n in axes:
        if not isinstance(starts[n], Numbers):
            x = lax.dynamic_slice_in_dim(x, starts[n], shape[n], n)
    moved = {n: writer.tile(starts[n]) for n in axes if isinstance(starts[n], Numbers)}
    if any(shape[n] != 1 for n in moved):
        raise Refused("its function of pairs takes several entries of an array at once")
    tiles = []
    for at in np.ndindex(*few(shape)):
        fixed = {n: k for n, k in enumerate(at) if n not in moved}
        tiles.append(_entry(writer, x, moved, fixed, lax.GatherScatterMode.CLIP, None))
    return Numbers(filled(shape, tiles), shape, {})


def gathered(
    writer: Any, equation: Any, operands: Sequence[Any], shape: tuple[int, ...]
) -> Numbers:
    """Returns entries of an array, at places that a pair decides."""
    (table, places), params = operands, equation.params
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    if isinstance(table, Numbers):
        raise Refused("its function of pairs looks up what it makes: gather")
    mapped, offsets = numbers.start_index_map, numbers.offset_dims
    whole = [n for n in range(len(sizes)) if n not in mapped]
    if numbers.operand_batching_dims or not (
        all(sizes[n] == 1 for n in mapped) and all(sizes[n] == table.shape[n] for n in whole)
    ):
        raise Refused("its function of pairs takes several entries of an array at once")
    # An axis of the result is of the places, or of what is taken whole.
    of_places = [n for n in range(len(shape)) if n not in offsets]
    of_table = [n for n in range(len(sizes)) if n not in numbers.collapsed_slice_dims]
    lanes = {lane: of_places[axis] for lane, axis in places.lanes.items()}
    several = places.full((len(places.shape) - 1,))
    known = dict(zip(of_places, several.shape, strict=False))
    few(found := tuple(known.get(n, size) for n, size in enumerate(shape)))
    tiles = []
    for at in np.ndindex(*found):
        moved = dict(zip(mapped, several[tuple(at[n] for n in of_places)], strict=True))
        fixed = {axis: at[n] for axis, n in zip(of_table, offsets, strict=True)}
        rest = {axis: fixed.get(axis, 0) for axis in whole}
        tiles.append(_entry(writer, table, moved, rest, params["mode"], params["fill_value"]))
    return Numbers(filled(found, tiles), shape, lanes)


def _entry(
    writer: Any, table: Any, moved: dict[int, Array], fixed: dict[int, int], mode: Any, fill: Any
) -> Array:
    """Returns an entry of an array as a tile, at places along some axes and fixed on others."""
    table = vary(jnp.asarray(table), writer.axes)
    table = table[tuple(fixed.get(n, slice(None)) for n in range(table.ndim))]
    return looked_up(table, [moved[n] for n in sorted(moved)], mode, fill)


OPERATIONS: dict[str, Callable[..., Numbers]] = {"dynamic_slice": cut, "gather": gathered}
