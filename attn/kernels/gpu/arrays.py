"""What kernels for GPU are given, as they take it: finite, in parts, of whole tiles.

A NaN or infinity in a query, key, value or cotangent is taken out before, for products would carry
it into pairs that take no part; it stands beside as a NaN to add, in tiles that have one, to the
products of those that do, and so what depends on one is NaN in all its features.

Letters: ``*B`` leading axes, N query heads, K key heads, T queries, S keys, W a width; n and m of
the side that stays and of the other.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attn.closures import is_float
from attn.indices import along_diagonals
from attn.kernels import call as calls
from attn.kernels.call import Call
from attn.kernels.gpu.launch import TILED
from attn.kernels.values import QUERY, Value
from attn.plan import Inputs


def arrays_of(call: Call, inputs: Inputs) -> tuple[list[Array], list[Array]]:
    """Returns query, key and value, finite and of padded widths; and NaN for those that were not.

    The first of these two is ``[*B, N, T]``; the second, ``[*B, N, S]``, is of key and value.
    """
    query, key, value = calls.arrays_of(call, inputs)
    is_bad = [~jnp.all(jnp.isfinite(x), axis=-1) for x in (query, key, value)]
    of_heads = jnp.repeat(is_bad[1] | is_bad[2], call.group_size, axis=-2)
    bad = [jnp.where(x, jnp.nan, 0).astype(call.dtype) for x in (is_bad[0], of_heads)]
    return [padded(x) for x in (query, key, value)], bad


def padded(x: Float[Array, "*B n W"]) -> Float[Array, "*B n w"]:
    """Returns an array finite, and as wide as shared memory is tiled, or a multiple."""
    x = jnp.where(jnp.isfinite(x), x, 0)
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % TILED)])


def known_of(call: Call, given: Sequence[Array], order: frozenset[str]) -> list[Array]:
    """Returns what ``of_pairs`` gives as a walk takes it, where queries stay, or keys.

    What is cut along both axes is ``[*B, N, n, m]``, what is of distances as ``table_of`` has it,
    what is of one side ``[*B, N, T]`` or ``[*B, N, S]``.
    """
    found = []
    for x, array in zip(call.pairs.inputs, given, strict=True):
        if x.is_cut:
            found.append(array if order == QUERY else jnp.swapaxes(array, -1, -2))
        elif x.is_diagonal:
            found.append(table_of(call, order, array))
        else:
            found.append(array[..., 0, :])
    return found


def table_of(call: Call, order: frozenset[str], given: Any) -> Any:
    """Returns what is known of each distance as tiles, what stays first, one below the other.

    Of arrays ``[*B, N, 1, n (t + s)]`` gives ``[*B, N, n t, s]``, or ``[*B, N, n s, t]``: n
    distances of tiles whose sides are t and s, so 128 (T + S) numbers a head.

    Args:
      call: of the kernel.
      order: what stays, QUERY or KEY.
      given: arrays, as ``of_pairs`` gives them.
    """
    grid, count = call.plan.grid, call.pairs.distances.count

    def of_array(x):
        distances = jnp.reshape(x, (*x.shape[:-2], count, -1))[..., -2::-1]
        tiles = along_diagonals(distances, grid.query_side)
        tiles = tiles if order == QUERY else jnp.swapaxes(tiles, -1, -2)
        return jnp.reshape(tiles, (*x.shape[:-2], -1, tiles.shape[-1]))

    return jax.tree.map(of_array, given)


def diagonals_of(call: Call) -> list[Value]:
    """Returns what the pairs take of distances and may have a cotangent."""
    return [x for x in call.pairs.inputs if x.is_diagonal and is_float(x)]


def result_dtype(call: Call) -> Any:
    """Returns the dtype of what is written: that of the arrays, or that of sums still to merge."""
    return call.dtype if call.plan.keys_ring is not None else call.plan.dtype
