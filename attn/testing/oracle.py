"""Attention from its formula alone: what the function under test is compared with.

``attention`` is NumPy in float64, one query at a time, over the keys that it may attend and no
others: what stands elsewhere is not even read. ``dense`` is the same in JAX on whole arrays, to
be differentiated. Neither uses any of the library's implementations.

Letters: ``*B`` any leading axes, none included, T queries, S keys, N query heads, K key and value
heads (K divides N), H head width, V value width.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def allowed_pairs(
    query_shape: tuple[int, ...],
    key_shape: tuple[int, ...],
    *,
    mask: Any = None,
    is_causal: bool = False,
    query_seq_lengths: Any = None,
    key_value_seq_lengths: Any = None,
    local_window_size: int | tuple[int, int] | None = None,
    alignment: str = "start",
) -> np.ndarray:
    """Returns booleans ``[*B, N, T, S]``: may query i attend to key j."""
    *batch, num_queries, num_heads, _ = query_shape
    num_keys = key_shape[-3]
    index, position = np.arange(num_keys), np.arange(num_queries)[:, None]
    if alignment == "end":
        position = position + num_keys - num_queries
    allowed = np.ones((*batch, num_heads, num_queries, num_keys), bool)
    if mask is not None:
        allowed &= np.asarray(mask)
    if is_causal:
        allowed &= index <= position
    if local_window_size is not None:
        size = local_window_size
        left, right = size if isinstance(size, tuple) else (size, size)
        allowed &= (index >= position - left) & (index <= position + right)
    for place in np.ndindex(*batch):
        if query_seq_lengths is not None:
            allowed[place][:, query_seq_lengths[place] :, :] = False
        if key_value_seq_lengths is not None:
            allowed[place][:, :, key_value_seq_lengths[place] :] = False
    return allowed


def attention(
    query: Any,
    key: Any,
    value: Any,
    bias: Any = None,
    *,
    scale: Any = None,
    allowed: np.ndarray | None = None,
    **masks: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns output ``[*B, T, N, V]`` and log-sum-exp ``[*B, T, N]`` in float64.

    ``allowed`` is that of ``allowed_pairs(**masks)`` if it is not given.
    """
    if allowed is None:
        allowed = allowed_pairs(np.shape(query), np.shape(key), **masks)
    query, key, value = (np.asarray(x).astype(np.float64) for x in (query, key, value))
    *batch, num_queries, num_heads, width = query.shape
    scale = 1 / math.sqrt(width) if scale is None else float(scale)
    bias = np.zeros(()) if bias is None else np.asarray(bias).astype(np.float64)
    bias = np.broadcast_to(bias, allowed.shape)
    group = num_heads // key.shape[-2]

    output = np.zeros((*batch, num_queries, num_heads, value.shape[-1]))
    lse = np.full((*batch, num_queries, num_heads), -np.inf)
    for place in np.ndindex(*batch):
        for i, head in itertools.product(range(num_queries), range(num_heads)):
            seen = np.flatnonzero(allowed[(*place, head, i)])
            if seen.size == 0:
                continue
            keys, values = (x[place][seen, head // group] for x in (key, value))
            scores = scale * keys @ query[(*place, i, head)] + bias[(*place, head, i)][seen]
            exponentials = np.exp(scores - scores.max())
            output[(*place, i, head)] = exponentials @ values / exponentials.sum()
            lse[(*place, i, head)] = scores.max() + np.log(exponentials.sum())
    return output, lse


def dense(
    query: Any,
    key: Any,
    value: Any,
    bias: Any = None,
    *,
    scale: Any = None,
    allowed: Any,
    change: Callable[[Any], Any] | None = None,
    sinks: Any = None,
    factors: Any = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Returns output and log-sum-exp in the dtype of the inputs, by whole T x S arrays.

    ``change`` is a function of the scores, ``sinks`` one more logit a head, ``factors`` multiply
    the weights that mix the values.
    """
    group = query.shape[-2] // key.shape[-2]
    of_head = np.arange(query.shape[-2]) // group
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = scale * jnp.einsum("...ihw,...jhw->...hij", query, key[..., of_head, :])
    if bias is not None:
        scores = scores + bias
    if change is not None:
        scores = change(scores)
    if sinks is not None:
        scores = jnp.concatenate([scores, jnp.zeros_like(scores[..., :1])], axis=-1)
        scores = scores.at[..., -1].set(sinks[:, None])
        allowed = jnp.concatenate([allowed, jnp.ones_like(allowed[..., :1])], axis=-1)
        allowed, scores = jnp.broadcast_arrays(allowed, scores)
    some = jnp.any(allowed, axis=-1, keepdims=True)
    greatest = jnp.max(jnp.where(allowed, scores, -jnp.inf), axis=-1, keepdims=True)
    shift = jax.lax.stop_gradient(jnp.where(some, greatest, 0))
    exponentials = jnp.where(allowed, jnp.exp(jnp.where(allowed, scores - shift, 0)), 0)
    total = jnp.where(some, jnp.sum(exponentials, axis=-1, keepdims=True), 1)
    weights = (exponentials / total)[..., : key.shape[-3]] * factors
    output = jnp.einsum("...hij,...jhv->...ihv", weights, value[..., of_head, :])
    lse = jnp.where(some, shift + jnp.log(total), -jnp.inf)[..., 0]
    return output, jnp.swapaxes(lse, -1, -2)
