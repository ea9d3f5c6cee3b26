"""The public function: checks its arguments, says in masks what they mean, runs an implementation.

Letters: ``*B`` any leading axes, none included, T queries, S keys, N query heads, K key and value
heads (K divides N), H head width, V value width.
"""

import functools
import math
import numbers
from collections.abc import Callable, Iterable
from typing import Any, TypedDict

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from attn import arguments, devices, reference, softmax_state
from attn.arguments import Alignment, Resolved
from attn.blockwise import LSE, blockwise_attention
from attn.masks import Mask
from attn.scores import Score

IMPLEMENTATIONS = {
    None: functools.partial(blockwise_attention, named=None),
    "fused": functools.partial(blockwise_attention, named="fused"),
    "cudnn": functools.partial(blockwise_attention, named="cudnn"),
    "blockwise": blockwise_attention,
    "reference": reference.reference_attention,
}
"""Name to ``function(query, key, value, *Resolved) -> (output, lse)``; None is what runs if none is
named: kernels where the platform has some that take the call, blockwise elsewhere."""

SYNONYMS = {"xla": "blockwise"}
"""What ``jax.nn.dot_product_attention`` calls them."""


class Options(TypedDict, total=False):
    """The options of ``dot_product_attention`` that change scores and masks."""

    scale: float | Float[Array, ""] | None
    is_causal: bool
    query_seq_lengths: Int[Array, "*B"] | None
    key_value_seq_lengths: Int[Array, "*B"] | None
    local_window_size: int | tuple[int, int] | None
    alignment: Alignment
    score: Score | Callable | None
    score_params: Any


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
    score: Score | Callable | None = None,
    score_params: Any = None,
    sinks: Float[Array, "..."] | None = None,
    dropout_rate: float = 0.0,
    dropout_rng: Array | None = None,
    implementation: str | None = None,
    return_residual: bool = False,
) -> Float[Array, "*B T N V"] | tuple[Float[Array, "*B T N V"], Float[Array, "*B T N"]]:
    """Returns scaled dot-product attention: for every query, the values mixed by their weights.

        S = score(scale Q K^T + bias)   P = softmax(S)   output = P V   lse = log sum_s exp(S)

    A superset of ``jax.nn.dot_product_attention``: the same arguments
    give the same numbers, at memory linear in T and S, also in ``grad``, ``jvp``, ``hessian`` and
    beyond. Scores, softmax and sums are in float32, or in float64 for float64 inputs; matrix
    products have the precision that ``jax.default_matmul_precision`` gives float32 on the device.

    It differs where that function is wrong: float64 is not rounded to float32; a query that may
    attend to nothing returns 0 (not the mean of the values), with log-sum-exp -inf and every
    derivative 0; the log-sum-exp has its true derivatives (not 0); NaN or Inf in a key, value or
    query that takes part in no allowed pair reaches nothing. It refuses, naming the argument, what
    has no meaning of its own here: T = 0 or S = 0, integers as query, key or value, bools as bias,
    a window of negative sides, a scale with axes, a flag that is no bool.

    Cost: O(T S (H + V)) time a head less the tiles that a mask leaves empty, O(T + S) memory a
    head beside what the caller brings (a bias of T x S may be copied once);
    ``implementation="reference"`` takes O(T S) memory.

    Functions in ``score`` and ``mask`` are traced at every call that is not itself inside ``jit``,
    and what they read is read then; a program is compiled again only if they do something else.

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
      score: a value of ``attn.scores``, or a function ``(scores, indices, params)`` of scores
        ``[*B, N, t, s]`` and ``attn.indices.Indices``, elementwise in pairs; it may close over
        arrays. Differentiable in all that it reads.
      score_params: a pytree, the last argument of ``score`` if that is a function.
      sinks: a logit for every head, ``[N]``, or one broadcastable to ``[*B, N]``: of a key that
        every query may attend to, with value 0. It counts in the log-sum-exp; differentiable.
      dropout_rate: the probability that a weight is dropped, a Python float in [0, 1); those kept
        are divided by ``1 - dropout_rate``. The log-sum-exp is that without dropout.
      dropout_rng: a random key; which weights are dropped depends on it and on the indices of a
        pair alone, so it is the same in every pass, derivative and implementation.
      implementation: ``"fused"`` (the Pallas kernels of ``attn.kernels``; on CPU interpreted,
        which is for tests), ``"cudnn"`` (on GPU, by ``jax.nn``), ``"blockwise"`` or
        ``"reference"``, strictly: it runs, or raises ValueError with the reason. None is the first
        that takes the call: on TPU of fused and blockwise; on GPU of cuDNN, fused (on Hopper) and
        blockwise (``attn.kernels`` says what each takes). Derivatives beyond the first, and forward
        mode, are blockwise in all but the reference. ``"xla"`` is ``"blockwise"``.
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
    logits = None if sinks is None else arguments.sinks_of(sinks, query)
    resolved = arguments.resolve(
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
        score=score,
        score_params=score_params,
    )
    resolved = arguments.dropped(resolved, dropout_rate, dropout_rng)
    beside = asked_beside(query, scale, sinks, return_residual)
    output, lse = run(implementation, query, key, value, resolved, beside)
    if logits is not None:
        output, lse = softmax_state.with_sink(output, lse, logits)
    output = output.astype(query.dtype)
    return (output, lse) if return_residual else output


def run(
    implementation: str | None,
    query: Array,
    key: Array,
    value: Array,
    resolved: Resolved,
    beside: tuple[str, ...] = (LSE,),
) -> tuple[Array, Array]:
    """Returns output and log-sum-exp in the dtype of the computation.

    Where the log-sum-exp is not asked for ``beside`` the output, it may be anything.
    """
    name = chosen(implementation)
    attend = functools.partial(IMPLEMENTATIONS[name], dropout_rate=resolved.dropout_rate)
    if name in (None, "cudnn"):
        attend = functools.partial(attend, beside=beside)
    arrays = query, key, value, *resolved[:-1]
    arrays = devices.vary(arrays, devices.varying(arrays))
    return devices.automatic(attend, query, query.ndim - 1, *arrays)


def asked_beside(query: Any, scale: Any, sinks: Any, return_residual: Any) -> tuple[str, ...]:
    """Returns what is asked for beside the output at the usual scale, in words."""
    arguments.check_flag("return_residual", return_residual)
    width, is_usual = query.shape[-1], scale is None
    if isinstance(scale, numbers.Real) and isinstance(width, int):
        is_usual = math.isclose(scale, 1 / math.sqrt(width), rel_tol=np.finfo(np.float32).eps / 2)
    more = ("a scale", not is_usual), ("sinks", sinks is not None), (LSE, return_residual)
    return tuple(name for name, is_asked in more if is_asked)


def chosen(implementation: Any, names: Iterable[str] | None = None) -> Any:
    """Returns which of the names, or of ``IMPLEMENTATIONS``, was meant, or raises ValueError."""
    if implementation is None:
        return None
    is_name = isinstance(implementation, str)
    name = SYNONYMS.get(implementation, implementation) if is_name else implementation
    of_all = (name for name in IMPLEMENTATIONS if name is not None)
    arguments.check_choice("implementation", name, of_all if names is None else names)
    return name
