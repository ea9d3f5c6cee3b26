"""What an attention map shows, without the map: figures of its weights at memory linear in T and S.

With the scores s_ij and the log-sum-exp lse_i of ``dot_product_attention``, every figure is a sum
over keys, or over queries, of a function of the weight

    p_ij = exp(s_ij - lse_i)

and of where the pair stands. One pass over tiles finds lse, another (``attn.tiles``) the figure;
no T x S array is made, in any derivative of any order. What ranks keys (``top_keys``,
``largest_weight``) finds them in a pass of its own and has the derivative of the weights of the
keys that were found; ``distance_quantile`` is an integer and has none.

Distances are between a key and where its query stands, ``i + offset - j``: ``offset`` is 0, or
S - T for ``alignment="end"``. A query that may attend to nothing has weights 0: its figures are 0,
with derivatives 0, unless said otherwise, and averages leave it out. Weights are those without
dropout.

Letters: ``*B`` leading axes, T queries, S keys, t and s the sides of a tile, N query heads, K key
heads, G = N / K query heads that share a key head, H head width, W figures of one query.
"""

import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from attn import arguments, figures
from attn.dot_product import Options
from attn.masks import Mask


class TopKeys(NamedTuple):
    """The keys of greatest weight of every query, the greatest first."""

    indices: Int[Array, "*B T N k"]
    """-1 where the query may attend to fewer keys."""
    weights: Float[Array, "*B T N k"]
    """0 where the query may attend to fewer keys."""


def entropy(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | Mask | None = None,
    *,
    average: bool = False,
    **options: Unpack[Options],
) -> Float[Array, "*B T N"] | Float[Array, "*B N"]:
    """Returns the entropy of the weights of every query, in nats.

        H_i = -sum_j p_ij log p_ij

    From 0, all weight on one key, to ``log n``, n keys of equal weight. Differentiable to any
    order in all that ``dot_product_attention`` is.

    Cost: O(T S H) time and O(T + S) memory a head: two passes over the tiles that the mask leaves.

    Args:
      query: queries.
      key: keys, of the same dtype and leading axes; K divides N.
      bias: added to the scaled scores; broadcastable to ``[*B, N, T, S]``.
      mask: booleans broadcastable to ``[*B, N, T, S]``, or a value of ``attn.masks``.
      average: whether to return the mean over the queries that may attend to something.
      **options: ``scale``, ``is_causal``, ``query_seq_lengths``, ``key_value_seq_lengths``,
        ``local_window_size``, ``alignment``, ``score`` and ``score_params``, as in
        ``dot_product_attention``.

    Returns:
      A figure for every query and head, or the average for every head; in float32, or float64
      for float64 inputs.

    Raises:
      ValueError: for a shape, size or name that does not fit, naming the argument.
      TypeError: for a dtype, type or option that does not fit, naming the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> from attn import diagnostics
      >>> query, key = jnp.zeros((4, 1, 8)), jnp.zeros((4, 1, 8))
      >>> found = diagnostics.entropy(query, key, is_causal=True)
      >>> bool(jnp.allclose(jnp.exp(found[:, 0]), jnp.asarray([1, 2, 3, 4])))
      True
    """
    return figures.of_call(figures.entropy, (), query, key, bias, mask, options, average)


def expected_distance(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | Mask | None = None,
    *,
    signed: bool = False,
    average: bool = False,
    **options: Unpack[Options],
) -> Float[Array, "*B T N"] | Float[Array, "*B N"]:
    """Returns how far from where it stands a query looks, in the mean over its weights.

        sum_j p_ij |i + offset - j|

    Differentiable to any order. Cost, other arguments, dtype and errors are those of ``entropy``.

    Args:
      query: queries.
      key: keys.
      bias: added to the scaled scores.
      mask: which pairs take part.
      signed: whether to leave out the absolute value: keys before the query then count as
        positive, keys after it as negative.
      average: whether to return the mean over the queries that may attend to something.
      **options: of ``dot_product_attention``, as in ``entropy``; ``alignment`` sets the offset.
    """
    return figures.of_call(
        figures.expected_distance, (bool(signed),), query, key, bias, mask, options, average
    )


def distance_quantile(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | Mask | None = None,
    *,
    fraction: float,
    average: bool = False,
    **options: Unpack[Options],
) -> Int[Array, "*B T N"] | Float[Array, "*B N"]:
    """Returns the least distance within which lies at least this fraction of a query's weight.

        min d such that sum over |i + offset - j| <= d of p_ij >= fraction sum_j p_ij

    Up to rounding: a share that is short of the fraction by some units in the last place is enough,
    so that half of the weight is with half of as many equal keys, and the last of the keys that
    count at a fraction of 1 is the last that is not lost in rounding. It is an integer, and has no
    derivative (its average has derivative 0).

    Cost: one pass for every factor of ``BRANCHES`` in the greatest distance (4 at 4096), each of
    O(T S (H + BRANCHES)) time, and one for the log-sum-exp; O(T + S) memory a head. Other
    arguments and errors are those of ``entropy``.

    Args:
      query: queries.
      key: keys.
      bias: added to the scaled scores.
      mask: which pairs take part.
      fraction: a Python number in (0, 1].
      average: whether to return the mean over the queries that may attend to something.
      **options: of ``dot_product_attention``, as in ``entropy``; ``alignment`` sets the offset.

    Returns:
      In int32, -1 for a query that may attend to nothing; the average in the dtype of ``entropy``.

    Raises:
      ValueError: if ``fraction`` is not in (0, 1].
      TypeError: if ``fraction`` is not a number.
    """
    if not isinstance(fraction, numbers.Real) or isinstance(fraction, bool):
        raise TypeError(f"fraction is a {type(fraction).__name__}; expected a Python number")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is {fraction}; expected one in (0, 1]")
    arrays = (np.asarray(fraction, np.float64),)
    return figures.of_call(
        figures.distance_quantile, (), query, key, bias, mask, options, average, arrays
    )


def mass_by_distance(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | Mask | None = None,
    *,
    edges: Sequence[float],
    signed: bool = False,
    average: bool = False,
    **options: Unpack[Options],
) -> Float[Array, "*B T N W"] | Float[Array, "*B N W"]:
    """Returns the weight on the keys of each range of distances.

        sum over j with edges[w] <= |i + offset - j| < edges[w + 1] of p_ij

    Differentiable to any order. Cost: O(T S (H + W)) time, O(T W + S) memory a head, and for all
    heads together one tile for each range. Other arguments, dtype and errors are those of
    ``entropy``.

    Args:
      query: queries.
      key: keys.
      bias: added to the scaled scores.
      mask: which pairs take part.
      edges: W + 1 increasing numbers, infinite ones allowed, known before anything is traced.
      signed: whether to leave out the absolute value, as in ``expected_distance``.
      average: whether to return the mean over the queries that may attend to something.
      **options: of ``dot_product_attention``, as in ``entropy``; ``alignment`` sets the offset.

    Raises:
      ValueError: if ``edges`` are not two or more increasing numbers.
      TypeError: if ``edges`` are traced, or no real numbers.
    """
    arrays = (_whole_edges(edges),)
    settings = (bool(signed),)
    return figures.of_call(
        figures.mass_by_distance, settings, query, key, bias, mask, options, average, arrays
    )


def largest_weight(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | Mask | None = None,
    *,
    average: bool = False,
    **options: Unpack[Options],
) -> Float[Array, "*B T N"] | Float[Array, "*B N"]:
    """Returns the greatest weight of every query, ``max_j p_ij``.

    Differentiable to any order: its derivative is that of the weight of the key that has it, the
    first of several. Cost, other arguments, dtype and errors are those of ``entropy``.

    Args:
      query: queries.
      key: keys.
      bias: added to the scaled scores.
      mask: which pairs take part.
      average: whether to return the mean over the queries that may attend to something.
      **options: of ``dot_product_attention``, as in ``entropy``.
    """
    return figures.of_call(figures.largest_weight, (), query, key, bias, mask, options, average)


def top_keys(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | Mask | None = None,
    *,
    k: int,
    **options: Unpack[Options],
) -> TopKeys:
    """Returns the k keys of greatest weight of every query, and their weights.

    Weights do not increase along k; of keys of equal score, the lower index comes first. They are
    differentiable to any order, as the weights of the keys that were found.

    Cost: O(T S (H + log k)) time, O(T k + S) memory a head. Other arguments and errors are those of
    ``entropy``.

    Args:
      query: queries.
      key: keys.
      bias: added to the scaled scores.
      mask: which pairs take part.
      k: how many, a Python int from 1 to S.
      **options: of ``dot_product_attention``, as in ``entropy``.

    Returns:
      Indices in int32, -1 where a query may attend to fewer than k keys, and weights in float32,
      or float64 for float64 inputs, 0 there.

    Raises:
      ValueError: if ``k`` is less than 1 or greater than S.
      TypeError: if ``k`` is not an int.
    """
    query, key = arguments.arrays(query=query, key=key)
    if not isinstance(k, numbers.Integral) or isinstance(k, bool):
        raise TypeError(f"k is a {type(k).__name__}; expected a Python int")
    if not 1 <= k <= key.shape[-3]:
        raise ValueError(f"k is {k}; expected from 1 to the S = {key.shape[-3]} keys there are")
    return TopKeys(*figures.of_call(figures.top_keys, (int(k),), query, key, bias, mask, options))


def mass_on(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | Mask | None = None,
    *,
    positions: Int[Array, "..."],
    average: bool = False,
    **options: Unpack[Options],
) -> Float[Array, "*B T N"] | Float[Array, "*B N"]:
    """Returns the weight of every query on given keys, as on the true source of each.

        sum_w p_i,positions[i, w]

    Differentiable to any order, in all but the positions. Cost: O(T S H + T W) time and
    O(T W + S) memory a head. Other arguments, dtype and errors are those of ``entropy``.

    Args:
      query: queries.
      key: keys.
      bias: added to the scaled scores.
      mask: which pairs take part.
      positions: indices of keys, less than S, ``[T]``, ``[*B, T]`` or ``[*B, T, W]``; a negative
        one is none. An index that is given twice counts twice.
      average: whether to return the mean over the queries that may attend to something, those
        without a position included.
      **options: of ``dot_product_attention``, as in ``entropy``.

    Raises:
      ValueError: if ``positions`` has another shape, or, where it is not traced, an index of S or
        more (which has no weight if it is).
      TypeError: if ``positions`` are not integers.
    """
    query, key = arguments.arrays(query=query, key=key)
    arrays = (_positions_of(positions, query, key),)
    return figures.of_call(figures.mass_on, (), query, key, bias, mask, options, average, arrays)


def column_sums(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | Mask | None = None,
    **options: Unpack[Options],
) -> Float[Array, "*B S N"]:
    """Returns the weight that each key receives from all queries, ``sum_i p_ij``.

    Differentiable to any order. Cost, arguments, dtype and errors are those of ``entropy``.

    Args:
      query: queries.
      key: keys.
      bias: added to the scaled scores.
      mask: which pairs take part.
      **options: of ``dot_product_attention``, as in ``entropy``.
    """
    return figures.of_call(figures.column_sums, (), query, key, bias, mask, options)


def summary(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | Mask | None = None,
    **options: Unpack[Options],
) -> dict[str, Float[Array, "*B N"]]:
    """Returns by name the averages of the figures that need no argument, for every head.

    They are ``entropy``, ``expected_distance`` and ``largest_weight``, each the mean over the
    queries that may attend to something. One log-sum-exp serves all of them: 4 passes over the
    tiles. Arguments, dtype and errors are those of ``entropy``.

    Args:
      query: queries.
      key: keys.
      bias: added to the scaled scores.
      mask: which pairs take part.
      **options: of ``dot_product_attention``, as in ``entropy``.
    """
    return figures.of_call(figures.summary, (), query, key, bias, mask, options, average=True)


def _whole_edges(edges: Any) -> Int[np.ndarray, "edges"]:
    """Returns the integers that cut the distances, which are integers too, where ``edges`` do."""
    if any(isinstance(x, Tracer) for x in jax.tree.leaves(edges)):
        raise TypeError("edges is traced; expected numbers that are known when it is compiled")
    found = np.asarray(edges)
    if found.dtype == bool or not np.issubdtype(found.dtype, np.number) or np.iscomplexobj(found):
        raise TypeError(f"edges is {edges!r}; expected real numbers")
    # Not all(<=): a NaN is not increasing.
    if found.ndim != 1 or found.size < 2 or not np.all(found[:-1] < found[1:]):
        raise ValueError(f"edges is {edges!r}; expected two or more increasing numbers")
    limit = 2**31 - 1
    return np.ceil(np.clip(found.astype(np.float64), -limit, limit)).astype(np.int32)


def _positions_of(positions: Any, query: Array, key: Array) -> Int[Array, "*B T W"]:
    if not hasattr(positions, "dtype") and not isinstance(positions, (list, tuple)):
        raise TypeError(f"positions is a {type(positions).__name__}; expected an array")
    found = jnp.asarray(positions)
    if not jnp.issubdtype(found.dtype, jnp.integer):
        raise TypeError(f"positions has dtype {found.dtype}; expected an integer one")
    *batch, num_queries, _, _ = query.shape
    num_keys, each = key.shape[-3], (*batch, num_queries)
    if found.shape not in ((num_queries,), each) and found.shape[:-1] != each:
        raise ValueError(
            f"positions has shape {found.shape}; expected [T] = {(num_queries,)}, [*B, T] = {each} "
            f"or [*B, T, W] = {(*each, 'W')}"
        )
    is_known = not isinstance(found, Tracer) and found.is_fully_addressable and found.size
    if is_known and (last := np.max(np.asarray(found))) >= num_keys:
        raise ValueError(f"positions holds {last}; expected indices of the S = {num_keys} keys")
    if found.shape[:-1] == each and found.ndim == len(each) + 1:
        return found.astype(jnp.int32)
    return jnp.broadcast_to(found, each).astype(jnp.int32)[..., None]
