"""The two passes of first order by cuDNN, through ``jax.nn``: attention in its plainest form.

It is asked where its semantics are ours: half precision, the usual scale, nothing added to scores
and nothing dropped, a mask that is none or causal, perhaps with a limit to the past, one number of
queries and keys if so, and the output alone (``jax.nn`` rounds the log-sum-exp, and has no
derivative of it). What would differ is done around it:

- The log-sum-exp is not returned; it is computed by definition where one is needed, in orders above
  the first (``attn.blockwise``), and what its cotangent adds there is one more pass.
- It has no gradient at an odd length: one more query and key are put last, which under a mask
  nothing sees, and which else is told to be padding. Of a single query the output alone is computed
  without: cuDNN then has a pass that shares keys among more of the GPU.

Every query and every key takes part in some pair, and what is not finite reaches at least all that
depends on it. It may reach more: a NaN in a key, queries before it that are in one tile of cuDNN.

Letters: ``*B`` leading axes, N query heads, K key heads, G = N / K, T queries, S keys, H and V head
widths.

cuDNN's attention is that of Dao, "FlashAttention-2", arXiv 2307.08691.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attn.devices import vary, varying
from attn.dtypes import accumulated
from attn.masks import And, Mask, Window
from attn.overrides import Opaque, Refused
from attn.plan import Inputs, Plan
from attn.tiles import KEYS, QUERIES, crop, pad

WIDEST = 128
"""Heads that it takes on every GPU that it is for; from Hopper on it takes wider ones."""
Band = tuple[int | None, int | None]
"""How far back and ahead a query sees; None is without a limit."""


class Asked(NamedTuple):
    """A call, before it is planned; of its arrays, shapes and dtypes alone are looked at."""

    query: Any
    """``[*B, T, N, H]``"""
    key: Any
    """``[*B, S, K, H]``"""
    value: Any
    """``[*B, S, K, V]``"""
    bias: Any
    mask: Mask | None
    score: Any
    beside: tuple[str, ...]
    """What is asked for beside the output at the usual scale, in words."""


def band_of(asked: Asked, *, interpret: bool, is_here: bool) -> Band:
    """Returns the band that a query sees, of a call that cuDNN can take.

    Args:
      asked: for.
      interpret: whether XLA is to do it in the place of cuDNN, which takes any heads and dtype.
      is_here: whether the GPU is here, to be asked too.

    Raises:
      Refused: if it cannot.
    """
    query, key, value = asked.query, asked.key, asked.value
    if not all(isinstance(n, int) for n in (*query.shape, *key.shape)):
        raise Refused("its sizes are symbolic", "cudnn")
    width, num_queries, num_keys = query.shape[-1], query.shape[-3], key.shape[-3]
    left, right = _band_of_mask(asked.mask, num_queries, num_keys) or (None, 1)
    is_half, is_wide = query.dtype in ("bfloat16", "float16"), bool(width % 8) or width > WIDEST
    for is_wrong, reason in (
        (bool(asked.beside), f"it asks for {', '.join(asked.beside)}"),
        (asked.bias is not None or asked.score is not None, "it changes scores"),
        (not (is_half or interpret), f"it is of {query.dtype}; products are of half precision"),
        (width != value.shape[-1], f"its heads are {width} wide, its values {value.shape[-1]}"),
        (
            is_wide and not interpret,
            f"its heads are {width} wide, no multiple of 8 up to {WIDEST}",
        ),
        (
            (right != 0 and (left, right) != (None, None)) or (left is not None and left < 0),
            "its mask is neither causal nor a window of the past, the first query at the first key",
        ),
        (right == 0 and num_queries != num_keys, f"it is causal, {num_queries} x {num_keys}"),
    ):
        if is_wrong:
            raise Refused(reason, "cudnn")
    if is_here and not interpret:
        shapes = tuple((1, *x.shape[-3:]) for x in (query, key, value))
        if (reason := _refusal_here(shapes, query.dtype, (left, right))) is not None:
            raise Refused(reason, "cudnn")
    return left, right


def _band_of_mask(mask: Mask | None, num_queries: int, num_keys: int) -> Band | None:
    """Returns how far before and after its own position a query sees; None if that is not all."""

    def is_band(mask):
        if isinstance(mask, And):
            return is_band(mask.left) and is_band(mask.right)
        return isinstance(mask, Window) and isinstance(mask.offset, int)

    if mask is None:
        return None, None
    if not is_band(mask):
        return None
    left, right = mask.reach()
    # As far as all keys is without a limit: so the last query alone, which is causal, sees all.
    left = None if left is not None and left >= num_queries - 1 else left
    return left, None if right is not None and right >= num_keys - 1 else right


@functools.cache
def _refusal_here(shapes: tuple[tuple[int, ...], ...], dtype: Any, band: Band) -> str | None:
    """Returns why this machine's cuDNN does not take such arrays; None if it does."""
    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    try:
        jax.eval_shape(_attention(band, interpret=False), *arrays)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        return str(error)
    return None


def _band(plan: Plan) -> Band:
    if plan.band is None:
        raise Refused("it was not for cuDNN where it was planned", "cudnn")
    return plan.band


def forward(plan: Plan, inputs: Inputs, *, interpret: bool) -> Float[Array, "*B K V G T"]:
    """Returns the output.

    Cost: one pass of cuDNN.
    """
    arrays = _given(plan, inputs)
    query = arrays[0]
    if query.shape[-3] == 1 and _band(plan) == (None, None):
        attend = _attention(_band(plan), interpret=interpret)
        output = _of_lanes(lambda *x: [attend(*x)], [query], arrays)[0]
    else:
        output, _ = _pulled(plan, arrays, query, interpret)
    return _as_queries(plan, output)


def backward(
    plan: Plan,
    inputs: Inputs,
    d_output: Float[Array, "*B K V G T"],
    d_lse: Float[Array, "*B K G T"] | None,
    *,
    interpret: bool,
) -> Inputs:
    """Returns the cotangents of query, key and value; of the rest there are none.

    Cost: the two passes of cuDNN, of which XLA may know the first; as many again if there is a
    cotangent of the log-sum-exp.
    """
    arrays = _given(plan, inputs)
    cotangent = _of_queries(plan, d_output).astype(plan.dtype)
    _, found = _pulled(plan, arrays, cotangent, interpret)
    if d_lse is not None:
        # ds += p dlse, that is dq += scale dlse sum_j p k, dk += scale sum_i p dlse q.
        query, key, _ = arrays
        scaled = _of_queries(plan, d_lse[..., None, :, :]) / math.sqrt(query.shape[-1])
        of_queries = (scaled * query).astype(plan.dtype)
        mixed, (*_, d_key) = _pulled(plan, (query, key, key), of_queries, interpret)
        added = scaled * mixed, d_key, jnp.zeros_like(found[2])
        found = [x.astype(d_lse.dtype) + y for x, y in zip(found, added, strict=True)]
    d_query = _as_queries(plan, found[0])
    d_key, d_value = (_as_keys(plan, x) for x in found[1:])
    return inputs._replace(query=d_query, key=d_key, value=d_value, scale=None)


def _attention(band: Band, *, interpret: bool) -> Callable[..., Array]:
    """Returns attention of ``[B, T, N, H]``, ``[B, S, K, H]`` and ``[B, S, K, H]``."""
    left, right = band
    return functools.partial(
        jax.nn.dot_product_attention,
        is_causal=right == 0,
        local_window_size=None if left is None else (left, 0),
        implementation="xla" if interpret else "cudnn",
    )


def _pulled(
    plan: Plan, arrays: Sequence[Array], d_output: Array, interpret: bool
) -> tuple[Array, list[Array]]:
    """Returns the output and its pull of a cotangent.

    Both of one pass, also where one is wanted: so XLA finds that the backward pass has in it what
    the forward pass has computed.
    """
    attend, is_masked = _attention(_band(plan), interpret=interpret), _band(plan)[1] is not None

    def pulled(query, key, value, d_output):
        length, num_keys = query.shape[1], key.shape[1]
        operands = [
            jnp.pad(x, [(0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)])
            for x in (query, key, value, d_output)
        ]
        options = {}
        if num_keys % 2 and not is_masked:
            options["key_value_seq_lengths"] = jnp.full(key.shape[:1], num_keys, jnp.int32)
        output, pull = jax.vjp(functools.partial(attend, **options), *operands[:3])
        d_query, *of_keys = pull(operands[3])
        return [*(x[:, :length] for x in (output, d_query)), *(x[:, :num_keys] for x in of_keys)]

    output, *cotangents = _of_lanes(pulled, [arrays[0], *arrays], [*arrays, d_output])
    return output, cotangents


def _of_lanes(
    function: Callable[..., list[Array]], outs: Sequence[Any], operands: Sequence[Array]
) -> list[Array]:
    """Returns the results, which are like ``outs``, of a function of arrays with one leading axis.

    Args:
      function: of the arrays.
      outs: shapes and dtypes of the results, of all leading axes.
      operands: of all leading axes.
    """

    def flat(*operands):
        lanes = operands[0].shape[:-3]
        found = function(*(jnp.reshape(x, (-1, *x.shape[-3:])) for x in operands))
        return [jnp.reshape(x, (*lanes, *x.shape[1:])) for x in found]

    outs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outs]
    return list(_opaque(flat, outs)(*vary(operands, varying(operands))))


def _opaque(function: Callable, outs: Sequence[jax.ShapeDtypeStruct]) -> Opaque:
    """Returns a function of any leading axes for JAX to look into when it compiles.

    ``jax.vmap`` adds another, to all operands.
    """

    def over_lanes(size, mapped):
        def of_lanes(*operands):
            pairs = zip(operands, mapped, strict=True)
            lanes = (
                x if is_mapped else jnp.broadcast_to(x, (size, *x.shape)) for x, is_mapped in pairs
            )
            return function(*lanes)

        return _opaque(of_lanes, [jax.ShapeDtypeStruct((size, *x.shape), x.dtype) for x in outs])

    return Opaque(function, tuple(outs), is_plain=True, over_lanes=over_lanes)


def _given(plan: Plan, inputs: Inputs) -> list[Array]:
    """Returns query, key and value as they were given, in the dtype that they were given in."""
    keys = (jnp.moveaxis(crop(plan.grid, x, KEYS), -1, -3) for x in (inputs.key, inputs.value))
    return [x.astype(plan.dtype) for x in (_of_queries(plan, inputs.query), *keys)]


def _of_queries(plan: Plan, x: Float[Array, "*B K W G T"]) -> Float[Array, "*B T N W"]:
    return plan.restored(jnp.swapaxes(x, -3, -2))


def _as_queries(plan: Plan, x: Float[Array, "*B T N W"]) -> Float[Array, "*B K W G T"]:
    x = plan.grouped(jnp.moveaxis(x.astype(accumulated(x.dtype)), -3, -1))
    return pad(plan.grid, jnp.swapaxes(x, -3, -2), QUERIES)


def _as_keys(plan: Plan, x: Float[Array, "*B S K W"]) -> Float[Array, "*B K W S"]:
    return pad(plan.grid, jnp.moveaxis(x.astype(accumulated(x.dtype)), -3, -1), KEYS)
