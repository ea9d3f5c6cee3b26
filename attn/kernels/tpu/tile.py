"""One tile of scores, with keys first: what is known of each query is then a row of lanes.

Letters: t queries and s keys of the tile, H and V head widths.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float

from attn.kernels.call import ALLOWED, FACTORS, MASKED_SCORES, SCORES, Call
from attn.kernels.tpu.operations import OPERATIONS
from attn.kernels.values import KEY, Value, repeated

ROWS_AT_ONCE = 32
"""That ``onto_diagonals`` adds up, before it turns them against each other."""


class Tile(NamedTuple):
    """What a kernel has read of a tile."""

    query: Float[Array, "t H"]
    key: Float[Array, "s H"]
    value: Float[Array, "s V"]
    given: dict[Value, Array]
    """What the pairs take from outside; each ``[1, t]``, ``[s, 1]`` or ``[s, t]``."""

    @property
    def products(self) -> Float[Array, "s t"]:
        """``k q^T``."""
        return dot(self.key, self.query, (1, 1))


def held_dtype(call: Call) -> Any:
    """Returns the dtype of arrays in memory: Mosaic does not load float16 on a TPU."""
    return jnp.float32 if call.plan.dtype == jnp.float16 else call.plan.dtype


def read(call: Call, refs: Sequence[Any]) -> Tile:
    """Returns a tile from references to query, key, value and the inputs of the pairs."""
    query, key, value, *inputs = refs
    given = {}
    for x, ref in zip(call.pairs.inputs, inputs, strict=True):
        part = ref[...].T if x.is_cut or x.depends == KEY else ref[...]
        if x.is_diagonal:
            part = from_diagonals(part, key.shape[0], query.shape[0])
        given[x] = part != 0 if x.dtype == bool else part
    return Tile(query[...], key[...], value[...], given)


def allowed_in(call: Call, tile: Tile, *, is_full: bool) -> Bool[Array, "s t"] | None:
    """Returns which pairs take part; None is all."""
    if is_full or not call.is_masked:
        return None
    shape = tile.key.shape[0], tile.query.shape[0]
    # Of masks, the scores are not looked at.
    nothing = jnp.zeros(shape, call.dtype)
    allowed = OPERATIONS.done(lambda x: call.pairs.inner(tile.given, x, ALLOWED), nothing)
    return repeated(allowed, shape)


def scores_of(
    call: Call, tile: Tile, products: Float[Array, "s t"], allowed: Array | None
) -> Float[Array, "s t"]:
    """Returns the scores, -inf where a pair takes no part, by operations as they are written."""
    which = SCORES if allowed is None else MASKED_SCORES
    return jnp.broadcast_to(call.pairs.inner(tile.given, products, which), products.shape)


def kept_of(call: Call, tile: Tile, scores: Array, x: Float[Array, "s t"]) -> Float[Array, "s t"]:
    """Returns ``z x / (1 - rate)``, of dropout; ``x`` without."""
    if not call.has_dropout:
        return x
    return x * OPERATIONS.done(lambda scores: call.pairs.inner(tile.given, scores, FACTORS), scores)


def of_those_asked(
    x: Float[Array, "n W"], allowed: Bool[Array, "s t"] | None, axis: int
) -> Float[Array, "n W"]:
    """Returns the keys (axis 0) or queries (axis 1) with 0 for those in no allowed pair.

    So what stands there, NaN included, reaches nothing.
    """
    if allowed is None:
        return x
    is_asked = jnp.max(allowed.astype(jnp.int32), axis=1 - axis, keepdims=True)
    is_asked = is_asked if axis == 0 else is_asked.T
    return jnp.where(jnp.broadcast_to(is_asked, x.shape) != 0, x, jnp.zeros_like(x))


def from_diagonals(x: Float[Array, "1 d"], num_keys: int, num_queries: int) -> Float[Array, "s t"]:
    """Returns ``y[b, a] = x[s - 1 - b + a]``, d = t + s: the last is of no pair.

    Each row of keys is turned by one more than the row before.
    """
    rows = jnp.broadcast_to(x, (num_keys, x.shape[1]))
    turned = pltpu.roll(rows, num_queries + 1, 1, stride=1, stride_axis=0)
    return turned[:, :num_queries]


def onto_diagonals(y: Float[Array, "s t"]) -> Float[Array, "1 d"]:
    """Returns the sums along diagonals: the transpose of ``from_diagonals``.

    Row b is to be turned by s - 1 - b. Hardware turns rows by more and more, not by less and less:
    so some rows at once by what they have in common, and their sum by the bits of the rest.
    """
    num_keys, num_queries = y.shape
    y = jnp.concatenate([y, jnp.zeros((num_keys, num_keys), y.dtype)], axis=1)
    some = math.gcd(num_keys, ROWS_AT_ONCE)
    total = jnp.zeros((some, num_keys + num_queries), y.dtype)
    for first in range(0, num_keys, some):
        total += pltpu.roll(y[first : first + some], num_keys - first - some, 1)
    rest = some - 1 - lax.broadcasted_iota(jnp.int32, total.shape, 0)
    for bit in range((some - 1).bit_length()):
        total = jnp.where(rest & 1 << bit != 0, pltpu.roll(total, 1 << bit, 1), total)
    return jnp.sum(total, axis=0, keepdims=True)


def dot(a: Array, b: Array, axes: tuple[int, int]) -> Array:
    """Returns the matrix product, summed over an axis of each, in float32 or more."""
    dtype = jnp.promote_types(a.dtype, jnp.float32)
    contract = (((axes[0],), (axes[1],)), ((), ()))
    return lax.dot_general(a, b, contract, preferred_element_type=dtype)
