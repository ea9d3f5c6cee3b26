"""Sums over tiles: a family that is closed under differentiation, the ground of all derivatives.

    out = sum over tiles (i, j) of  f(operands at (i, j))

An operand is cut along its axis of queries, its axis of keys, both or neither, and so is a result:
what has an axis of queries is written where tile i stands, what has none is summed over. One tile
exists at a time, so memory is that of the operands and the results, whatever T x S is.

The derivative of a sum over tiles is a sum over tiles of the derivative of f. Its transpose is a
sum over tiles of the transpose of f, in which operands and results change places: the slice of one
becomes the accumulation of the other. So every derivative, of any order and in any mode, is again
one pass over the tiles, and nothing is saved between passes but operands and results. ``jax.vmap``
maps f, and leaves the loop as it is. Tiles that a mask leaves empty are not visited.

Queries and keys may be spread over a ring of devices. What is cut by keys alone then goes round,
operands and results alike; so the transpose of a pass round the ring is one more.

Letters: T queries, S keys, i and j the indices of a tile, t and s its sides.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching
from jaxtyping import Array

from attn.devices import abstract, example, vary, varying
from attn.overrides import Kernel, Opaque, Pull, register
from attn.products import small_first
from attn.spread import Ring, shares_of
from attn.tiles import (
    Axes,
    Grid,
    Share,
    Tile,
    agreed,
    cut,
    part_shape,
    put,
    sweep,
    whole_shape,
)


def tile_sum(
    grid: Grid,
    function: Callable,
    kinds: Callable | None,
    operands: Any,
    in_axes: Any,
    out_axes: Any,
    ring: Ring | None = None,
    pull: Pull | None = None,
) -> Any:
    """Returns the sum over all tiles that are not empty of ``function(tile, operands at it)``.

    Args:
      grid: the tiles.
      function: differentiable in the operands; must close over no traced array.
      kinds: ``kinds(i, columns, operands)`` is the kind of the tiles of row i in these columns,
        from the whole operands; None if all are full.
      operands: a pytree of arrays, padded to the grid.
      in_axes: a pytree of ``Axes`` of the same structure.
      out_axes: a pytree of ``Axes``, of the structure of what ``function`` returns.
      ring: over which queries and keys are spread; operands and results are then a device's share.
      pull: the transpose as a kernel; None if there is none.

    Returns:
      Arrays padded to the grid.
    """
    is_axes = lambda x: isinstance(x, Axes)  # noqa: E731
    leaves, tree = jax.tree.flatten(operands)
    in_axes = tuple(jax.tree.leaves(in_axes, is_leaf=is_axes))
    out_axes, out_tree = jax.tree.flatten(out_axes, is_leaf=is_axes)

    def of_leaves(tile, *leaves):
        return jax.tree.leaves(function(tile, jax.tree.unflatten(tree, leaves)))

    def kinds_of_leaves(i, columns, *leaves):
        assert kinds is not None
        return kinds(i, columns, jax.tree.unflatten(tree, leaves))

    parts = [
        example(part_shape(grid, x, axes), x.dtype, varying(x))
        for x, axes in zip(leaves, in_axes, strict=True)
    ]
    results = jax.eval_shape(functools.partial(of_leaves, Tile(0, 0, True, 0, 0)), *parts)
    shares = shares_of(grid, ring)
    outs = tuple(
        jax.ShapeDtypeStruct(whole_shape(grid, x, axes, shares), x.dtype)
        for x, axes in zip(results, out_axes, strict=True)
    )
    of_row = None if kinds is None else kinds_of_leaves
    transposed = None if pull is None else pull.of_leaves(tree)
    sums = _Sum(grid, of_leaves, of_row, in_axes, tuple(out_axes), outs, ring, None, transposed)
    return jax.tree.unflatten(out_tree, tile_sum_p.bind(*leaves, sum=sums))


@dataclasses.dataclass(frozen=True, eq=False)
class _Sum:
    """What ``tile_sum`` computes: the static part of the primitive.

    ``function(tile, *leaves)`` gives the summands of a tile from its leaves; ``kinds(i, columns,
    *leaves)`` sees the leaves whole. ``outs`` are the types of the padded results.
    """

    grid: Grid
    function: Callable
    kinds: Callable | None
    in_axes: tuple[Axes, ...]
    out_axes: tuple[Axes, ...]
    outs: tuple[jax.ShapeDtypeStruct, ...]
    ring: Ring | None = None
    kernel: Kernel | None = None
    """Another way to run it."""
    transposed: Callable | None = None
    """``(linear, given)`` gives another way to run its transpose, or None."""

    def run(self, *leaves: Array) -> list[Array]:
        """Returns the results."""
        zeros = [jnp.zeros(x.shape, x.dtype) for x in self.outs]
        if self.ring is None or self.ring.is_gathered:
            return self._over(leaves, zeros, shares_of(self.grid, self.ring))
        return self._around(self.ring, leaves, zeros)

    def _around(self, ring: Ring, leaves: Sequence[Array], zeros: list[Array]) -> list[Array]:
        """Returns the results, after what belongs to keys has gone round the ring."""
        travels_in, travels_out = ([x.travels for x in a] for a in (self.in_axes, self.out_axes))
        keys, queries = split(leaves, travels_in)
        of_keys, of_queries = split(vary(zeros, varying(leaves)), travels_out)

        def visit(device, keys, sums):
            every = join(keys, queries, travels_in)
            # What travels is summed from nothing here: so it need not have come to begin.
            begun = join(of_keys, sums, travels_out)
            summed = self._over(every, begun, ring.shares(self.grid, device))
            summands, sums = split(summed, travels_out)
            return sums, summands

        sums, totals = ring.around(visit, keys, of_queries, of_keys)
        return join(totals, sums, travels_out)

    def _over(
        self, leaves: Sequence[Array], sums: list[Array], shares: tuple[Share, Share]
    ) -> list[Array]:
        """Returns the sums after the tiles at hand."""
        grid, kinds = self.grid, self.kinds
        # What is cut by queries alone is summed along a row of tiles, and written at its end.
        along_row = [axes.query is not None and axes.key is None for axes in self.out_axes]

        def start():
            shapes = (part_shape(grid, x, a) for x, a in zip(self.outs, self.out_axes, strict=True))
            return [
                jnp.zeros(shape, x.dtype) if is_row else None
                for shape, x, is_row in zip(shapes, self.outs, along_row, strict=True)
            ]

        def visit(tile: Tile, row, sums):
            parts = [cut(grid, x, axes, tile) for x, axes in zip(leaves, self.in_axes, strict=True)]
            summands = self.function(tile, *parts)
            row = [x if x is None else x + dx for x, dx in zip(row, summands, strict=True)]
            sums = [
                x if is_row else _accumulate(grid, x, dx, axes, tile)
                for x, dx, axes, is_row in zip(
                    sums, summands, self.out_axes, along_row, strict=True
                )
            ]
            return row, sums

        def finish(n, row, sums):
            at = Tile(0, 0, is_full=True, row=n, column=0)
            return [
                x if part is None else _accumulate(grid, x, part, axes, at)
                for x, part, axes in zip(sums, row, self.out_axes, strict=True)
            ]

        of_row = None if kinds is None else lambda i, columns: kinds(i, columns, *leaves)
        return sweep(shares, of_row, start, visit, finish, sums, varying(leaves))

    def _kinds_of(self, own: Callable) -> Callable | None:
        """Returns ``kinds`` of a sum whose leaves are others, from which ``own`` finds these."""
        kinds = self.kinds
        if kinds is None:
            return None
        return lambda i, columns, *leaves: kinds(i, columns, *own(leaves))

    def tangent(self, moving: Sequence[int]) -> "_Sum":
        """Returns the sum whose operands are these and, after them, the tangents of ``moving``."""

        def function(tile, *leaves):
            primals, tangents = leaves[: len(self.in_axes)], leaves[len(self.in_axes) :]

            def moved(*some):
                every = list(primals)
                for index, x in zip(moving, some, strict=True):
                    every[index] = x
                return self.function(tile, *every)

            return jax.jvp(moved, tuple(primals[k] for k in moving), tangents)[1]

        return dataclasses.replace(
            self,
            function=function,
            kinds=self._kinds_of(lambda leaves: leaves[: len(self.in_axes)]),
            in_axes=(*self.in_axes, *(self.in_axes[k] for k in moving)),
            kernel=None,
            transposed=None,
        )

    def transpose(
        self, linear: Sequence[int], outs: Sequence[jax.ShapeDtypeStruct], given: Sequence[int]
    ) -> "_Sum":
        """Returns the sum from all operands but the linear ones, and the cotangents ``given``."""
        rest = [k for k in range(len(self.in_axes)) if k not in linear]

        def merged(some):
            every: list[Any] = [None] * len(self.in_axes)
            for index, x in zip(rest, some, strict=True):
                every[index] = x
            return every

        def function(tile, *leaves):
            every, cotangents = merged(leaves[: len(rest)]), leaves[len(rest) :]

            def of_linear(*some):
                for index, x in zip(linear, some, strict=True):
                    every[index] = x
                results = self.function(tile, *every)
                return [results[k] for k in given]

            axes = varying(leaves)
            parts = [
                example(part_shape(self.grid, x, self.in_axes[k]), x.dtype, axes)
                for k, x in zip(linear, outs, strict=True)
            ]
            return small_first(jax.linear_transpose(of_linear, *parts))(list(cotangents))

        return dataclasses.replace(
            self,
            function=function,
            kinds=self._kinds_of(lambda leaves: merged(leaves[: len(rest)])),
            in_axes=(*(self.in_axes[k] for k in rest), *(self.out_axes[k] for k in given)),
            out_axes=tuple(self.in_axes[k] for k in linear),
            outs=tuple(outs),
            kernel=None if self.transposed is None else self.transposed(linear, given),
            transposed=None,
        )

    def batch(self, size: int, mapped: Sequence[bool]) -> "_Sum":
        """Returns the sum over ``size`` lanes; what is mapped has them as its first axis."""
        in_axes = [0 if is_mapped else None for is_mapped in mapped]

        def function(tile, *leaves):
            of_lane = functools.partial(self.function, tile)
            return jax.vmap(of_lane, in_axes, axis_size=size)(*leaves)

        def kinds(i, columns, *leaves):
            def of_lane(*leaves):
                assert self.kinds is not None
                return agreed(self.kinds(i, columns, *leaves))

            return jax.vmap(of_lane, in_axes, out_axes=None, axis_size=size)(*leaves)

        def transposed(linear, given):
            assert self.transposed is not None
            kernel = self.transposed(linear, given)
            rest = [is_mapped for k, is_mapped in enumerate(mapped) if k not in linear]
            lanes = None if kernel is None else kernel.batch(size, [*rest, *(True for _ in given)])
            if lanes is None or all(mapped[k] for k in linear):
                return lanes

            def run(*leaves, **platform):
                found = lanes.run(*leaves, **platform)
                pairs = zip(found, linear, strict=True)
                return [x if mapped[k] else jnp.sum(x, axis=0) for x, k in pairs]

            return lanes._replace(run=run)

        return dataclasses.replace(
            self,
            function=function,
            kinds=None if self.kinds is None else kinds,
            kernel=None if self.kernel is None else self.kernel.batch(size, mapped),
            transposed=None if self.transposed is None else transposed,
            outs=tuple(jax.ShapeDtypeStruct((size, *x.shape), x.dtype) for x in self.outs),
        )


def _accumulate(grid: Grid, x: Array, part: Array, axes: Axes, tile: Tile) -> Array:
    if axes == Axes():
        return x + part
    return put(grid, x, cut(grid, x, axes, tile) + part, axes, tile)


def split(every: Sequence[Any], flags: Sequence[bool]) -> tuple[list[Any], list[Any]]:
    """Returns those whose flag is set, and the others."""
    pairs = list(zip(every, flags, strict=True))
    return [x for x, flag in pairs if flag], [x for x, flag in pairs if not flag]


def join(some: Sequence[Any], others: Sequence[Any], flags: Sequence[bool]) -> list[Any]:
    """Returns what ``split`` had taken apart."""
    flagged, rest = iter(some), iter(others)
    return [next(flagged) if flag else next(rest) for flag in flags]


tile_sum_p = Primitive("tile_sum")
tile_sum_p.multiple_results = True
tile_sum_p.def_impl(lambda *leaves, sum: sum.run(*leaves))


@tile_sum_p.def_abstract_eval
def _abstract_eval(*leaves, sum):
    return [abstract(x.shape, x.dtype, leaves) for x in sum.outs]


register(tile_sum_p, lambda sum: Opaque(sum.run, sum.outs, sum.kernel))


def _jvp(primals, tangents, *, sum):
    moving = [k for k, x in enumerate(tangents) if type(x) is not ad.Zero]
    outs = tile_sum_p.bind(*primals, sum=sum)
    moved = tile_sum_p.bind(*primals, *(tangents[k] for k in moving), sum=sum.tangent(moving))
    return outs, moved


def _transpose(cotangents, *leaves, sum):
    linear = [k for k, x in enumerate(leaves) if ad.is_undefined_primal(x)]
    given = [k for k, x in enumerate(cotangents) if type(x) is not ad.Zero]
    outs = [jax.ShapeDtypeStruct(leaves[k].aval.shape, leaves[k].aval.dtype) for k in linear]
    results = tile_sum_p.bind(
        *(x for k, x in enumerate(leaves) if k not in linear),
        *(cotangents[k] for k in given),
        sum=sum.transpose(linear, outs, given),
    )
    found = dict(zip(linear, results, strict=True))
    return [found.get(k) for k in range(len(leaves))]


def _batch(leaves, dims, *, sum):
    size = next(x.shape[d] for x, d in zip(leaves, dims, strict=True) if d is not None)
    leaves = [x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(leaves, dims, strict=True)]
    outs = tile_sum_p.bind(*leaves, sum=sum.batch(size, [d is not None for d in dims]))
    return outs, [0] * len(outs)


ad.primitive_jvps[tile_sum_p] = _jvp
ad.primitive_transposes[tile_sum_p] = _transpose
batching.primitive_batchers[tile_sum_p] = _batch
