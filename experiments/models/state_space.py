"""SSD, the mixer of Mamba-2: linear attention whose past fades at a rate that the input chooses.

For every head, with q, k, v = silu of projections of x (Dao and Gu, arXiv 2405.21060, where they
are C, B and X), a step dt_t = softplus(w_dt . x_t + b) and a gate a_t = exp(-dt_t exp(A)):

    S_t = a_t S_{t-1} + dt_t k_t v_t^T          y_t = q_t S_t + skip v_t
    out = W_O rms_norm(y * silu(W_z x))

The state S is one H x H matrix a head: what it can hold is bounded, whatever the row's length.
As a matrix, ``y = (Q K^T * M) V`` with the 1-semiseparable mask ``M_ts = prod_{s < r <= t} a_r``
(their equation 6). ``chunked`` builds this inside chunks of C tokens and carries S between them
(section 6): O(B L N (C H + H^2)) time, and matrix products in place of L steps. Of M it takes
differences of sums of logarithms, none above 0, so that long products cannot over- or underflow.
Steps, gates and all of ``chunked`` are in float32 at least: in bfloat16 such a sum could not tell
neighbours apart, and a gate above 0.998 would be 1.

Mamba-2's own block differs: it is twice as wide inside, its state has 128 rows whatever D is, A and
the first dt are drawn for each head, and q, k and v are convolved one by one after their
projections, with SiLU. Here a state is H x H, so one head has the largest; A starts at 0; and the
decoder's short convolution, the same for every mixer, stands before all projections.

5 D^2 parameters, to attention's 4 D^2, and (D + 3) N + D.
"""

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from jaxtyping import Array, Float

from experiments.models.mixer import FLOAT_BYTES, Mixer, even_chunk, widened

if TYPE_CHECKING:
    from experiments.config import ModelConfig

CHUNK = 64
"""Tokens a chunk, at most."""


class SSD(Mixer):
    """Scalar-gated linear attention."""

    @linen.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """Returns what each position reads from the state."""
        num_heads, width = self.config.num_heads, self.config.width
        heads = (num_heads, width // num_heads)
        project = functools.partial(linen.DenseGeneral, heads, use_bias=False, dtype=x.dtype)
        query, key, value = (
            linen.silu(widened(project(name=name)(x))) for name in ("query", "key", "value")
        )
        dt = linen.softplus(linen.Dense(num_heads, bias_init=_step_bias, name="step")(x))
        rate = jnp.exp(self.param("log_rate", linen.initializers.zeros, (num_heads,), jnp.float32))
        skip = self.param("skip", linen.initializers.ones, (num_heads,), jnp.float32)
        y = chunked(query, dt[..., None] * key, value, -rate * dt) + skip[:, None] * value
        gate = linen.silu(project(name="gate")(x))
        y = linen.RMSNorm(name="norm")((y * gate).reshape(x.shape))
        return linen.Dense(width, use_bias=False, dtype=x.dtype, name="out")(y)

    @staticmethod
    def state_bytes(config: "ModelConfig", length: int) -> int:
        """Returns the bytes of the N states, whatever the length."""
        del length
        return config.width * (config.width // config.num_heads) * FLOAT_BYTES


def _step_bias(rng, shape, dtype=jnp.float32):
    """Steps that start within Mamba-2's 0.001 to 0.1, spread over the heads in logarithm.

    With a rate of 1 that is a memory of 1000 to 10 tokens. Drawn steps would leave to chance what
    the few heads of a small model can remember.
    """
    del rng
    (num_heads,) = shape
    steps = 10 ** (-1 - 2 * (np.arange(num_heads) + 0.5) / num_heads)
    return jnp.asarray(np.log(np.expm1(steps)), dtype)


def recurrent(
    query: Float[Array, "B L N H"],
    key: Float[Array, "B L N H"],
    value: Float[Array, "B L N V"],
    log_gate: Float[Array, "B L N"],
) -> Float[Array, "B L N V"]:
    """Returns ``q_t S_t`` with ``S_t = exp(log_gate_t) S_{t-1} + k_t v_t^T``, step by step."""

    def step(state, now):
        q, k, v, log_a = now
        state = jnp.exp(log_a)[..., None, None] * state + k[..., :, None] * v[..., None, :]
        return state, jnp.einsum("bnh,bnhv->bnv", q, state)

    batch, _, num_heads, width = key.shape
    first = jnp.zeros((batch, num_heads, width, value.shape[-1]), value.dtype)
    by_time = (jnp.swapaxes(x, 0, 1) for x in (query, key, value, log_gate))
    return jnp.swapaxes(jax.lax.scan(step, first, tuple(by_time))[1], 0, 1)


def chunked(
    query: Float[Array, "B L N H"],
    key: Float[Array, "B L N H"],
    value: Float[Array, "B L N V"],
    log_gate: Float[Array, "B L N"],
    chunk: int = CHUNK,
) -> Float[Array, "B L N V"]:
    """Returns what ``recurrent`` does, in chunks.

    Inside a chunk, with c_t the sum of its log gates up to t:

        y_t = sum_{s <= t} exp(c_t - c_s) (q_t . k_s) v_s + exp(c_t) q_t S
        S  <- exp(c_C) S + sum_s exp(c_C - c_s) k_s v_s^T
    """
    batch, length = query.shape[:2]
    chunk = even_chunk(length, chunk)
    padding = -length % chunk

    def split(x):  # [B, L, N, ...] -> [B, chunks, N, C, ...]
        x = jnp.pad(x, ((0, 0), (0, padding), *((0, 0),) * (x.ndim - 2)))
        return jnp.swapaxes(x.reshape(batch, -1, chunk, *x.shape[2:]), 2, 3)

    q, k, v, log_a = (split(x) for x in (query, key, value, log_gate))
    c = jnp.cumsum(log_a, axis=-1)
    past = jnp.tri(chunk, dtype=bool)
    # Masked before the exponential: above the diagonal differences are positive and overflow.
    mask = jnp.exp(jnp.where(past, c[..., :, None] - c[..., None, :], -jnp.inf))
    inside = jnp.einsum("bcnth,bcnsh->bcnts", q, k) * mask
    y = jnp.einsum("bcnts,bcnsv->bcntv", inside, v)

    if c.shape[1] > 1:
        to_end = jnp.exp(c[..., -1:] - c)[..., None]
        added = jnp.einsum("bcnsh,bcnsv->bcnhv", to_end * k, v)
        fade = jnp.exp(c[..., -1])[..., None, None]

        def step(state, now):
            fade, added = now
            return fade * state + added, state

        by_chunk = (jnp.swapaxes(fade, 0, 1), jnp.swapaxes(added, 0, 1))
        _, states = jax.lax.scan(step, jnp.zeros_like(added[:, 0]), by_chunk)
        y += jnp.einsum("bcnth,cbnhv->bcntv", jnp.exp(c)[..., None] * q, states)

    return jnp.swapaxes(y, 2, 3).reshape(batch, -1, *value.shape[2:])[:, :length]
