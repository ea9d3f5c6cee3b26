"""The public function: checks its arguments, says in masks what they mean, runs an implementation.

Letters: ``*B`` any leading axes, none included, T queries, S keys, N query heads, K key and value
heads (K divides N), H head width, V value width.
"""

from typing import TypedDict, Unpack

from jaxtyping import Array, Bool, Float, Int

from attn import arguments, reference
from attn.arguments import Alignment
from attn.blockwise import blockwise_attention
from attn.masks import Mask

IMPLEMENTATIONS = {
    "blockwise": blockwise_attention,
    "reference": reference.reference_attention,
}
"""Name to ``function(query, key, value, bias, mask, scale) -> (output, lse)``, fastest first."""


def dot_product_attention(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    value: Float[Array, "*B S K V"],
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | Mask | None = None,
    *,
    scale: float | Float[Array, ""] | None = None,
    is_causal: bool = False,
    query_seq_lengths: Int[Array, "*B"] | None = None,
    key_value_seq_lengths: Int[Array, "*B"] | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    alignment: Alignment = "start",
    implementation: str | None = None,
    return_residual: bool = False,
) -> Float[Array, "*B T N V"] | tuple[Float[Array, "*B T N V"], Float[Array, "*B T N"]]:
    """Returns scaled dot-product attention: for every query, the values mixed by their weights.

        S = scale Q K^T + bias     P = softmax(S)     output = P V     lse = log sum_s exp(S)

    A superset of ``jax.nn.dot_product_attention``: the same arguments, ``implementation`` apart,
    give the same numbers, at memory linear in T and S, also in ``grad``, ``jvp``, ``hessian`` and
    beyond. Scores, softmax and sums are in float32, or in float64 for float64 inputs; matrix
    products have the precision that ``jax.default_matmul_precision`` gives float32 on the device.

    It differs where that function is wrong: float64 is not rounded to float32; a query that may
    attend to nothing returns 0 (not the mean of the values), with log-sum-exp -inf and every
    derivative 0; the log-sum-exp has its true derivatives (not 0); NaN or Inf in a key, value or
    query that takes part in no allowed pair reaches nothing.

    Cost: O(T S (H + V)) time a head less the tiles that a mask leaves empty, O(T + S) memory a
    head; ``implementation="reference"`` takes O(T S) memory.

    Args:
      query: queries, in float16, bfloat16, float32 or float64.
      key: keys, of the same dtype and leading axes.
      value: values, of the same dtype and leading axes; V may differ from H.
      bias: added to the scaled scores; broadcastable to ``[*B, N, T, S]``; differentiable.
      mask: booleans broadcastable to ``[*B, N, T, S]``, True may attend; or a value of
        ``attn.masks``. All masks and the options below hold together.
      scale: factor of the scores; ``1 / sqrt(H)`` if None; differentiable.
      is_causal: a query sees its own position and those before it.
      query_seq_lengths: queries at or past their row's length attend to nothing.
      key_value_seq_lengths: keys at or past their row's length are not attended.
      local_window_size: ``(left, right)``: a query sees that many positions before and after its
        own; an int is both.
      alignment: where query i stands among the keys for ``is_causal`` and ``local_window_size``:
        ``"start"`` at key i, ``"end"`` at key i + S - T (the last query at the last key).
      implementation: a name of ``IMPLEMENTATIONS``, strictly; None is the fastest.
      return_residual: whether to return the log-sum-exp too.

    Returns:
      The output, in the dtype of the query; with ``return_residual`` also the log-sum-exp, in
      float32, or float64 for float64 inputs. Both are differentiable to any order.

    Raises:
      ValueError: for a shape, size or name that does not fit, naming the argument.
      TypeError: for a dtype or type that does not fit, naming the argument.

    Example:
      >>> import attn, jax
      >>> x = jax.random.normal(jax.random.key(0), (2, 1000, 4, 64))
      >>> attn.dot_product_attention(x, x, x, is_causal=True).shape
      (2, 1000, 4, 64)

    References:
      Vaswani et al., "Attention is all you need", arXiv 1706.03762, equation 1. Ainslie et al.,
      grouped queries, arXiv 2305.13245. Dao et al., arXiv 2205.14135, the linear-memory backward.
    """
    query, key, value = arguments.arrays(query=query, key=key, value=value)
    bias, mask, scale = arguments.resolve(
        query,
        key,
        bias,
        mask,
        scale=scale,
        is_causal=is_causal,
        query_seq_lengths=query_seq_lengths,
        key_value_seq_lengths=key_value_seq_lengths,
        local_window_size=local_window_size,
        alignment=alignment,
    )
    name = next(iter(IMPLEMENTATIONS)) if implementation is None else implementation
    arguments.check_choice("implementation", name, IMPLEMENTATIONS)
    output, lse = IMPLEMENTATIONS[name](query, key, value, bias, mask, scale)
    output = output.astype(query.dtype)
    return (output, lse) if return_residual else output


class Options(TypedDict, total=False):
    """The options of ``dot_product_attention`` that change scores and masks."""

    scale: float | Float[Array, ""] | None
    is_causal: bool
    query_seq_lengths: Int[Array, "*B"] | None
    key_value_seq_lengths: Int[Array, "*B"] | None
    local_window_size: int | tuple[int, int] | None
    alignment: Alignment


def attention_scores(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | Mask | None = None,
    **options: Unpack[Options],
) -> Float[Array, "*B N T S"]:
    """Returns the scores ``scale Q K^T + bias``, with -inf where a query may not attend.

    For looking at: O(T S H) time and O(T S) memory a head. Arguments, options and errors are those
    of ``dot_product_attention``.

    Returns:
      In float32, or float64 for float64 inputs.
    """
    query, key = arguments.arrays(query=query, key=key)
    bias, mask, scale = arguments.resolve(query, key, bias, mask, **options)
    allowed = reference.allowed_pairs(query.shape[-3], key.shape[-3], mask)
    return reference.scores(query, key, bias, allowed, scale)


def attention_weights(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | Mask | None = None,
    **options: Unpack[Options],
) -> Float[Array, "*B N T S"]:
    """Returns the weights ``softmax(scale Q K^T + bias)``, the attention map.

    For looking at: O(T S H) time and O(T S) memory a head. Arguments, options and errors are those
    of ``dot_product_attention``.

    Returns:
      Each row sums to 1, or is 0 for a query that may attend to nothing. In float32, or float64
      for float64 inputs.
    """
    return reference.weights(attention_scores(query, key, bias, mask, **options))
