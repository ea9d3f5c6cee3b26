"""How a kernel goes over tiles on a GPU: a block of one side stays, tiles of the other come by.

Of a block of queries (or of keys) each of two groups of warps has some, in registers and shared
memory. A third group of threads brings what is streamed: the tiles of keys (or of queries) that a
mask leaves, full ones first, from lists made before the kernel, traced masks included. What is
known of each query, key or pair is read where it is used.

    sums = start()      sums = visit(tile, sums) for each tile      finish(sums)

Letters: ``*B`` leading axes, N query heads, K key heads; n queries or keys of the side that stays,
m of the other, W a width; r and c the sides of what a group sees at once.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Bool, Float, Int

from attn.devices import unvarying, vary, varying
from attn.kernels.call import Call, kinds_of
from attn.kernels.values import KEY, QUERY
from attn.overrides import Opaque
from attn.plan import Context
from attn.tiles import EMPTY, FULL, Share

ACC: Any = plgpu.ACC  # pyright: ignore[reportPrivateImportUsage]
"""What products are summed in."""
ROWS = 64
"""Queries or keys of a group of warps: the height of a product."""
GROUPS = 2
"""Of warps that compute."""
COMPUTING, BRINGING = 232, 40
"""Registers of a thread."""
TILED = 64
"""Of a width: shared memory is tiled by as many elements of two bytes."""
SHARED_BYTES = 200 * 2**10
"""Of shared memory, for what stays and what comes."""


class Lists(NamedTuple):
    """Which tiles each block visits."""

    tiles: Int[Array, "blocks n"]
    """The full ones, the mixed ones, and then the others."""
    ends: Int[Array, "blocks 2"]
    """How many are full, and how many are visited."""
    is_visited: Bool[Array, "blocks n"]


def lists_of(
    call: Call, context: Context, order: frozenset[str], shares: tuple[Share, Share]
) -> Lists:
    """Returns which tiles of keys blocks of queries visit (QUERY), or the other way (KEY)."""
    kinds = kinds_of(call, context, shares)
    kinds = kinds.T if order == KEY else kinds
    is_full, is_visited = kinds == FULL, kinds != EMPTY
    rank = jnp.where(is_full, 0, jnp.where(is_visited, 1, 2))
    ends = [jnp.sum(x, axis=1, dtype=jnp.int32) for x in (is_full, is_visited)]
    tiles = jnp.argsort(rank, axis=1, stable=True).astype(jnp.int32)
    return Lists(tiles, jnp.stack(ends, axis=1), is_visited)


@dataclasses.dataclass(frozen=True)
class Tile:
    """What a group of warps sees of a tile: what stays first, ``[r, c]``."""

    walk: "Walk"
    stay: Sequence[Any]
    """In shared memory: ``[r, W]``."""
    come: Sequence[Any]
    """In shared memory: ``[c, W]``."""
    known: Sequence[Any]
    """In global memory, whole."""
    written: Sequence[Any]
    """In global memory, whole."""
    at: tuple[Any, ...]
    """Leading axes, head, and the first that stays and that comes."""

    @property
    def shape(self) -> tuple[int, int]:
        """Of what is of pairs."""
        return self.walk.rows, self.walk.piece

    def pairs(self, n: int, depends: frozenset[str], *, is_cut: bool = False) -> Array:
        """Returns what is known of one side, of neither, or of pairs (``is_cut``), for pairs."""
        ref, order = self.known[n], self.walk.order
        first, place = (pl.ds(x, size) for x, size in zip(self.at[-2:], self.shape, strict=True))
        if is_cut:
            return self.walk.load(self._of(ref, first, place), plgpu.Layout.WGMMA)
        if not depends:
            return jnp.broadcast_to(self._of(ref, 0)[...], self.shape)
        side, axis = (first, 0) if depends == order else (place, 1)
        found = self.walk.load(self._of(ref, side), plgpu.Layout.WGMMA.reduce(1 - axis))
        return lax.broadcast_in_dim(found, self.shape, [axis])

    def write(self, n: int, x: Float[Array, "r c"]) -> None:
        """Writes what is of pairs."""
        sizes = zip(self.at[-2:], self.shape, strict=True)
        self._of(self.written[n], *(pl.ds(x, size) for x, size in sizes))[...] = x

    def _of(self, ref: Any, *places: Any) -> Any:
        return _picked(ref, self.at[:-2], *places)

    def product(self, a: int, b: int) -> Float[Array, "r c"]:
        """Returns ``stay[a] come[b]^T``."""
        return product(self.walk.call, self.stay[a], self.come[b], is_transposed=True)

    def mixed(self, total: Array, x: Float[Array, "r c"], b: int) -> Float[Array, "r W"]:
        """Returns ``total + x come[b]``, x in the dtype of what comes."""
        ref = self.come[b]
        return added(self.walk.call, total, x.astype(ref.dtype), ref)


def product(call: Call, a: Any, b: Any, *, is_transposed: bool = False) -> Array:
    """Returns ``a b``, or ``a b^T``, in float32: an array or shared memory, and shared memory."""
    if call.interpret:
        a, b = a[...], b[...]
        return jnp.dot(a, b.T if is_transposed else b, preferred_element_type=call.dtype)
    b = plgpu.transpose_ref(b, (1, 0)) if is_transposed else b

    def scope(total):
        plgpu.wgmma(total, a, b)
        return total[...]

    return pl.run_scoped(scope, ACC((a.shape[0], b.shape[1]), jnp.float32))


def added(call: Call, total: Array, a: Any, b: Any) -> Array:
    """Returns ``total + a b``."""
    if call.interpret:
        return total + product(call, a, b)
    return pl.run_state(lambda ref: plgpu.wgmma(ref, a, b))(ACC.init(total))


def across(x: Float[Array, "r"], like: Float[Array, "r n"]) -> Float[Array, "r n"]:
    """Returns what is known of each that stays, repeated."""
    return lax.broadcast_in_dim(x, like.shape, [0])


class Walk(NamedTuple):
    """A kernel, but for what it computes."""

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

    def zeros(self, width: int | None = None, value: float = 0.0) -> Array:
        """Returns what is summed for each that stays, ``[r]`` or ``[r, W]``, at first."""
        shape = (self.rows,) if width is None else (self.rows, width)
        x = jnp.full(shape, value, self.call.dtype)
        if self.call.interpret:
            return x
        layout = plgpu.Layout.WGMMA.reduce(1) if width is None else plgpu.Layout.WGMMA
        return plgpu.layout_cast(x, layout)

    def load(self, ref: Any, layout: Any) -> Array:
        """Returns what stands in global memory, in registers."""
        if self.call.interpret:
            return ref[...]
        return plgpu.load(ref, (), layout=layout, optimized=False)

    def run(
        self,
        name: str,
        context: Context,
        shares: tuple[Share, Share],
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
          stay: of the side that stays, ``[*B, N or K, n, W]``.
          come: of the other side, ``[*B, N or K, m, W]``.
          known: read where it is used, ``[*B, N, ...]``, with 1 where it is the same for all.
          start: gives sums.
          visit: of a ``Tile`` and sums gives sums; ``is_full`` is whether all its pairs take part.
          finish: of references to the results, of what gives their part at what stays (of a head,
            or of its key head, ``is_of_keys``), and of sums: writes them, and returns the sums that
            the next head which shares these keys begins with.
          outs: shapes and dtypes of the results.
          cuts: which results are of pairs; they are 0 in tiles that are not visited.
        """
        call, plan = self.call, self.call.plan
        sides = plan.grid.query_side, plan.grid.key_side
        side, other_side = sides if self.order == QUERY else sides[::-1]
        members = call.group_size if self.order == KEY else 1
        per_tile, piece = other_side // self.piece, self.piece
        *batch, num_heads, num_rows, _ = stay[0].shape
        lanes, block = (*batch, num_heads), self.rows * self.groups
        per_side = side // block
        held = block * sum(x.shape[-1] * x.dtype.itemsize for x in stay)
        slot_bytes = piece * sum(x.shape[-1] * x.dtype.itemsize for x in come)
        slots = max(1, min(4, (SHARED_BYTES - held) // slot_bytes))
        counts = len(stay), len(come), len(known), len(outs)

        def body(lanes, added, lists, stay, come, known, written):
            """Returns what computes and what brings, at a block."""

            def at_block(lane, n, group):
                *of_batch, own = _unravelled(lane, lanes)
                tiles, ends = (_picked(x, of_batch[: len(added)]) for x in lists)
                row, first = lax.div(n, jnp.int32(per_side)), n * block + group * self.rows
                full, visited = (ends[row, k] * per_tile for k in range(2))

                def place(k):
                    tile = tiles[row, lax.div(k, jnp.int32(per_tile))]
                    return tile * other_side + lax.rem(k, jnp.int32(per_tile)) * piece

                def heads(member):
                    if self.order == KEY:
                        return own * call.group_size + member, own
                    return own, lax.div(own, jnp.int32(call.group_size))

                def coming(k):
                    head, key_head = heads(lax.div(k, visited))
                    source = key_head if self.order == QUERY else head
                    at = pl.ds(place(lax.rem(k, visited)), piece)
                    return [_picked(ref, (*of_batch, source), at) for ref in come]

                def compute(stays, having):
                    def of_member(member, sums):
                        head, _ = heads(member)

                        def step(k, sums, *, is_full):
                            at = *of_batch, head, first, place(k)
                            with having(member * visited + k) as comes:
                                tile = Tile(self, stays, comes, known, written, at)
                                return visit(tile, sums, is_full=is_full)

                        sums = _times(full, functools.partial(step, is_full=True), sums)
                        if not plan.is_full:
                            mixed = functools.partial(step, is_full=False)
                            sums = lax.fori_loop(full, visited, mixed, sums)

                        def at_rows(ref, *, is_of_keys=False):
                            own_head = own if is_of_keys else head
                            return _picked(ref, (*of_batch, own_head), pl.ds(first, self.rows))

                        return finish(written, at_rows, sums)

                    if members == 1:
                        of_member(jnp.int32(0), start())
                    else:
                        _times(members, of_member, start())

                staying = [_picked(ref, (*of_batch, own), pl.ds(first, self.rows)) for ref in stay]
                return staying, coming, compute, visited * members

            return at_block

        def parted(refs):
            every = iter(refs)
            return ([next(every) for _ in range(n)] for n in (2, *counts))

        def shared(count, length, x):
            transforms = plgpu.TilingTransform((8, TILED)), plgpu.SwizzleTransform(2 * TILED)
            return plgpu.SMEM((count, length, x.shape[-1]), x.dtype, transforms=transforms)

        def over_tiles(added, *operands):
            every_lane = (*added, *lanes)

            def kernel(*refs):
                *refs, stayed, came, here, ready, free = refs
                at_block = body(every_lane, added, *parted(refs))
                group = lax.axis_index("group")
                axes = lax.axis_index("lanes"), lax.axis_index("blocks"), group
                staying, coming, compute, total = at_block(*axes)

                @contextlib.contextmanager
                def having(k):
                    slot = lax.rem(k, jnp.int32(slots))
                    plgpu.barrier_wait(ready.at[slot])
                    yield [x.at[slot] for x in came]
                    plgpu.barrier_arrive(free.at[slot])

                @pl.when(group < self.groups)
                def _():
                    plgpu.set_max_registers(COMPUTING, action="increase")
                    for part, kept in zip(staying, stayed, strict=True):
                        plgpu.copy_gmem_to_smem(part, kept.at[group], here.at[group])
                    plgpu.barrier_wait(here.at[group])
                    compute([x.at[group] for x in stayed], having)

                @pl.when(group == self.groups)
                def _():
                    plgpu.set_max_registers(BRINGING, action="decrease")

                    def wait(k):
                        plgpu.barrier_wait(free.at[lax.rem(k, jnp.int32(slots))])

                    def bring(k, _):
                        pl.when(k >= slots)(functools.partial(wait, k))
                        slot = lax.rem(k, jnp.int32(slots))
                        for part, kept in zip(coming(k), came, strict=True):
                            plgpu.copy_gmem_to_smem(part, kept.at[slot], ready.at[slot])
                        return 0

                    _times(total, bring, 0)
                    # None is left waiting for the last.
                    pl.loop(jnp.maximum(total - slots, 0), total)(wait)

            settings = {} if self.simulated is None else {"interpret": self.simulated}
            return plgpu.kernel(
                kernel,
                out_type=[unvarying((*added, *x.shape), x.dtype) for x in outs],
                scratch_types=[
                    [shared(self.groups, self.rows, x) for x in stay],
                    [shared(slots, piece, x) for x in come],
                    plgpu.Barrier(num_arrivals=len(stay), num_barriers=self.groups),
                    plgpu.Barrier(num_arrivals=len(come), num_barriers=slots),
                    plgpu.Barrier(num_arrivals=self.groups, num_barriers=slots),
                ],
                grid=(math.prod(every_lane), num_rows // block),
                grid_names=("lanes", "blocks"),
                num_threads=self.groups + 1,
                thread_name="group",
                kernel_name=name,
                **settings,
            )(*operands)

        def interpreted(added, *operands):
            every_lane = (*added, *lanes)
            sizes = math.prod(every_lane), num_rows // block, self.groups

            def of_refs(refs):
                at_block = body(every_lane, added, *parted(refs))

                def at(k, _):
                    staying, coming, compute, _ = at_block(*_unravelled(k, sizes))
                    compute(staying, lambda k: contextlib.nullcontext(coming(k)))
                    return 0

                _times(math.prod(sizes), at, 0)

            zeros = [jnp.zeros((*added, *x.shape), x.dtype) for x in outs]
            return pl.run_state(of_refs)([*operands, *zeros])[-len(outs) :]

        if 0 in lanes:
            return [jnp.zeros(x.shape, x.dtype) for x in outs]
        lists = lists_of(call, context, self.order, shares)
        every = (*lists[:2], *stay, *come, *known)
        if self.simulated is not None:
            found = over_tiles((), *every)
        else:
            function = interpreted if call.interpret else over_tiles
            opaque = _opaque(function, outs, (), [()] * len(every))
            found = opaque(*vary(every, varying(every)))
        return [_of_visited(x, lists) if n in cuts else x for n, x in enumerate(found)]


def _times(count: Any, body: Callable, carry: Any) -> Any:
    return lax.fori_loop(jnp.int32(0), jnp.asarray(count, jnp.int32), body, carry)


def walk_of(call: Call, order: frozenset[str], piece: int) -> Walk:
    """Returns a walk that sees ``piece`` at a time of those that come, or all of a small tile."""
    sides = call.plan.grid.query_side, call.plan.grid.key_side
    side, other = sides if order == QUERY else sides[::-1]
    if side % (ROWS * GROUPS) or other % piece:  # Interpreted, for hardware is not asked to.
        return Walk(call, order, side, 1, other)
    return Walk(call, order, ROWS, GROUPS, piece)


def _of_visited(x: Float[Array, "*B N n m"], lists: Lists) -> Float[Array, "*B N n m"]:
    """Returns what is of pairs, 0 where no tile was visited."""
    *lanes, num_rows, num_columns = x.shape
    blocks, columns = lists.is_visited.shape
    tiles = jnp.reshape(x, (*lanes, blocks, num_rows // blocks, columns, num_columns // columns))
    return jnp.reshape(jnp.where(lists.is_visited[:, None, :, None], tiles, 0), x.shape)


def _opaque(
    function: Callable,
    outs: Sequence[jax.ShapeDtypeStruct],
    added: tuple[int, ...],
    mapped: Sequence[tuple[bool, ...]],
) -> Opaque:
    """Returns ``function(added, *operands)`` for JAX to look into when it compiles.

    ``jax.vmap`` adds lanes to the kernel, whatever it maps.

    Args:
      function: of the axes that are added, and of operands which all have them, perhaps as 1.
      outs: shapes and dtypes of the results, but for these axes.
      added: their sizes, the last to be added first.
      mapped: of each operand, which of them it has.
    """

    def expanded(x, axes):
        return jnp.expand_dims(x, [n for n, is_mapped in enumerate(axes) if not is_mapped])

    def definition(*operands):
        return function(added, *map(expanded, operands, mapped))

    def over_lanes(size, is_mapped):
        every = [(new, *old) for new, old in zip(is_mapped, mapped, strict=True)]
        return _opaque(function, outs, (size, *added), every)

    shapes = (jax.ShapeDtypeStruct((*added, *x.shape), x.dtype) for x in outs)
    return Opaque(definition, tuple(shapes), is_plain=True, over_lanes=over_lanes)


def _picked(ref: Any, lanes: Sequence[Any], *places: Any) -> Any:
    """Returns what a lane has of an array, of which axes of 1 are the same for all."""
    found = (n if size != 1 else 0 for n, size in zip(lanes, ref.shape, strict=False))
    return ref.at[(*found, *places)]


def _unravelled(n: Any, sizes: tuple[int, ...]) -> list[Any]:
    """Returns the indices of the n-th of so many, the last the fastest."""
    found = []
    for size in reversed(sizes):
        found.append(lax.rem(n, jnp.int32(size)))
        n = lax.div(n, jnp.int32(size))
    return found[::-1]
