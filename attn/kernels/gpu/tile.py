"""What a group of warps sees of a tile, and the products that it makes of it.

Letters as in ``attn.kernels.gpu.walk``.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Bool, Float

from attn.kernels.call import ALLOWED, FACTORS, MASKED_SCORES, SCORES, Call
from attn.kernels.gpu.operations import OPERATIONS
from attn.kernels.gpu.parts import inner_parts_of, pairs_of
from attn.kernels.values import KEY, QUERY, Value

ACC: Any = plgpu.ACC  # pyright: ignore[reportPrivateImportUsage]
"""What products are summed in."""
NEEDS_INDEX = inspect.signature(plgpu.load).parameters["idx"].default is inspect.Parameter.empty
"""Whether a load does: in jax 0.10 it does, in jax 0.11 it is deprecated."""


@dataclasses.dataclass(frozen=True)
class Tile:
    """What a group of warps sees of a tile: what stays first, ``[r, c]``."""

    call: Call
    order: frozenset[str]
    """The side of which a block stays."""
    shape: tuple[int, int]
    """r and c."""
    stay: Sequence[Sequence[Any]]
    """In shared memory, in parts: ``[r, W]``."""
    come: Sequence[Sequence[Any]]
    """In shared memory, in parts: ``[c, W]``."""
    known: Sequence[Any]
    """In global memory, whole."""
    written: Sequence[Any]
    """In global memory, whole."""
    lanes: Sequence[Any]
    """Leading axes and head."""
    at: tuple[Any, Any]
    """The first that stays and that comes."""
    at_distance: tuple[Any, Any] | None
    """The same where what is known of a distance is a tile; None if nothing is."""
    is_full: bool
    """Whether all pairs take part, and all is finite."""
    is_clean: Any
    """Whether all is finite."""
    take_turns: Callable[[], None]
    """Called twice a tile, between products and what is done of them: groups of warps go on
    together, of which then one has the tensor cores, the other all else."""

    def along(self, n: int, depends: frozenset[str]) -> Array:
        """Returns what is known of one side, or of neither, for pairs."""
        if not depends:
            return jnp.broadcast_to(self._of(self.known[n], 0)[...], self.shape)
        axis = 0 if depends == self.order else 1
        ref = self._of(self.known[n], pl.ds(self.at[axis], self.shape[axis]))
        found = load(self.call, ref, plgpu.Layout.WGMMA.reduce(1 - axis))
        return lax.broadcast_in_dim(found, self.shape, [axis])

    def pairs(self, n: int, *, is_of_distance: bool = False) -> Array:
        """Returns what is known of pairs, each or those at one distance."""
        at = self.at_distance if is_of_distance else self.at
        assert at is not None
        return load(self.call, self._tile(self.known[n], at), plgpu.Layout.WGMMA)

    def write(self, n: int, x: Float[Array, "r c"]) -> None:
        """Writes what is of pairs."""
        self._tile(self.written[n], self.at)[...] = x

    def _tile(self, ref: Any, at: tuple[Any, Any]) -> Any:
        return self._of(ref, *(pl.ds(x, size) for x, size in zip(at, self.shape, strict=True)))

    def _of(self, ref: Any, *places: Any) -> Any:
        return picked(ref, self.lanes, *places)

    def products(
        self, *which: tuple[int, int], meanwhile: Callable[[], Any]
    ) -> tuple[list[Float[Array, "r c"]], Any]:
        """Returns ``stay[a] come[b]^T`` for each ``(a, b)``, and what is computed meanwhile."""
        pairs = [pairs_of(self.stay[a], self.come[b]) for a, b in which]
        if self.call.interpret:
            dots = [[_dot(self.call, a[...], b[...].T) for a, b in parts] for parts in pairs]
            return [functools.reduce(jnp.add, x) for x in dots], meanwhile()

        def scope(*totals):
            for total, parts in zip(totals, pairs, strict=True):
                for a, b in parts:
                    plgpu.wgmma(total, a, b.transpose((1, 0)))
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
        """Returns ``total + x come[b]``, x in the dtype of what comes, or in as many parts."""
        parts = pairs_of(inner_parts_of(self.call, x, self.come[b]), self.come[b])
        if self.call.interpret:
            return total + sum(_dot(self.call, a, b[...]) for a, b in parts)

        def add(ref):
            for a, b in parts:
                plgpu.wgmma(ref, a, b)

        return pl.run_state(add)(ACC.init(total))


def known_in(tile: Tile, first: int) -> dict[Value, Array]:
    """Returns what the pairs take from outside, ``[r, c]`` each; so much else is known before."""
    known = {}
    for n, x in enumerate(tile.call.pairs.inputs):
        if x.is_cut or x.is_diagonal:
            found = tile.pairs(first + n, is_of_distance=x.is_diagonal)
        else:
            found = tile.along(first + n, x.depends)
        known[x] = found != 0 if x.dtype == bool else found
    return known


def spoiled(tile: Tile, which: Sequence[int], products: Array) -> Float[Array, "r c"]:
    """Returns products, NaN where what they are of was not finite.

    Args:
      tile: at hand.
      which: are known, NaN or 0: the second of keys, the others of queries.
      products: of what was made finite.
    """
    return products + sum(tile.along(n, KEY if n == 1 else QUERY) for n in which)


def allowed_in(tile: Tile, known: dict[Value, Array]) -> Bool[Array, "r c"] | None:
    """Returns which pairs take part; None is all."""
    if tile.is_full or not tile.call.is_masked:
        return None
    return _inner(tile.call, known, jnp.zeros(tile.shape, tile.call.dtype), ALLOWED)


def scores_of(
    call: Call, known: dict[Value, Array], products: Float[Array, "r c"], allowed: Array | None
) -> Float[Array, "r c"]:
    """Returns the scores, -inf where a pair takes no part."""
    return _inner(call, known, products, SCORES if allowed is None else MASKED_SCORES)


def factors_of(call: Call, known: dict[Value, Array], scores: Array) -> Any:
    """Returns ``z / (1 - rate)``, of dropout; 1 without."""
    return _inner(call, known, scores, FACTORS) if call.has_dropout else 1


def _inner(call: Call, known: dict[Value, Array], scores: Array, which: int) -> Array:
    found = OPERATIONS.done(lambda scores: call.pairs.inner(known, scores, which), scores)
    return jnp.broadcast_to(found, scores.shape)


def _dot(call: Call, a: Array, b: Array) -> Array:
    """Returns the product of what is read, interpreted."""
    return jnp.dot(a.astype(call.dtype), b.astype(call.dtype), preferred_element_type=call.dtype)


def exp(call: Call, x: Array, base: Array) -> Array:
    """Returns ``e^(x - base)``, by the ``2^x`` of the hardware, to 2e-7 of it."""
    # Less the base first, for the greatest numbers would overflow.
    x = (x - (across(base, x) if base.ndim < x.ndim else base)) * math.log2(math.e)
    if call.interpret or x.ndim == 1:
        return jnp.exp2(x)
    of_tile = plgpu.ShapeDtypeStruct(x.shape, x.dtype, layout=plgpu.Layout.WGMMA)
    approximate = plgpu.inline_mgpu(arg_types=(plgpu.Layout.WGMMA,), return_type=of_tile)
    return approximate(lambda _, x: x.exp2(approx=True))(x)


def laid_out(call: Call, x: Float[Array, "r c"]) -> Float[Array, "r c"]:
    """Returns what is of pairs with a number for each, were it the same for all."""
    return x if call.interpret else plgpu.layout_cast(x, plgpu.Layout.WGMMA)


def across(x: Float[Array, "r"], like: Float[Array, "r n"]) -> Float[Array, "r n"]:
    """Returns what is known of each that stays, repeated."""
    return lax.broadcast_in_dim(x, like.shape, [0])


def load(call: Call, ref: Any, layout: Any) -> Array:
    """Returns what stands in global memory, in registers."""
    if call.interpret:
        return ref[...]
    index = ((),) if NEEDS_INDEX else ()
    return plgpu.load(ref, *index, layout=layout, optimized=False)


def picked(ref: Any, lanes: Sequence[Any], *places: Any) -> Any:
    """Returns what a lane has of an array, of which axes of 1 are the same for all."""
    found = (n if size != 1 else 0 for n, size in zip(lanes, ref.shape, strict=False))
    return ref.at[(*found, *places)]
