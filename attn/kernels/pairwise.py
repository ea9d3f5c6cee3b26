"""A function of tiles, taken apart: what belongs to queries, to keys, and to pairs.

Between the two matrix products of a tile stands a function of its pairs: scale, bias, the score
function, the mask, dropout. A kernel can do what is elementwise in pairs and nothing else; but most
of what such a function does is about queries alone or about keys alone, be it a gather, a slice of
an array of ids, or a slope of each head. So the function of tile (i, j) is traced, and every value
in it is known by what it depends on:

- on i alone, on j alone or on neither: it is computed outside, for all tiles at once, and is as
  long as the queries, as the keys, or as the heads are many;
- on both, but on nothing other than how far apart they are: it is computed outside, for all the
  distances that tiles have, and as ``attn.indices.along_diagonals`` given to the kernel;
- on both: it is left for the kernel, and must be elementwise. A part of an array that is cut along
  both axes, such as a dense bias, is given to the kernel cut. What is not elementwise, but goes by
  how far the key is from the query and keeps pairs apart, such as a table that is looked up, is
  computed outside for all such offsets, and given along diagonals too (``attn.kernels.offsets``).

A value of pairs that only repeats one of queries or of keys is never made: it stays as narrow as it
was. What cannot be taken apart so is refused, with the reason.

Letters: T queries, S keys, t and s the sides of a tile.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from attn.indices import expand
from attn.kernels.distances import Distances
from attn.kernels.given import check
from attn.kernels.lanes import Lanes
from attn.kernels.reading import Reader
from attn.kernels.values import KEY, NEITHER, OFFSET, PAIR, QUERY, Value, computed, shape_of
from attn.tiles import Share


@dataclasses.dataclass(frozen=True)
class Split:
    """A function of tiles, taken apart."""

    distances: Distances
    given: tuple[Value, ...]
    """The operands, i, j, and where row i is at hand."""
    scores: Value
    results: tuple[Value, ...]
    inputs: tuple[Value, ...]
    """What the pairs take from outside."""
    inside: tuple[Value, ...]
    """What is computed of the pairs."""

    def outer(
        self, values: Sequence[Value], operands: Any, i: Any, j: Any, row: Any
    ) -> list[Array]:
        """Returns these values at a tile, as narrow as they are."""
        at = (jnp.asarray(x, jnp.int32) for x in (i, j, row))
        leaves = (jnp.asarray(x) for x in jax.tree.leaves(operands))
        known = dict(zip(self.given, (*leaves, *at), strict=True))
        return [computed(x, known) for x in values]

    def along(self, value: Value, operands: Any, shares: tuple[Share, Share]) -> Array:
        """Returns a value at all tiles at hand that it is different at, on a first axis."""
        share = shares[value.depends == KEY] if value.depends else Share(1)
        rows = jnp.arange(share.count, dtype=jnp.int32)
        at = lambda tile, row: self.outer([value], operands, tile, tile, row)[0]  # noqa: E731
        return jax.vmap(at)(jnp.asarray(share[rows], jnp.int32), rows)

    def whole(self, cut: Value, operands: Any, shares: tuple[Share, Share]) -> Array:
        """Returns the array ``[..., T, S]`` that is cut along both axes: what is at hand of it."""
        (along, *_), (rows, columns) = cut.operands, shares
        is_of_rows = along.depends == QUERY
        parts = self.along(along, operands, (rows, Share(self.distances.counts[1])))
        axis = parts.ndim - 2 if is_of_rows else parts.ndim - 1
        parts = jnp.moveaxis(parts, 0, axis - 1)
        parts = jnp.reshape(parts, (*parts.shape[: axis - 1], -1, *parts.shape[axis + 1 :]))
        if columns.tiles is None:
            return parts
        tiles = jnp.reshape(parts, (*parts.shape[:-1], -1, self.distances.sides[1]))
        return jnp.reshape(jnp.take(tiles, columns.tiles, axis=-2), (*parts.shape[:-1], -1))

    def diagonals(self, value: Value, operands: Any) -> Array:
        """Returns what a value repeats along diagonals, at all distances, on a first axis."""
        (along,) = value.operands
        leaves = [jnp.asarray(x) for x in jax.tree.leaves(operands)]
        known = dict(zip(self.given, leaves, strict=False))
        if along.depends == OFFSET:
            return self._windows(along, value.params["nearest"], known)

        def at(n):
            here = known | {
                x: (x.nearest + n * self.distances.step).astype(x.dtype) for x in _firsts(along)
            }
            return jnp.broadcast_to(computed(along, here), along.shape)

        return jax.vmap(at)(jnp.arange(self.distances.count, dtype=jnp.int32))

    def _windows(self, x: Value, nearest: dict[Value, int], known: dict[Value, Any]) -> Array:
        """Returns what is known of each offset, those of a tile together, at all distances.

        It is computed as of one query and as many keys as there are offsets.

        Args:
          x: of pairs, on its last two axes.
          nearest: of what it goes by, the first key less the first query at the least distance.
          known: what else it takes.
        """
        (rows, columns), step = self.distances.sides, self.distances.step
        width, firsts = rows + columns - 1, jnp.arange(self.distances.count) * step
        sides = 1, step * (self.distances.count - 1) + width
        offsets = jnp.arange(sides[1])[None] - (rows - 1)
        here = known | {y: _shifted(y, offsets + n) for y, n in nearest.items()}
        whole = jnp.broadcast_to(computed(x, here, sides=sides), shape_of(x, sides))
        windows = whole[..., 0, firsts[:, None] + jnp.arange(width)]
        return jnp.moveaxis(windows, -2, 0)

    def inner(self, known: dict[Value, Array], scores: Array, which: int) -> Array:
        """Returns a result ``[s, t]`` of a tile, or what broadcasts to it.

        Args:
          known: the inputs, each ``[s, t]`` or what broadcasts to it.
          scores: ``[s, t]``.
          which: of the results.
        """
        return computed(self.results[which], {**known, self.scores: scores})


def split(
    function: Callable,
    counts: tuple[int, int],
    operands: Any,
    scores: Any,
    *,
    is_grouped: bool = False,
) -> Split:
    """Takes apart ``function(operands, i, j, row, scores)``, which returns values of pairs.

    Args:
      function: of whole arrays, of the indices of a tile, of the place of its row in arrays that
        hold some rows of tiles, and of its scores ``[..., t, s]``; returns a list.
      counts: how many tiles of queries and of keys there are.
      operands: a pytree of arrays or their types.
      scores: the type of the scores of a tile.
      is_grouped: whether its last two leading axes may also be one, as those of heads are.

    Raises:
      Refused: if what depends on both indices is not elementwise, or has other leading axes.
    """
    index = jax.ShapeDtypeStruct((), jnp.int32)
    closed = jax.make_jaxpr(lambda *x: function(*x))(operands, index, index, index, scores)

    def named(x: Any, depends, **more):
        return Value(depends, x.aval.shape, x.aval.dtype, x.aval.shape, **more)

    *leaves, i, j, row, of_scores = closed.jaxpr.invars
    given = (
        *(named(x, NEITHER) for x in leaves),
        *(named(i, QUERY), named(j, KEY), named(row, QUERY)),
    )
    of_scores = named(of_scores, PAIR, is_inner=True)
    *lanes, rows, columns = scores.shape
    distances = Distances(counts, (rows, columns))
    most = 16 * math.prod(lanes) * max(rows, columns)
    reader = Reader(given[-3:], distances, most, Lanes(tuple(lanes), is_grouped))
    consts = [reader.constant(x) for x in closed.consts]
    results = reader.settled(reader.values(closed.jaxpr, (*given, of_scores), consts))
    is_outer = lambda x: not x.is_inner or x.is_cut or x.is_diagonal  # noqa: E731
    known = [x for x in _all_of(results, is_outer) if x is not of_scores and not x.is_number]
    inputs = [x for x in known if is_outer(x)]
    for x in inputs:
        check(x, given, distances)
    inside = [x for x in known if not is_outer(x)]
    return Split(distances, given, of_scores, *map(tuple, (results, inputs, inside)))


def _shifted(x: Value, offsets: Array) -> Array:
    """Returns an operation of keys and queries, where all queries are 0."""
    keys_queries = [offsets if y.depends == KEY else jnp.zeros_like(offsets) for y in x.operands]
    types = (y.dtype for y in x.operands)
    of_types = [y.astype(dtype) for y, dtype in zip(keys_queries, types, strict=True)]
    found = x.operation.bind(*of_types, **x.params)
    return expand(found, len(x.shape))


def _firsts(x: Value) -> list[Value]:
    """Returns the keys less queries that a value goes by."""
    is_first = lambda y: y.nearest is not None  # noqa: E731
    return [y for y in _all_of([x], is_first) if is_first(y)]


def _all_of(results: Sequence[Value], is_last: Callable[[Value], bool]) -> list[Value]:
    """Returns values and what they are computed from, but for the operands of the last ones."""
    found: dict[Value, None] = {}
    left = list(reversed(results))
    while left:
        if (x := left.pop()) not in found:
            found[x] = None
            left += [] if is_last(x) else reversed(x.operands)
    return list(found)
