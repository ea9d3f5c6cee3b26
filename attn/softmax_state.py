"""The state of a softmax that is still being computed, as a value.

For one query, scores s_j and values v_j seen so far, the state holds

    m = max_j s_j        l = sum_j exp(s_j - m)        a = sum_j exp(s_j - m) v_j

from which the output is a / l and the log-sum-exp is m + log l. ``absorb`` adds a tile of keys,
``merge`` joins the states of two disjoint sets of keys, in any order and grouping (equal to
rounding), ``finish`` reads the result. A query that has seen nothing has m = -inf, l = 0, a = 0;
it finishes as output 0 and log-sum-exp -inf.

Online softmax: Milakov & Gimelshein, arXiv 1805.02867, algorithm 3; with values: Rabe & Staats,
arXiv 2112.05682, section 2; Dao et al., arXiv 2205.14135, algorithm 1.

Letters: ``*B`` leading axes and heads, Q queries, s keys of a tile, V value width.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, DTypeLike, Float


class SoftmaxState(NamedTuple):
    """What is known of each query's softmax after some of its keys; a pytree."""

    maximum: Float[Array, "*B Q"]
    """m, the greatest score or another number near it; -inf if no key was allowed."""
    denominator: Float[Array, "*B Q"]
    """l, the sum of exp(s - m)."""
    numerator: Float[Array, "*B V Q"]
    """a, the sum of exp(s - m) v."""


def finite(maximum: Float[Array, "*B Q"]) -> Float[Array, "*B Q"]:
    """Returns ``maximum`` with -inf replaced by 0, so that ``exp(-inf - it)`` is 0, not NaN."""
    return jnp.where(jnp.isneginf(maximum), 0, maximum)


def empty(queries: tuple[Any, ...], value_width: Any, dtype: DTypeLike) -> SoftmaxState:
    """Returns the state of queries ``(*B, Q)`` that have seen no key: the identity of ``merge``."""
    return SoftmaxState(
        maximum=jnp.full(queries, -jnp.inf, dtype),
        denominator=jnp.zeros(queries, dtype),
        numerator=jnp.zeros((*queries[:-1], value_width, queries[-1]), dtype),
    )


def absorb(
    state: SoftmaxState,
    scores: Float[Array, "*B Q s"],
    values: Float[Array, "*B V s"],
    factors: Float[Array, "*B Q s"] | None = None,
) -> SoftmaxState:
    """Returns the state after a tile of keys.

        m' = max(m, max_j s_j)    c = exp(m - m')    p_j = exp(s_j - m')
        l' = c l + sum_j p_j      a' = c a + sum_j p_j z_j v_j

    Cost: one matrix product, O(Q s V) time.

    Args:
      state: of the keys before.
      scores: one for each query and key of the tile; -inf where it may not attend.
      values: of the tile.
      factors: z, of the weights in the numerator alone (dropout); 1 if None.
    """
    maximum = jnp.maximum(state.maximum, jnp.max(scores, axis=-1))
    weights = jnp.exp(scores - finite(maximum)[..., None])
    correction = jnp.exp(state.maximum - finite(maximum))
    return SoftmaxState(
        maximum=maximum,
        denominator=correction * state.denominator + jnp.sum(weights, axis=-1),
        numerator=correction[..., None, :] * state.numerator + mix(weights, values, factors),
    )


def mix(
    weights: Float[Array, "*B Q s"],
    values: Float[Array, "*B V s"],
    factors: Float[Array, "*B Q s"] | None = None,
) -> Float[Array, "*B V Q"]:
    """Returns ``sum_j p_j z_j v_j`` for every query."""
    if factors is not None:
        weights = weights * factors
    batch = tuple(range(weights.ndim - 2))
    last = weights.ndim - 1
    return lax.dot_general(values, weights, (((last,), (last,)), (batch, batch)))


def merge(a: SoftmaxState, b: SoftmaxState) -> SoftmaxState:
    """Returns the state of the keys of ``a`` and of ``b`` together, which must be disjoint.

    With c_x = exp(m_x - max(m_a, m_b)): ``l = c_a l_a + c_b l_b``, ``a = c_a a_a + c_b a_b``.
    """
    maximum = jnp.maximum(a.maximum, b.maximum)
    from_a = jnp.exp(a.maximum - finite(maximum))
    from_b = jnp.exp(b.maximum - finite(maximum))
    return SoftmaxState(
        maximum=maximum,
        denominator=from_a * a.denominator + from_b * b.denominator,
        numerator=from_a[..., None, :] * a.numerator + from_b[..., None, :] * b.numerator,
    )


def merge_all(states: SoftmaxState) -> SoftmaxState:
    """Returns the state of all keys, from those of disjoint sets of them, ``[*B, P, Q]``.

        m = max_p m_p        l = sum_p exp(m_p - m) l_p        a = sum_p exp(m_p - m) a_p

    ``merge`` of more than two. Cost: O(P Q V) time, no memory but that of the result.
    """
    maximum = jnp.max(states.maximum, axis=-2)
    weights = jnp.exp(states.maximum - finite(maximum)[..., None, :])
    return SoftmaxState(
        maximum=maximum,
        denominator=jnp.sum(weights * states.denominator, axis=-2),
        numerator=jnp.sum(weights[..., None, :] * states.numerator, axis=-3),
    )


def finish(state: SoftmaxState) -> tuple[Float[Array, "*B V Q"], Float[Array, "*B Q"]]:
    """Returns the output ``a / l`` and the log-sum-exp ``m + log l``; 0 and -inf if l = 0."""
    seen = state.denominator != 0
    denominator = jnp.where(seen, state.denominator, 1)
    output = state.numerator / denominator[..., None, :]
    return output, jnp.where(seen, state.maximum + jnp.log(denominator), -jnp.inf)


def of_results(output: Float[Array, "*B V Q"], lse: Float[Array, "*B Q"]) -> SoftmaxState:
    """Returns a state that finishes as these: m = lse, l = 1 and a the output; l = 0 for -inf."""
    return SoftmaxState(lse, jnp.where(jnp.isneginf(lse), 0, jnp.ones_like(lse)), output)


def with_sink(
    output: Float[Array, "*Q V"], lse: Float[Array, "*Q"], logit: Float[Array, "..."]
) -> tuple[Float[Array, "*Q V"], Float[Array, "*Q"]]:
    """Returns output and log-sum-exp after one more key of this score, whose value is 0.

    lse' = log(exp(lse) + exp(logit))        output' = exp(lse - lse') output
    """
    greatest = finite(lax.stop_gradient(jnp.maximum(lse, logit)))
    seen, sunk = jnp.exp(lse - greatest), jnp.exp(logit - greatest)
    is_any = seen + sunk != 0
    total = jnp.where(is_any, seen + sunk, 1)
    joint = jnp.where(is_any, greatest + jnp.log(total), -jnp.inf)
    return output * (seen / total)[..., None], joint
