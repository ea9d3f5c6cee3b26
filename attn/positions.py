"""Where a token stands: codes that are added to embeddings, and rotations of queries and keys.

Attention itself sees a set, not a sequence: permuting keys and values together changes nothing.
A position code is what tells it the order (a causal mask alone tells some of it).

Letters: ``*B`` leading axes, T positions, N heads, H head width, D model width.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


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
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    cos, sin = jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)
    even, odd = x[..., 0::2].astype(dtype), x[..., 1::2].astype(dtype)
    rotated = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return jnp.reshape(rotated, x.shape).astype(x.dtype)


def _angles(positions, width: int, name: str, base: float = 10_000.0) -> Float[Array, "*B T W"]:
    """Returns ``t base^(-2i / width)`` for i in ``[0, width / 2)``."""
    if width < 2 or width % 2:
        raise ValueError(f"{name} is {width}; expected an even number of 2 or more")
    rates = base ** (-np.arange(0, width, 2) / width)
    return jnp.asarray(positions, jnp.float32)[..., None] * jnp.asarray(rates, jnp.float32)
