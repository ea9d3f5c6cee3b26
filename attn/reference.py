"""The textbook: scaled dot-product attention, one equation a function.

    S = score(scale Q K^T + B)      P = softmax(S)      O = P V      lse = log sum exp S

Vaswani et al., arXiv 1706.03762, equation 1. Every T x S array is made, so this is for reading,
for looking at weights and for testing the rest of the library against; never for speed.

Letters: ``*B`` leading axes, T queries, S keys, N query heads, K key heads (query head n reads key
head ``n // (N / K)``), H head width, V value width. All is computed in float32, or in float64 for
float64 inputs.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt32

from attn import dropout, softmax_state
from attn.dtypes import accumulated
from attn.indices import Indices, tile_indices
from attn.masks import Mask
from attn.scores import Score


def reference_attention(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    value: Float[Array, "*B S K V"],
    bias: Float[Array, "..."] | None = None,
    mask: Mask | None = None,
    scale: Float[Array, ""] | float = 1.0,
    score: Score | None = None,
    dropout_seed: UInt32[Array, "2"] | None = None,
    dropout_rate: float = 0.0,
) -> tuple[Float[Array, "*B T N V"], Float[Array, "*B T N"]]:
    """Returns the attention output and the log-sum-exp, by the equations above.

    Cost: O(T S (H + V)) time and O(T S) memory a head.
    """
    indices = all_indices(query, key)
    allowed = allowed_pairs(mask, indices)
    s = scores(query, key, bias, allowed, scale, score)
    p = weights(s)
    if dropout_seed is not None:
        kept = dropout.kept(dropout_seed, dropout_rate, indices, query.shape[-2], query.shape[-3])
        p = jnp.where(kept, p / (1 - dropout_rate), 0)
    value = blank_unseen(_per_query_head(value, query.shape[-2]), allowed)
    return output(p, value), log_sum_exp(s)


def scores(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    bias: Float[Array, "..."] | None,
    allowed: Bool[Array, "..."],
    scale: Float[Array, ""] | float,
    score: Score | None = None,
) -> Float[Array, "*B N T S"]:
    """Returns ``S = score(scale Q K^T + B)``, and -inf where a pair is not allowed."""
    indices = all_indices(query, key)
    query = blank_unasked(_accumulated(query), allowed)
    key = blank_unseen(_per_query_head(key, query.shape[-2]), allowed)
    s = jnp.einsum("...tnh,...snh->...nts", query * scale, key)
    if bias is not None:
        s += bias.astype(s.dtype)
    if score is not None:
        # -inf is how a bias says that a pair is not allowed: it stays so, whatever the score.
        allowed = allowed & ~jnp.isneginf(s)
        s = score(jnp.where(allowed, s, 0), indices)
    return jnp.where(allowed, s, -jnp.inf)


def weights(scores: Float[Array, "*B N T S"]) -> Float[Array, "*B N T S"]:
    """Returns ``P = exp(S) / sum_s exp(S)``; a query that may attend to nothing has weights 0."""
    greatest = softmax_state.finite(jnp.max(scores, axis=-1, keepdims=True))
    exponentials = jnp.exp(scores - jax.lax.stop_gradient(greatest))
    total = jnp.sum(exponentials, axis=-1, keepdims=True)
    return exponentials / jnp.where(total != 0, total, 1)


def output(
    weights: Float[Array, "*B N T S"], value: Float[Array, "*B S N V"]
) -> Float[Array, "*B T N V"]:
    """Returns ``O = P V``."""
    return jnp.einsum("...nts,...snv->...tnv", weights, value)


def log_sum_exp(scores: Float[Array, "*B N T S"]) -> Float[Array, "*B T N"]:
    """Returns ``log sum_s exp(S)``; -inf for a query that may attend to nothing."""
    greatest = jax.lax.stop_gradient(softmax_state.finite(jnp.max(scores, axis=-1)))
    total = jnp.sum(jnp.exp(scores - greatest[..., None]), axis=-1)
    lse = jnp.where(total != 0, greatest + jnp.log(jnp.where(total != 0, total, 1)), -jnp.inf)
    return jnp.swapaxes(lse, -1, -2)


def all_indices(query: Float[Array, "*B T N H"], key: Float[Array, "*B S K H"]) -> Indices:
    """Returns the indices of all pairs: one tile as large as the whole."""
    *batch, num_queries, num_heads, _ = query.shape
    return tile_indices(tuple(batch), num_heads, jnp.arange(num_queries), jnp.arange(key.shape[-3]))


def allowed_pairs(mask: Mask | None, indices: Indices) -> Bool[Array, "..."]:
    """Returns the mask as an array broadcastable to ``[*B, N, T, S]``, with axes of T and S."""
    all_pairs = jnp.ones_like(indices.query + indices.key, bool)
    return all_pairs if mask is None else all_pairs & mask.allow(indices)


def blank_unasked(
    query: Float[Array, "*B T N H"], allowed: Bool[Array, "..."]
) -> Float[Array, "*B T N H"]:
    """Returns the queries with 0 for each that may attend to nothing, lest a NaN in it leak."""
    asks = jnp.any(allowed, axis=-1)
    return jnp.where(jnp.swapaxes(asks, -1, -2)[..., None], query, 0)


def blank_unseen(x: Float[Array, "*B S N W"], allowed: Bool[Array, "..."]) -> Array:
    """Returns keys or values with 0 for each that no query may attend, lest a NaN in it leak."""
    seen = jnp.any(allowed, axis=-2)
    return jnp.where(jnp.swapaxes(seen, -1, -2)[..., None], x, 0)


def _per_query_head(x: Float[Array, "*B S K W"], num_heads: int) -> Float[Array, "*B S N W"]:
    return jnp.repeat(_accumulated(x), num_heads // x.shape[-2], axis=-2)


def _accumulated(x: Array) -> Array:
    return x.astype(accumulated(x.dtype))
