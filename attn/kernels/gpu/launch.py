"""A kernel started: by threads of a GPU, some compute and some bring, or by loops in their place.

Of the threads of a block, groups of warps compute, each on its rows, which stay in its shared
memory; one more group brings what comes, a slot of shared memory at a time, and waits for a slot to
be free. Interpreted, the groups are a loop, and what comes is read where it is.

Letters as in ``attn.kernels.gpu.walk``.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from attn.devices import unvarying, vary, varying
from attn.kernels.gpu.lists import Lists
from attn.overrides import Opaque

COMPUTING, BRINGING = 232, 40
"""Registers of a thread."""
TILED = 64
"""Of a width: shared memory is tiled by as many elements of two bytes."""
SHARED_BYTES = 200 * 2**10
"""Of shared memory, for what stays and what comes."""
MOST_SLOTS = 4


class Coming(NamedTuple):
    """An array of which a part comes at a time."""

    array: Array
    """``[*B, N or K, m, W]``"""
    length: int
    """c, of the part."""
    copies: int = 1
    """How many come at once: one for all groups, or one for each."""


class Stop(NamedTuple):
    """What a group of warps does at a block."""

    staying: Sequence[Any]
    """Its part of what stays, in global memory."""
    coming: Callable[[Any], Sequence[Callable[[Any], Any]]]
    """The k-th that comes: of each array, from which of the copies, where it is in global memory.
    """
    compute: Callable[[Sequence[Any], Callable, Callable], None]
    """From what stays, where it is, from what gives the k-th that comes while it is used, and from
    what is called twice for each, for groups to take turns (``attn.kernels.gpu.tile``)."""
    total: Any
    """How many come."""


class Splitting(NamedTuple):
    """How what a block visits is split, for each split to have a block of its own."""

    number: Callable[[int], int]
    """Of splits, from all lanes that there are, those that ``jax.vmap`` has added too."""
    merged: Callable[[list[Array]], list[Array]]
    """The results, from those of the splits: ``[*B, N, splits, n, ...]``."""
    dtype: Any
    """Of the results of splits."""


class Launch(NamedTuple):
    """A kernel, but for what it computes."""

    name: str
    groups: int
    """Of warps that compute."""
    rows: int
    """r, of those that stay with a group."""
    lanes: tuple[int, ...]
    """``(*B, N or K)``, of blocks."""
    blocks: int
    """Of a lane."""
    stay: Sequence[Array]
    """``[*B, N or K, n, W]``"""
    come: Sequence[Coming]
    num_known: int
    """Of what is read where it is used."""
    outs: Sequence[jax.ShapeDtypeStruct]
    """Shapes and dtypes of the results."""
    body: Callable[..., Callable[[Any, Any, Any], Stop]]
    """From the number of splits, from leading axes, all and those that ``jax.vmap`` has added, and
    from references to lists, to what stays, comes, is known and is written: from lane, block and
    group, a ``Stop``."""
    splitting: Splitting | None = None
    """None is not to split."""
    simulated: Any = None
    """How Pallas simulates threads and barriers on a CPU, if it is to."""
    num_splits: int = 1
    """Of what a block visits, each with results of its own."""

    def start(self, operands: Sequence[Array], *, interpret: bool) -> list[Array]:
        """Returns the results, from the arrays of ``Lists`` and from what is read."""
        how = Launch.by_loops if interpret and self.simulated is None else Launch.by_threads
        function = functools.partial(self.whole, how)
        if self.simulated is not None:
            return function((), *operands)
        opaque = _opaque(function, self.outs, (), [()] * len(operands))
        return opaque(*vary(operands, varying(operands)))

    def whole(self, how: Callable, added: tuple[int, ...], *operands: Array) -> list[Array]:
        """Returns the results by ``how``, one of the ways below, of splits merged."""
        if self.splitting is None:
            return how(self, added, *operands)
        number, merged, dtype = self.splitting
        num_splits, axis = number(math.prod((*added, *self.lanes))), len(self.lanes)
        if num_splits == 1:
            return how(self, added, *operands)
        shapes = [(*x.shape[:axis], num_splits, *x.shape[axis:]) for x in self.outs]
        outs = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
        split = self._replace(outs=outs, blocks=self.blocks * num_splits, num_splits=num_splits)
        return merged(how(split, added, *operands))

    @property
    def slots(self) -> int:
        """Of what comes, in shared memory at a time; 0 if there is no room."""
        held = sum(_bytes_of(x) for x in self.stay) * self.rows * self.groups
        slot = sum(_bytes_of(x.array) * x.length * x.copies for x in self.come)
        return slots_of(held, slot)

    def at_block(self, added: tuple[int, ...], refs: Sequence[Any]) -> Callable[..., Stop]:
        """Returns the body at references, in the order of operands and results."""
        every, counts = iter(refs), (len(self.stay), len(self.come), self.num_known, len(self.outs))
        parts = ([next(every) for _ in range(n)] for n in (len(Lists._fields), *counts))
        return self.body(self.num_splits, (*added, *self.lanes), added, *parts)

    def by_threads(self, added: tuple[int, ...], *operands: Array) -> list[Array]:
        """Returns the results of the kernel, of which axes were added to all operands."""

        def shared(count, length, x):
            transforms = plgpu.TilingTransform((8, TILED)), plgpu.SwizzleTransform(2 * TILED)
            return plgpu.SMEM((count, length, x.shape[-1]), x.dtype, transforms=transforms)

        def slot_of(k):
            return lax.rem(k, jnp.int32(self.slots))

        def kernel(*refs):
            *refs, stayed, came, here, ready, free, turn = refs
            group = lax.axis_index("group")
            place = lax.axis_index("lanes"), lax.axis_index("blocks"), group
            stop = self.at_block(added, refs)(*place)

            @contextlib.contextmanager
            def having(k):
                slot = slot_of(k)
                plgpu.barrier_wait(ready.at[slot])
                yield [
                    ref.at[slot if x.copies == 1 else slot * x.copies + group]
                    for x, ref in zip(self.come, came, strict=True)
                ]
                plgpu.barrier_arrive(free.at[slot])

            def take_turns():
                plgpu.barrier_arrive(turn)
                plgpu.barrier_wait(turn)

            @pl.when(group < self.groups)
            def _():
                if self.groups > 1:  # Of one, each thread has as many from the beginning.
                    plgpu.set_max_registers(COMPUTING, action="increase")
                for part, kept in zip(stop.staying, stayed, strict=True):
                    plgpu.copy_gmem_to_smem(part, kept.at[group], here.at[group])
                if stop.staying:
                    plgpu.barrier_wait(here.at[group])
                # The second begins, and ends, half a tile after the first.
                pl.when(group == 1)(take_turns)
                stop.compute([x.at[group] for x in stayed], having, take_turns)
                pl.when(group == 0)(take_turns)

            @pl.when(group == self.groups)
            def _():
                if self.groups > 1:
                    plgpu.set_max_registers(BRINGING, action="decrease")

                def wait(k):
                    plgpu.barrier_wait(free.at[slot_of(k)])

                def bring(k, _):
                    pl.when(k >= self.slots)(functools.partial(wait, k))
                    slot = slot_of(k)
                    for x, copy, kept in zip(self.come, stop.coming(k), came, strict=True):
                        for n in range(x.copies):
                            to = kept.at[slot * x.copies + n]
                            plgpu.copy_gmem_to_smem(copy(n), to, ready.at[slot])
                    return 0

                times(stop.total, bring, 0)
                # None is left waiting for the last.
                pl.loop(jnp.maximum(stop.total - self.slots, 0), stop.total)(wait)

        settings = {} if self.simulated is None else {"interpret": self.simulated}
        return plgpu.kernel(
            kernel,
            out_type=[unvarying((*added, *x.shape), x.dtype) for x in self.outs],
            scratch_types=[
                [shared(self.groups, self.rows, x) for x in self.stay],
                [shared(self.slots * x.copies, x.length, x.array) for x in self.come],
                plgpu.Barrier(num_arrivals=max(1, len(self.stay)), num_barriers=self.groups),
                plgpu.Barrier(
                    num_arrivals=sum(x.copies for x in self.come), num_barriers=self.slots
                ),
                plgpu.Barrier(num_arrivals=self.groups, num_barriers=self.slots),
                plgpu.Barrier(num_arrivals=self.groups),
            ],
            grid=(math.prod((*added, *self.lanes)), self.blocks),
            grid_names=("lanes", "blocks"),
            num_threads=self.groups + 1,
            thread_name="group",
            kernel_name=self.name,
            **settings,
        )(*operands)

    def by_loops(self, added: tuple[int, ...], *operands: Array) -> list[Array]:
        """Returns the same without threads: groups one after the other, nothing copied."""
        sizes = math.prod((*added, *self.lanes)), self.blocks, self.groups

        def of_refs(refs):
            at_block = self.at_block(added, refs)

            def at(k, _):
                *place, group = unravelled(k, sizes)
                stop = at_block(*place, group)

                def having(k):
                    of_group = [group if x.copies > 1 else 0 for x in self.come]
                    copies = zip(stop.coming(k), of_group, strict=True)
                    return contextlib.nullcontext([copy(n) for copy, n in copies])

                stop.compute(stop.staying, having, lambda: None)
                return 0

            times(math.prod(sizes), at, 0)

        zeros = [jnp.zeros((*added, *x.shape), x.dtype) for x in self.outs]
        return pl.run_state(of_refs)([*operands, *zeros])[-len(self.outs) :]


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


def slots_of(held: int, slot: int) -> int:
    """Returns how many slots of so many bytes there is room for, beside what is held."""
    return min(MOST_SLOTS, (SHARED_BYTES - held) // slot)


def _bytes_of(x: Array) -> int:
    """Returns how many bytes a row has."""
    return x.shape[-1] * x.dtype.itemsize


def times(count: Any, body: Callable, carry: Any) -> Any:
    """Returns what is carried after so many steps."""
    return lax.fori_loop(jnp.int32(0), jnp.asarray(count, jnp.int32), body, carry)


def unravelled(n: Any, sizes: tuple[int, ...]) -> list[Any]:
    """Returns the indices of the n-th of so many, the last the fastest."""
    found = []
    for size in reversed(sizes):
        found.append(lax.rem(n, jnp.int32(size)))
        n = lax.div(n, jnp.int32(size))
    return found[::-1]
