"""A gated long convolution: Hyena of order 2 (Poli et al., arXiv 2302.10866, definition 3.1).

    x1, x2, v = W_1 x, W_2 x, W_v x
    u_t = x1_t * v_t
    y_t = W_O (x2_t * (skip * u_t + sum_{s <= t} h_{t-s} * u_s))

The filter is implicit: a small network of the distance t in tokens, so it has every length,

    h_t = exp(-t / c) / sqrt(c) * mlp(code(t))

with sinusoidal features, sine activations, and for every channel a time c, learned, that starts
between 4 and 1024 tokens. The root keeps the sum's size whatever c is. What a position reads is
chosen by distance; content only gates it.

The filter multiplies as the Toeplitz matrix ``[L, L]`` that it is. The paper's Fourier transform
costs O(L log L), but rounds every input into every output: an answer would depend on the future,
by a little. Here it does not, at O(B D L^2) time. Matrices are made for as many channels at a time
as fit in 64 MiB, and for one at least: 4 L^2 bytes, which beyond L = 4096 are more. Filter and sums
are in float32 at least, whatever the dtype of the inputs.

4 D^2 + 35 D + 2112 parameters.
"""

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import linen
from jaxtyping import Array, Float

import attn
from experiments.models.mixer import FLOAT_BYTES, Mixer, widened

if TYPE_CHECKING:
    from experiments.config import ModelConfig

FEATURES = 32
"""Of a distance, and units of each hidden layer of the filter's network."""
LARGEST = 2**24
"""Elements of the Toeplitz matrices that are in memory at a time."""


class LongConvolution(Mixer):
    """Projects, gates, convolves over all of the past, gates, projects."""

    @linen.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """Returns the gated convolution at each position."""
        width = self.config.width
        dense = functools.partial(linen.Dense, width, use_bias=False, dtype=x.dtype)
        before, after, value = (dense(name=name)(x) for name in ("before", "after", "value"))
        skip = self.param("skip", linen.initializers.ones, (width,), jnp.float32)
        h = Filter(width, name="filter")(x.shape[-2])
        u = widened(before * value)
        return dense(name="out")(after * (skip * u + convolve(h, u)))

    @staticmethod
    def state_bytes(config: "ModelConfig", length: int) -> int:
        """Returns the bytes of all inputs of the convolution: every output weighs them anew."""
        return length * config.width * FLOAT_BYTES


class Filter(linen.Module):
    """The implicit filter of the module docstring."""

    width: int

    @linen.compact
    def __call__(self, length: int) -> Float[Array, "L D"]:
        """Returns the filter at distances 0 to ``length - 1``."""

        def times(rng, shape):
            del rng
            return jnp.linspace(jnp.log(4.0), jnp.log(1024.0), *shape, dtype=jnp.float32)

        distances = jnp.arange(length)
        h = attn.positions.sinusoidal(distances, FEATURES)
        for layer in range(2):
            h = jnp.sin(linen.Dense(FEATURES, name=f"hidden_{layer}")(h))
        h = linen.Dense(self.width, name="out")(h)
        rate = jnp.exp(-self.param("log_time", times, (self.width,)))
        return h * jnp.exp(-rate * distances[:, None]) * jnp.sqrt(rate)


def convolve(h: Float[Array, "L D"], u: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
    """Returns ``y_t = sum_{s <= t} h_{t-s} * u_s``, for each channel by itself.

    An output does not depend on later inputs at all: they are multiplied by zeros.
    """
    length, width = h.shape
    channels = max(LARGEST // length**2, 1)
    h, u = h.T, u.transpose(2, 1, 0)
    if width <= channels:
        return _toeplitz_product(h, u).transpose(2, 1, 0)
    padding = -width % channels
    blocks = [
        jnp.pad(x, ((0, padding), *((0, 0),) * (x.ndim - 1))).reshape(-1, channels, *x.shape[1:])
        for x in (h, u)
    ]
    # Checkpointed, or the backward pass would keep the matrices of all blocks.
    product = jax.checkpoint(lambda block: _toeplitz_product(*block))
    y = jax.lax.map(product, tuple(blocks))
    return y.reshape(-1, *u.shape[1:])[:width].transpose(2, 1, 0)


def _toeplitz_product(h: Float[Array, "C L"], u: Float[Array, "C L B"]) -> Float[Array, "C L B"]:
    return jnp.einsum("cts,csb->ctb", toeplitz(h), u)


def toeplitz(h: Float[Array, "C L"]) -> Float[Array, "C L L"]:
    """Returns ``T[t, s] = h[t - s]`` for ``s <= t``, else 0.

    Row t holds the filter reversed and then zeros, from place ``L - 1 - t`` on. Equal rows of 2 L
    that are read in rows of 2 L - 1 shift by one place a row: compared with a gather this is dense
    in both directions, its transposition a sum and no scatter.
    """
    channels, length = h.shape
    row = jnp.concatenate([h[:, ::-1], jnp.zeros_like(h)], axis=1)
    rows = jnp.broadcast_to(row[:, None], (channels, length, 2 * length))
    flat = rows.reshape(channels, -1)[:, : length * (2 * length - 1)]
    return flat.reshape(channels, length, 2 * length - 1)[:, :, length - 1 :]
