"""What a group of warps sees of a tile, and the products that it makes of it.

Letters as in ``attn.kernels.gpu.walk``.
"""

import dataclasses
from collections.abc import Sequence
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

    def product(self, a: int, b: int) -> Float[Array, "r c"]:
        """Returns ``stay[a] come[b]^T``."""
        return product(self.call, self.stay[a], self.come[b], is_transposed=True)

    def mixed(self, total: Array, x: Float[Array, "r c"], b: int) -> Float[Array, "r W"]:
        """Returns ``total + x come[b]``, x in the dtype of what comes."""
        ref = self.come[b]
        return added(self.call, total, x.astype(ref.dtype), ref)


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


def load(call: Call, ref: Any, layout: Any) -> Array:
    """Returns what stands in global memory, in registers."""
    if call.interpret:
        return ref[...]
    return plgpu.load(ref, (), layout=layout, optimized=False)


def picked(ref: Any, lanes: Sequence[Any], *places: Any) -> Any:
    """Returns what a lane has of an array, of which axes of 1 are the same for all."""
    found = (n if size != 1 else 0 for n, size in zip(lanes, ref.shape, strict=False))
    return ref.at[(*found, *places)]
