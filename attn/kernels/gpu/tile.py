"""What a group of warps sees of a tile, and the products that it makes of it.

Letters as in ``attn.kernels.gpu.walk``.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from attn.kernels.call import Call

ACC: Any = plgpu.ACC  # pyright: ignore[reportPrivateImportUsage]
"""What products are summed in."""


@dataclasses.dataclass(frozen=True)
class Tile:
    """What a group of warps sees of a tile: what stays first, ``[r, c]``."""

    call: Call
    order: frozenset[str]
    """The side of which a block stays."""
    shape: tuple[int, int]
    """r and c."""
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
    is_full: bool
    """Whether all pairs take part, and all is finite."""
    is_clean: Any
    """Whether all is finite."""
    take_turns: Callable[[], None]
    """Called twice a tile, between products and what is done of them: groups of warps go on
    together, of which then one has the tensor cores, the other all else."""

    def pairs(self, n: int, depends: frozenset[str], *, is_cut: bool = False) -> Array:
        """Returns what is known of one side, of neither, or of pairs (``is_cut``), for pairs."""
        ref, order = self.known[n], self.order
        first, place = (pl.ds(x, size) for x, size in zip(self.at[-2:], self.shape, strict=True))
        if is_cut:
            return load(self.call, self._of(ref, first, place), plgpu.Layout.WGMMA)
        if not depends:
            return jnp.broadcast_to(self._of(ref, 0)[...], self.shape)
        side, axis = (first, 0) if depends == order else (place, 1)
        found = load(self.call, self._of(ref, side), plgpu.Layout.WGMMA.reduce(1 - axis))
        return lax.broadcast_in_dim(found, self.shape, [axis])

    def write(self, n: int, x: Float[Array, "r c"]) -> None:
        """Writes what is of pairs."""
        sizes = zip(self.at[-2:], self.shape, strict=True)
        self._of(self.written[n], *(pl.ds(x, size) for x, size in sizes))[...] = x

    def _of(self, ref: Any, *places: Any) -> Any:
        return picked(ref, self.at[:-2], *places)

    def products(
        self, *which: tuple[int, int], meanwhile: Callable[[], Any]
    ) -> tuple[list[Float[Array, "r c"]], Any]:
        """Returns ``stay[a] come[b]^T`` for each ``(a, b)``, and what is computed meanwhile."""
        pairs = [(self.stay[a], self.come[b]) for a, b in which]
        if self.call.interpret:
            dots = [
                jnp.dot(a[...], b[...].T, preferred_element_type=self.call.dtype) for a, b in pairs
            ]
            return dots, meanwhile()

        def scope(*totals):
            for total, (a, b) in zip(totals, pairs, strict=True):
                plgpu.wgmma(total, a, plgpu.transpose_ref(b, (1, 0)))
            found = meanwhile()
            self.take_turns()
            return [total[...] for total in totals], found

        return pl.run_scoped(scope, *[ACC(self.shape, jnp.float32) for _ in pairs])

    def unless_clean(self, function: Callable[[Array], Array], x: Array) -> Array:
        """Returns ``function(x)`` if not all is finite, else x."""
        if self.is_full:
            return x
        return lax.cond(self.is_clean, lambda x: x, function, x)

    def mixed(self, total: Array, x: Float[Array, "r c"], b: int) -> Float[Array, "r W"]:
        """Returns ``total + x come[b]``, x in the dtype of what comes."""
        ref = self.come[b]
        return added(self.call, total, x.astype(ref.dtype), ref)


def added(call: Call, total: Array, a: Array, b: Any) -> Array:
    """Returns ``total + a b``, b in shared memory."""
    if call.interpret:
        return total + jnp.dot(a, b[...], preferred_element_type=call.dtype)
    return pl.run_state(lambda ref: plgpu.wgmma(ref, a, b))(ACC.init(total))


def exp(call: Call, x: Array, base: Array) -> Array:
    """Returns ``e^(x - base)``, by the ``2^x`` of the hardware, to 2e-7 of it."""
    # Less the base first, for the greatest numbers would overflow.
    x = (x - (across(base, x) if base.ndim < x.ndim else base)) * math.log2(math.e)
    if call.interpret or x.ndim == 1:
        return jnp.exp2(x)
    of_tile = plgpu.ShapeDtypeStruct(x.shape, x.dtype, layout=plgpu.Layout.WGMMA)
    approximate = plgpu.inline_mgpu(arg_types=(plgpu.Layout.WGMMA,), return_type=of_tile)
    return approximate(lambda _, x: x.exp2(approx=True))(x)


def across(x: Float[Array, "r"], like: Float[Array, "r n"]) -> Float[Array, "r n"]:
    """Returns what is known of each that stays, repeated."""
    return lax.broadcast_in_dim(x, like.shape, [0])


def load(call: Call, ref: Any, layout: Any) -> Array:
    """Returns what stands in global memory, in registers."""
    if call.interpret:
        return ref[...]
    return plgpu.load(ref, (), layout=layout, optimized=False)


def picked(ref: Any, lanes: Sequence[Any], *places: Any) -> Any:
    """Returns what a lane has of an array, of which axes of 1 are the same for all."""
    found = (n if size != 1 else 0 for n, size in zip(lanes, ref.shape, strict=False))
    return ref.at[(*found, *places)]
