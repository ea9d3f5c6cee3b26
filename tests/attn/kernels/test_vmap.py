"""Kernels under ``vmap``: of arrays, of traced masks, inside and outside of the gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn import masks, scores
from attn.blockwise import blockwise_attention
from attn.tiles import TileSizes
from tests.attn.cases import assert_close, jit

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 2, 19, 4, 5)).astype(np.float32)
IDS = np.sort(RNG.integers(0, 3, (3, 2, 19)), axis=-1)
LENGTHS = np.array([5, 9, 19])


def loss(named, x, key, cap, ids, length):
    mask = masks.Causal() & masks.Segments(ids) & masks.Prefix(length)
    score, sides = scores.SoftCap(cap), TileSizes(8, 8)
    options = {"scale": 0.4, "score": score, "sides": sides, "named": named}
    output, _ = blockwise_attention(x, key[..., ::2, :], key[..., ::2, :], None, mask, **options)
    return jnp.sum(jnp.sin(output))


@pytest.mark.parametrize("mapped", ["x", "x ids", "x key ids length", "ids", "key", "length"])
def test_vmap_of_the_gradient_and_gradient_of_vmap(mapped):
    arrays = {"x": X, "key": X, "cap": np.float32(3), "ids": IDS, "length": LENGTHS}
    is_mapped = [name in mapped.split() for name in arrays]
    given = [
        x if flag or np.ndim(x) == 0 else x[1]
        for flag, x in zip(is_mapped, arrays.values(), strict=True)
    ]
    axes = [0 if flag else None for flag in is_mapped]

    def both(named, *given):
        one = functools.partial(loss, named)
        of_each = jax.vmap(jax.grad(one, (0, 1, 2)), axes)(*given)
        of_all = jax.grad(lambda *x: jnp.sum(jax.vmap(one, axes)(*x)), (0, 1, 2))(*given)
        return of_each, of_all

    actual, expected = (
        jit(functools.partial(both, named))(*given) for named in ("fused", "blockwise")
    )
    assert_close(actual, expected, rtol=1e-4, atol=1e-5)
