"""Where a token stands: codes that are added to embeddings, and rotations of queries and keys.

Attention itself sees a set, not a sequence: permuting keys and values together changes nothing.
A position code is what tells it the order (a causal mask alone tells some of it).

Letters: ``*B`` leading axes, T positions, N heads, H head width, D model width.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from attn.dtypes import accumulated


def sinusoidal(positions: Int[Array, "*B T"], width: int) -> Float[Array, "*B T D"]:
    """Returns the fixed code of each position, to be added to its embedding.

        code[t, 2i] = sin(t / 10000^(2i / D))        code[t, 2i + 1] = cos(t / 10000^(2i / D))

    Args:
      positions: integers, 0 for the first token.
      width: D, an even number.

    Returns:
      Values in [-1, 1], in float32.

    Raises:
      ValueError: if ``width`` is odd or less than 2.

    References:
      Vaswani et al., arXiv 1706.03762, section 3.5.
    """
    angles = _angles(positions, width, "width")
    pairs = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.reshape(pairs, (*angles.shape[:-1], width))


def learned(table: Float[Array, "L D"], num_positions: int) -> Float[Array, "T D"]:
    """Returns the first ``num_positions`` rows of a learned table, to be added to embeddings.

    Raises:
      ValueError: if the table has fewer rows: a learned code knows no position beyond its table.

    References:
      Gehring et al., arXiv 1705.03122, section 3.1.
    """
    if not 0 <= num_positions <= table.shape[0]:
        raise ValueError(
            f"num_positions is {num_positions}; expected at most {table.shape[0]}, the rows of the "
            "learned table"
        )
    return table[:num_positions]


def rotary(
    x: Float[Array, "*B T N H"], positions: Int[Array, "..."], base: float = 10_000.0
) -> Float[Array, "*B T N H"]:
    """Returns queries or keys rotated by their position, so that scores depend on i - j alone.

    Features 2i and 2i + 1 are the plane that turns by ``t base^(-2i / H)`` at position t:

        x'[2i]     = x[2i] cos - x[2i + 1] sin
        x'[2i + 1] = x[2i] sin + x[2i + 1] cos

    Args:
      x: queries or keys.
      positions: integers of shape ``[T]`` or ``[*B, T]``.
      base: the slowest plane turns once in about ``2 pi base`` positions.

    Returns:
      In the dtype of ``x``; angles are computed in float32 at least.

    Raises:
      ValueError: if H is odd.

    References:
      Su et al., arXiv 2104.09864, equation 34.
    """
    angles = _angles(positions, x.shape[-1], "the head width of x", base)[..., None, :]
    dtype = accumulated(x.dtype)
    cos, sin = jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)
    even, odd = x[..., 0::2].astype(dtype), x[..., 1::2].astype(dtype)
    rotated = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return jnp.reshape(rotated, x.shape).astype(x.dtype)


def alibi_slopes(num_heads: int) -> Float[Array, "N"]:
    """Returns the slopes of the ALiBi paper, in float32.

    For N a power of 2, ``2^(-8 h / N)`` for h = 1 ... N. For any other, those of the power of 2
    below it, P, followed by the first, third, fifth and so on of those of 2 P, as the authors do.

    Raises:
      ValueError: if ``num_heads`` is less than 1.

    References:
      Press et al., arXiv 2108.12409, section 3, and ``get_slopes`` in their code for other N.
    """
    if num_heads < 1:
        raise ValueError(f"num_heads is {num_heads}; expected 1 or more")
    power = 2 ** (num_heads.bit_length() - 1)
    steps = np.concatenate([np.arange(1, power + 1), np.arange(power) + 0.5])[:num_heads]
    return jnp.asarray(2.0 ** (-8 * steps / power), jnp.float32)


def relative_buckets(
    distances: Int[Array, "..."] | Int[np.ndarray, "..."],
    num_buckets: int = 32,
    *,
    bidirectional: bool = True,
    max_distance: int = 128,
) -> Int[Array, "..."]:
    """Returns the T5 bucket of each distance: one each for the near, logarithmic for the far.

    For a key n positions before its query, with M buckets of which the first E = M // 2 are exact,

        bucket(n) = n                                                         for n < E
                    min(E + floor((M - E) log(n / E) / log(max_distance / E)), M - 1)   else

    If bidirectional, M is half of the buckets and keys n > 0 positions after their query have the
    other half, ``M + bucket(n)``; if not, these keys all have bucket 0.

    The floor is that of the real number: the distances at which buckets start are found once, in
    exact integers, so a bucket depends neither on a rounding nor on the tile that asks. At 32
    buckets and a distance of 128 these are the buckets of T5's own float32 formula, and elsewhere
    too but for an occasional quotient of logarithms that should be an integer and rounds below it
    (48 one-way buckets, ``max_distance`` 81, n = 36).

    Args:
      distances: ``j - i``, key minus query.
      num_buckets: at least 2, or an even number of at least 4 if bidirectional.
      bidirectional: whether the sign of a distance counts.
      max_distance: greater than E.

    Returns:
      Integers in ``[0, num_buckets)``.

    Raises:
      ValueError: if ``num_buckets`` or ``max_distance`` is out of range.

    References:
      Raffel et al., arXiv 1910.10683, section 2.1; the formula is that of their code.
    """
    starts = bucket_starts(num_buckets, bidirectional, max_distance)
    before = jnp.abs(distances) if bidirectional else jnp.maximum(-distances, 0)
    is_past = jnp.expand_dims(starts, range(before.ndim)) <= before[..., None]
    buckets = jnp.sum(is_past, axis=-1, dtype=jnp.int32)
    if bidirectional:
        buckets += jnp.where(distances > 0, num_buckets // 2, 0)
    return buckets


@functools.lru_cache
def bucket_starts(
    num_buckets: int, bidirectional: bool, max_distance: int
) -> Int[np.ndarray, "starts"]:
    """Returns the least distance of each bucket but the first, ascending."""
    least = 4 if bidirectional else 2
    if num_buckets < least or (bidirectional and num_buckets % 2):
        expected = f"an even number of at least {least}" if bidirectional else f"at least {least}"
        raise ValueError(f"num_buckets is {num_buckets}; expected {expected}")
    side = num_buckets // 2 if bidirectional else num_buckets
    exact = side // 2
    if max_distance <= exact:
        raise ValueError(
            f"max_distance is {max_distance}; expected more than {exact}, the number of distances "
            "that have a bucket of their own"
        )
    starts = list(range(1, exact + 1))
    steps = side - exact
    for step in range(1, steps):
        # n >= exact (max_distance / exact)^(step / steps), without a root
        power = max_distance**step * exact ** (steps - step)
        start = max(int(exact * (max_distance / exact) ** (step / steps)) - 1, starts[-1])
        while start**steps < power:
            start += 1
        starts.append(start)
    return np.asarray(starts, np.int32)


def _angles(positions, width: int, name: str, base: float = 10_000.0) -> Float[Array, "*B T W"]:
    """Returns ``t base^(-2i / width)`` for i in ``[0, width / 2)``."""
    if width < 2 or width % 2:
        raise ValueError(f"{name} is {width}; expected an even number of 2 or more")
    rates = base ** (-np.arange(0, width, 2) / width)
    return jnp.asarray(positions, jnp.float32)[..., None] * jnp.asarray(rates, jnp.float32)
