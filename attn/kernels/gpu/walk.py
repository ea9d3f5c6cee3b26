"""How a kernel goes over tiles on a GPU: a block of one side stays, tiles of the other come by.

Of a block of queries (or of keys) each of two groups of warps has some, in registers and shared
memory. A third group of threads brings what is streamed: the tiles of keys (or of queries) that a
mask leaves, full ones first and those that are not finite last, from lists made before the kernel,
traced masks included. What is known of each query, key or pair is read where it is used.

    sums = start()      sums = visit(tile, sums) for each tile      finish(sums)

Letters: ``*B`` leading axes, N query heads, K key heads; n queries or keys of the side that stays,
m of the other, W a width; r and c the sides of what a group sees at once.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from attn.kernels.call import Call
from attn.kernels.gpu.launch import Launch, Stop, times, unravelled
from attn.kernels.gpu.lists import lists_of, of_visited
from attn.kernels.gpu.tile import Tile, picked
from attn.kernels.values import KEY, QUERY
from attn.plan import Context
from attn.tiles import Share

ROWS = 64
"""Queries or keys of a group of warps: the height of a product."""
GROUPS = 2
"""Of warps that compute."""


class Walk(NamedTuple):
    """The sides of a kernel's blocks, and of what comes by."""

    call: Call
    order: frozenset[str]
    """The side of which blocks stay."""
    rows: int
    """r, of those that stay with a group of warps."""
    groups: int
    """Of warps that compute."""
    piece: int
    """c, of those that come at a time."""
    simulated: Any = None
    """How Pallas simulates the kernel on a CPU, threads and barriers too, where it is interpreted;
    by itself only what is computed is."""

    @property
    def members(self) -> int:
        """Heads that go by where a key head stays; 1 where queries do."""
        return self.call.group_size if self.order == KEY else 1

    def zeros(self, width: int | None = None, value: float = 0.0) -> Array:
        """Returns what is summed for each that stays, ``[r]`` or ``[r, W]``, at first."""
        shape = (self.rows,) if width is None else (self.rows, width)
        x = jnp.full(shape, value, self.call.dtype)
        if self.call.interpret:
            return x
        layout = plgpu.Layout.WGMMA.reduce(1) if width is None else plgpu.Layout.WGMMA
        return plgpu.layout_cast(x, layout)

    def run(
        self,
        name: str,
        context: Context,
        shares: tuple[Share, Share],
        is_bad: tuple[Array, Array],
        stay: Sequence[Array],
        come: Sequence[Array],
        known: Sequence[Array],
        start: Callable,
        visit: Callable,
        finish: Callable,
        outs: Sequence[jax.ShapeDtypeStruct],
        cuts: Sequence[int] = (),
    ) -> list[Array]:
        """Returns the results of a kernel; where keys stay, sums go over all heads that share them.

        Args:
          name: of the kernel, in profiles.
          context: of the call.
          shares: the tiles of queries and of keys at hand.
          is_bad: which queries ``[*B, N, T]`` and which keys ``[*B, N, S]`` are not finite.
          stay: of the side that stays, ``[*B, N or K, n, W]``.
          come: of the other side, ``[*B, N or K, m, W]``.
          known: read where it is used, ``[*B, N, ...]``, with 1 where it is the same for all.
          start: gives sums.
          visit: of a ``Tile`` and sums gives sums.
          finish: of references to the results, of what gives their part at what stays (of a head,
            or of its key head, ``is_of_keys``), and of sums: writes them, and returns the sums that
            the next head which shares these keys begins with.
          outs: shapes and dtypes of the results.
          cuts: which results are of pairs; they are 0 in tiles that are not visited.
        """
        sizes = self.groups, self.rows, self.piece
        body = functools.partial(self.body, start, visit, finish)
        launch = Launch(name, *sizes, stay, come, len(known), outs, body, self.simulated)
        if 0 in launch.lanes:
            return [jnp.zeros(x.shape, x.dtype) for x in outs]
        lists = lists_of(self.call, context, self.order, shares, is_bad)
        operands = *lists[:2], *stay, *come, *known
        found = launch.start(operands, interpret=self.call.interpret)
        return [of_visited(x, lists) if n in cuts else x for n, x in enumerate(found)]

    def body(
        self,
        start: Callable,
        visit: Callable,
        finish: Callable,
        lanes: tuple[int, ...],
        added: tuple[int, ...],
        lists: Sequence[Any],
        stay: Sequence[Any],
        come: Sequence[Any],
        known: Sequence[Any],
        written: Sequence[Any],
    ) -> Callable[[Any, Any, Any], Stop]:
        """Returns what a group of warps does at a block, as ``Launch`` takes it."""
        group_size, plan = self.call.group_size, self.call.plan
        sides = plan.grid.query_side, plan.grid.key_side
        side, other_side = sides if self.order == QUERY else sides[::-1]
        block, per_tile = self.rows * self.groups, jnp.int32(other_side // self.piece)
        per_side = jnp.int32(side // block)

        def at_block(lane, n, group):
            *of_batch, own = unravelled(lane, lanes)
            tiles, ends = (picked(x, of_batch[: len(added)]) for x in lists)
            row = lax.div(n, per_side)
            first = ends[row, 0] * side + lax.rem(n, per_side) * block + group * self.rows
            full, clean, visited = (ends[row, k] * per_tile for k in (1, 2, 3))

            def place(k):
                tile = tiles[row, lax.div(k, per_tile)]
                return tile * other_side + lax.rem(k, per_tile) * self.piece

            def heads(member):
                if self.order == KEY:
                    return own * group_size + member, own
                return own, lax.div(own, jnp.int32(group_size))

            def coming(k):
                head, key_head = heads(lax.div(k, visited))
                source = key_head if self.order == QUERY else head
                at = pl.ds(place(lax.rem(k, visited)), self.piece)
                return [picked(ref, (*of_batch, source), at) for ref in come]

            def compute(stays, having, take_turns):
                def of_member(member, sums):
                    head, _ = heads(member)

                    def step(k, sums, *, is_full):
                        at = *of_batch, head, first, place(k)
                        with having(member * visited + k) as comes:
                            shape = self.rows, self.piece
                            refs = stays, comes, known, written
                            kind = is_full, is_full or k < clean
                            tile = Tile(self.call, self.order, shape, *refs, at, *kind, take_turns)
                            return visit(tile, sums)

                    sums = times(full, functools.partial(step, is_full=True), sums)
                    rest = functools.partial(step, is_full=False)
                    sums = lax.fori_loop(full, visited, rest, sums)

                    def at_rows(ref, *, is_of_keys=False):
                        own_head = own if is_of_keys else head
                        return picked(ref, (*of_batch, own_head), pl.ds(first, self.rows))

                    return finish(written, at_rows, sums)

                if self.members == 1:
                    of_member(jnp.int32(0), start())
                else:
                    times(self.members, of_member, start())

            staying = [picked(ref, (*of_batch, own), pl.ds(first, self.rows)) for ref in stay]
            return Stop(staying, coming, compute, visited * self.members)

        return at_block


def walk_of(call: Call, order: frozenset[str], piece: int) -> Walk:
    """Returns a walk that sees ``piece`` at a time of those that come, or all of a small tile."""
    sides = call.plan.grid.query_side, call.plan.grid.key_side
    side, other = sides if order == QUERY else sides[::-1]
    if side % (ROWS * GROUPS) or other % piece:  # Interpreted, for hardware is not asked to.
        return Walk(call, order, side, 1, other)
    return Walk(call, order, ROWS, GROUPS, piece)
