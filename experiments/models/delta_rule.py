"""The delta rule: a matrix of associations, corrected towards each new one.

For every head, with keys of length 1 and a rate b_t = sigmoid(w . x_t) (Yang et al.,
arXiv 2406.06484, section 2.2):

    S_t = S_{t-1} (I - b_t k_t k_t^T) + b_t v_t k_t^T          y_t = S_t q_t
    q, k = silu(W x) / |silu(W x)|      v = W_v x              out = W_O rms_norm(y)

That is a step down the gradient of ``|S k_t - v_t|^2 / 2``: what k_t recalls is replaced, not added
to, so H x H numbers hold up to H associations at right angles. It recalls well, and is here as the
counter-example: a bounded state does not bound recall while the keys are few.

``chunked`` is the paper's parallel form (section 3.2, there by the UT transform). With
``u_t = b_t (v_t - S_{t-1} k_t)`` the state is ``S + sum_s u_s k_s^T``, so the rows U of a chunk of
C tokens solve one unit-lower-triangular system:

    (I + tril(diag(b) K K^T, -1)) U = diag(b) (V - K S^T)
    Y = Q S^T + tril(Q K^T) U               S <- S + U^T K

Common code also applies SiLU to v and convolves q, k and v one by one; here the decoder's short
convolution, the same for every mixer, stands before the projections.

The rate and all of ``chunked`` are in float32 at least: an error in the state is there to stay, and
the system's solution adds up what rounding does to every key.

O(B L N (C H + H^2)) time. 4 D^2 parameters as attention, and D N + H.
"""

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import linen
from jaxtyping import Array, Float

from experiments.models.mixer import FLOAT_BYTES, Mixer, even_chunk, widened

if TYPE_CHECKING:
    from experiments.config import ModelConfig

CHUNK = 64
"""Tokens a chunk, at most."""


class DeltaRule(Mixer):
    """DeltaNet: linear attention that overwrites."""

    @linen.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """Returns what each position recalls."""
        num_heads, width = self.config.num_heads, self.config.width
        heads = (num_heads, width // num_heads)
        project = functools.partial(linen.DenseGeneral, heads, use_bias=False, dtype=x.dtype)
        query, key = (
            normalize(linen.silu(widened(project(name=name)(x)))) for name in ("query", "key")
        )
        value = widened(project(name="value")(x))
        rate = linen.sigmoid(linen.Dense(num_heads, use_bias=False, name="rate")(x))
        y = linen.RMSNorm(name="norm")(chunked(query, key, value, rate))
        return linen.Dense(width, use_bias=False, dtype=x.dtype, name="out")(y.reshape(x.shape))

    @staticmethod
    def state_bytes(config: "ModelConfig", length: int) -> int:
        """Returns the bytes of the N states, whatever the length."""
        del length
        return config.width * (config.width // config.num_heads) * FLOAT_BYTES


def normalize(x: Float[Array, "*B H"]) -> Float[Array, "*B H"]:
    """Returns vectors of length 1; a vector near 0 becomes shorter, and its gradient finite."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6)


def recurrent(
    query: Float[Array, "B L N H"],
    key: Float[Array, "B L N H"],
    value: Float[Array, "B L N V"],
    rate: Float[Array, "B L N"],
) -> Float[Array, "B L N V"]:
    """Returns ``S_t q_t`` with ``S_t = S_{t-1} + b_t (v_t - S_{t-1} k_t) k_t^T``, step by step."""

    def step(state, now):
        q, k, v, b = now
        error = v - jnp.einsum("bnvh,bnh->bnv", state, k)
        state += (b[..., None] * error)[..., :, None] * k[..., None, :]
        return state, jnp.einsum("bnvh,bnh->bnv", state, q)

    batch, _, num_heads, width = key.shape
    first = jnp.zeros((batch, num_heads, value.shape[-1], width), value.dtype)
    by_time = (jnp.swapaxes(x, 0, 1) for x in (query, key, value, rate))
    return jnp.swapaxes(jax.lax.scan(step, first, tuple(by_time))[1], 0, 1)


def chunked(
    query: Float[Array, "B L N H"],
    key: Float[Array, "B L N H"],
    value: Float[Array, "B L N V"],
    rate: Float[Array, "B L N"],
    chunk: int = CHUNK,
) -> Float[Array, "B L N V"]:
    """Returns what ``recurrent`` does, in chunks; see the module docstring.

    The system is solved for all chunks at once, with ``diag(b) V`` and ``diag(b) K`` on the right:
    the state S of before, all that a chunk waits for, then enters by products alone.
    """
    batch, length = query.shape[:2]
    chunk = even_chunk(length, chunk)
    padding = -length % chunk

    def split(x):  # [B, L, N, ...] -> [chunks, B, N, C, ...]
        x = jnp.pad(x, ((0, 0), (0, padding), *((0, 0),) * (x.ndim - 2)))
        x = jnp.swapaxes(x.reshape(batch, -1, chunk, *x.shape[2:]), 2, 3)
        return jnp.swapaxes(x, 0, 1)

    q, k, v, b = (split(x) for x in (query, key, value, rate[..., None]))
    past = jnp.tri(chunk, dtype=bool)
    scores = jnp.where(past, jnp.einsum("...th,...sh->...ts", q, k), 0)
    overlaps = jnp.where(past.T, 0, jnp.einsum("...th,...sh->...ts", b * k, k))
    inverse = invert(overlaps)
    written = inverse @ (b * v)
    if len(written) == 1:  # whose state of before is 0
        return jnp.swapaxes((scores @ written)[0], 1, 2)
    erased = inverse @ (b * k)

    def step(state, now):
        q, k, written, erased, scores = now
        u = written - jnp.einsum("bnth,bnvh->bntv", erased, state)
        y = jnp.einsum("bnth,bnvh->bntv", q, state) + scores @ u
        return state + jnp.einsum("bntv,bnth->bnvh", u, k), y

    first = jnp.zeros((batch, *v.shape[2:3], v.shape[-1], k.shape[-1]), v.dtype)
    _, y = jax.lax.scan(step, first, (q, k, written, erased, scores))
    y = jnp.swapaxes(jnp.swapaxes(y, 0, 1), 2, 3)
    return y.reshape(batch, -1, *value.shape[2:])[:, :length]


@jax.custom_jvp
def invert(below: Float[Array, "*B C C"]) -> Float[Array, "*B C C"]:
    """Returns ``(I + below)^-1`` of strictly lower triangular matrices, row by row.

        T_i = e_i - sum_{j < i} below_ij T_j

    Substitution is stable where keys repeat. The series of powers of ``below`` would not be: its
    terms are then binomial coefficients, of either sign.
    """
    size = below.shape[-1]
    # One leading axis: with more of them XLA's program for small products crashes on CPU.
    flat = below.reshape(-1, size, size)
    identity = jnp.eye(size, dtype=below.dtype)

    def substitute(inverse, i):
        row = identity[i] - jnp.einsum("bj,bjt->bt", flat[:, i], inverse)
        return inverse.at[:, i].set(row), None

    inverse, _ = jax.lax.scan(substitute, jnp.zeros_like(flat), jnp.arange(size))
    return inverse.reshape(below.shape)


@invert.defjvp
def _invert_jvp(primals, tangents):
    # d(X^-1) = -X^-1 dX X^-1: two products in place of the derivative of every row.
    inverse = invert(*primals)
    return inverse, -_product(inverse, *tangents, inverse)


def _product(*matrices: Float[Array, "*B C C"]) -> Float[Array, "*B C C"]:
    shape = matrices[0].shape
    first, second, third = (x.reshape(-1, *shape[-2:]) for x in matrices)
    return (first @ second @ third).reshape(shape)
