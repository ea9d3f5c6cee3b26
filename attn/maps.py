"""The whole attention map, for looking at: scores and weights as T x S arrays.

Letters: ``*B`` leading axes, T queries, S keys, N query heads, K key heads, H head width.
"""

from typing import Unpack

from jaxtyping import Array, Bool, Float

from attn import arguments, reference
from attn.dot_product import Options
from attn.masks import Mask


def attention_scores(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | Mask | None = None,
    **options: Unpack[Options],
) -> Float[Array, "*B N T S"]:
    """Returns the scores ``score(scale Q K^T + bias)``, -inf where a query may not attend.

    For looking at: O(T S H) time and O(T S) memory a head. Arguments, options and errors are those
    of ``dot_product_attention``.

    Returns:
      In float32, or float64 for float64 inputs.
    """
    query, key = arguments.arrays(query=query, key=key)
    resolved = arguments.resolve(query, key, bias, mask, **options)
    allowed = reference.allowed_pairs(resolved.mask, reference.all_indices(query, key))
    return reference.scores(query, key, resolved.bias, allowed, resolved.scale, resolved.score)


def attention_weights(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | Mask | None = None,
    **options: Unpack[Options],
) -> Float[Array, "*B N T S"]:
    """Returns the weights ``softmax(score(scale Q K^T + bias))``, the attention map.

    For looking at: O(T S H) time and O(T S) memory a head. Arguments, options and errors are those
    of ``dot_product_attention``.

    Returns:
      Each row sums to 1, or is 0 for a query that may attend to nothing. In float32, or float64
      for float64 inputs.
    """
    return reference.weights(attention_scores(query, key, bias, mask, **options))
