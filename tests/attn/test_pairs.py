"""A function of a tile that is known to mix its pairs is an error, on every platform."""

import jax
import jax.numpy as jnp
import pytest

import attn
from attn import masks

X = jnp.ones((2, 5, 3, 4))
RNG = jax.random.PRNGKey(0)


@jax.custom_jvp
def less_the_mean(x):
    """``x``, with a derivative that is of several."""
    return x


@less_the_mean.defjvp
def _(primals, tangents):
    return primals[0], tangents[0] - jnp.mean(tangents[0], -1, keepdims=True)


MIXING = {
    "reduce_max along keys": lambda s, at, _: s - jnp.max(s, -1, keepdims=True),
    "reduce_sum along queries": lambda s, at, _: s / jnp.sum(s**2, -2, keepdims=True),
    "argmax along keys": lambda s, at, _: s + jnp.argmax(s, -1, keepdims=True),
    "cumsum along keys": lambda s, at, _: s + jnp.cumsum(jnp.ones(9)[at.key], -1),
    "cumlogsumexp along keys": lambda s, at, _: jax.lax.cumlogsumexp(s, 3),
    "sort along keys": lambda s, at, _: jnp.sort(s, -1),
    "top_k along keys": lambda s, at, _: s - jax.lax.top_k(s, 1)[0],
    "rev along keys": lambda s, at, _: s[..., ::-1],
    "dot_general along queries": lambda s, at, _: s + jnp.swapaxes(s, -1, -2)[..., :1, :] @ s,
    "draw random numbers": lambda s, at, _: s + jax.random.normal(RNG, s.shape),
    "reduce_sum along keys": lambda s, at, _: less_the_mean(s),
    "reduce_or along keys": lambda s, at, _: jax.vmap(
        lambda x: jnp.where(jnp.any(x > 0, -1, keepdims=True), x, 0)
    )(s),
}
APART = {
    "features": lambda s, at, _: s + jnp.sum(jnp.ones((9, 2))[at.key], -1),
    "features as many as keys": lambda s, at, _: s + jnp.sum(jnp.ones((9, 3))[at.key], -1),
    "a search by sorting": lambda s, at, _: (
        s + jnp.searchsorted(jnp.arange(4), at.key, method="sort")
    ),
    "one of several": lambda s, at, _: s + jnp.isin(at.key, jnp.arange(4)),
    "random numbers of keys": lambda s, at, _: (
        s + jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(RNG, i)))(at.keys)
    ),
    "sums of a table": lambda s, at, _: s + jnp.cumsum(jnp.ones(9))[at.key],
    "the first query": lambda s, at, _: s + 0 * at.queries[0],
    "the least key": lambda s, at, _: s + 0 * jnp.min(at.keys),
    "both in one": lambda s, at, _: (
        s
        + jnp.outer(*jnp.split(jnp.sin(jnp.concatenate([at.queries, at.keys])), [at.queries.size]))
    ),
    "whether any is": lambda s, at, _: jax.lax.cond(
        jnp.any(at.key > 2), lambda x: x + (at.key > 2), lambda x: x, s
    ),
    "nothing of it": lambda s, at, _: (jnp.max(s), s * 2)[1],
}


@pytest.mark.parametrize("named", [None, "reference", "blockwise", "fused"])
@pytest.mark.parametrize("what", MIXING)
def test_a_score_function_that_mixes_pairs(what, named):
    reason = f"^score Function.* does {what}.*; expected it to treat each pair by itself"
    with pytest.raises(ValueError, match=reason):
        attn.dot_product_attention(X, X, X, score=MIXING[what], implementation=named)


def test_a_mask_that_mixes_pairs():
    mask = masks.Where(lambda at: jnp.cumsum(at.key % 3 == 0, -1) < at.query)
    reason = "^mask Where.* does cumsum along keys; expected it to treat each pair by itself"
    for compose in (lambda x: x, lambda x: ~x & masks.Causal()):
        with pytest.raises(ValueError, match=reason):
            attn.dot_product_attention(X, X, X, mask=compose(mask))


@pytest.mark.parametrize("what", APART)
def test_what_keeps_them_apart_is_none(what):
    whole = attn.dot_product_attention(X, X, X, score=APART[what], implementation="reference")
    found = attn.dot_product_attention(X, X, X, score=APART[what])
    assert jnp.allclose(found, whole, atol=1e-6)
