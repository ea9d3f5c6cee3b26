"""Attention in parts: over some of the keys now, over the rest elsewhere or later.

    finish(merge(attend_partial(query, key_1, value_1), attend_partial(query, key_2, value_2)))

equals attention over both sets of keys, to rounding, and so do its derivatives of any order. Parts
may be computed in any order, on different devices, under different masks; ``merge`` is associative
and commutative. Split-key decoding, ring attention and a prefix that is kept are made of this.

Letters: ``*B`` leading axes, T queries, S keys, N query heads, K key heads, H head width, V value
width.
"""

from typing import Unpack

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from attn import arguments, softmax_state
from attn.dot_product import Options, run
from attn.masks import Mask
from attn.softmax_state import SoftmaxState


def attend_partial(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    value: Float[Array, "*B S K V"],
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | Mask | None = None,
    *,
    implementation: str | None = None,
    **options: Unpack[Options],
) -> SoftmaxState:
    """Returns what the queries know after these keys: a state, to be merged with others.

    Arguments, errors and cost are those of ``attn.dot_product_attention``, without dropout, and
    with sinks in ``finish``. Indices in masks and scores count from the first key given here: with
    ``start`` keys elsewhere before it, causal attention is
    ``mask=attn.masks.Causal(offset=-start)``.

    Returns:
      A state of axes ``[*B, N, T]``, its numerator of ``[*B, N, V, T]``, in float32, or float64
      for float64 inputs. Its maximum is the log-sum-exp of the part, its numerator the output.

    Example:
      >>> import attn, jax
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 4, 8))
      >>> parts = [attn.attend_partial(x, keys, keys) for keys in (x[:, :2], x[:, 2:])]
      >>> output, lse = attn.finish(attn.merge(*parts))
      >>> bool(abs(output - attn.dot_product_attention(x, x, x)).max() < 1e-5)
      True
    """
    query, key, value = arguments.arrays(query=query, key=key, value=value)
    resolved = arguments.resolve(query, key, bias, mask, **options)
    output, lse = run(implementation, query, key, value, resolved)
    return softmax_state.of_results(jnp.moveaxis(output, -3, -1), jnp.swapaxes(lse, -1, -2))


def merge(a: SoftmaxState, b: SoftmaxState) -> SoftmaxState:
    """Returns the state after the keys of both, which must be different keys of equal queries.

    Raises:
      ValueError: if the states are not of the same shapes.
      TypeError: if they are no states.
    """
    _check_state("a", a)
    _check_state("b", b)
    for name, x, y in zip(SoftmaxState._fields, a, b, strict=True):
        if x.shape != y.shape:
            raise ValueError(
                f"{name} of the states has shapes {x.shape} and {y.shape}; expected equal ones"
            )
    return softmax_state.merge(a, b)


def finish(
    state: SoftmaxState, sinks: Float[Array, "..."] | None = None
) -> tuple[Float[Array, "*B T N V"], Float[Array, "*B T N"]]:
    """Returns the output and the log-sum-exp of all keys of a state, in its dtype.

    Args:
      state: of ``attend_partial`` or ``merge``.
      sinks: as in ``attn.dot_product_attention``; they belong to the whole, not to a part.
    """
    _check_state("state", state)
    output, lse = softmax_state.finish(state)
    output, lse = jnp.moveaxis(output, -1, -3), jnp.moveaxis(lse, -1, -2)
    if sinks is None:
        return output, lse
    return softmax_state.with_sink(output, lse, arguments.sinks_of(sinks, output))


def _check_state(name: str, state: SoftmaxState) -> None:
    if not isinstance(state, SoftmaxState):
        raise TypeError(
            f"{name} is a {type(state).__name__}; expected a state of attend_partial or merge"
        )
