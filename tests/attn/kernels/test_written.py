"""Functions that make more than one number of a pair: kernels take them, and they are the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attn
from attn import masks, scores
from attn.blockwise import blockwise_attention
from attn.mask_algebra import mask_class
from attn.tiles import TileSizes

B, N, K, T, H = 2, 3, 1, 23, 5
RNG = np.random.default_rng(0)


def floats(*shape):
    return RNG.normal(size=shape).astype(np.float32)


KIND = RNG.integers(0, 4, (B, T))
PLACES, MAP, OF_HEADS, OF_ALL = floats(T, 2), floats(T, T), floats(N, T, T), floats(B, N, T, T)
WEIGHTS = floats(2, 4), floats(4)


@jax.custom_jvp
def tripled(x):
    """``x``, whose derivative is said to be 3."""
    return x


@tripled.defjvp
def _(primals, tangents):
    return tripled(*primals), 3 * tangents[0]


def between(at, places):
    return places[at.query] - places[at.key]


def kind_of(at):
    kind = jnp.asarray(KIND)
    return kind[at.batch[0], at.query], kind[at.batch[0], at.key]


def network(at, weights):
    both = jnp.stack(jnp.broadcast_arrays(at.query / 10, at.key / 9), -1)
    return jnp.tanh(both @ weights[0]) @ weights[1]


def steps(s, at, p):
    """A step for each number, of which each is seen, and their running sum."""
    last, seen = jax.lax.scan(lambda x, w: (jnp.tanh(x * w), x), s, p)
    return last + jnp.cumsum(seen, 0)[1] + jnp.flip(seen, 0)[0]


SCORES = {
    "a distance": (lambda s, at, p: s - jnp.sum(between(at, p) ** 2, -1), PLACES),
    "a norm": (lambda s, at, p: s - jnp.linalg.norm(between(at, p) + 0.1, axis=-1), PLACES),
    "a product of features": (lambda s, at, p: s + jnp.sum(p[at.query] * p[at.key], -1), PLACES),
    "a matrix between features": (
        lambda s, at, p: s + jnp.einsum("...a,ab,...b->...", p[at.query], p[:2], p[at.key]),
        PLACES,
    ),
    "a network of a pair": (lambda s, at, p: s + network(at, p), WEIGHTS),
    "a network of a score": (
        lambda s, at, p: jnp.tanh(s[..., None] * p[0][0]) @ p[1],
        WEIGHTS,
    ),
    "a table of kinds": (lambda s, at, p: s + p[kind_of(at)], floats(4, 4)),
    "a table of kinds, of heads": (
        lambda s, at, p: s + p[(at.head, *kind_of(at))],
        floats(N, 4, 4),
    ),
    "a table, and nothing past it": (
        lambda s, at, p: s + p.at[kind_of(at)].get(mode="fill", fill_value=7),
        floats(3, 3),
    ),
    "a table of what two have in common": (
        lambda s, at, p: s + p[(kind_of(at)[0] == kind_of(at)[1]).astype(int) + (s > 0)],
        floats(3),
    ),
    "a map": (lambda s, at, p: s + p[at.query, at.key], MAP),
    "a map, keys first": (lambda s, at, p: s + p[at.key, at.query], MAP),
    "a map of heads": (lambda s, at, p: s + p[at.head, at.query, at.key], OF_HEADS),
    "a map of all": (lambda s, at, p: s + p[(at.batch[0], *at[1:])], OF_ALL),
    "a map that is too short": (lambda s, at, p: s + p[at.query, at.key], floats(15, 21)),
    "a table that is too short": (lambda s, at, p: s + p[kind_of(at)], floats(3, 2)),
    "what is more than 0": (
        lambda s, at, p: s + jnp.sum(jax.nn.relu(between(at, p)), -1) + jax.nn.softplus(s),
        PLACES,
    ),
    "as many features as heads": (
        lambda s, at, p: s + jnp.sum(p[at.query] * p[at.key], -1) * p[:N, :1, None],
        floats(T, N),
    ),
    "cases": (
        lambda s, at, p: jnp.select([at.key < at.query - 9, at.key < at.query], [s * p, s], s / 2),
        jnp.float32(3),
    ),
    "the greatest of several": (
        lambda s, at, p: s + jnp.max(jnp.stack([jnp.sin(s), p * at.key + 0 * s, -s]), 0),
        jnp.float32(0.1),
    ),
    "which is the least": (
        lambda s, at, p: s * (1 + jnp.argmin(jnp.stack([s, -s, 0 * s + p]), 0)),
        jnp.float32(-0.1),
    ),
    "a search of scores": (
        lambda s, at, p: s * p[jnp.searchsorted(jnp.arange(-2.0, 3), s)],
        floats(6),
    ),
    "interpolated": (
        lambda s, at, p: s + jnp.interp(at.key - at.query, jnp.arange(-9.0, 10, 6), p),
        floats(4),
    ),
    "a polynomial": (lambda s, at, p: jnp.polyval(p, s), floats(3)),
    "steps": (steps, floats(4)),
    "a derivative of its own": (
        lambda s, at, p: (
            s + jnp.sum(tripled(jnp.stack([s, p * at.key + 0 * s, jnp.sin(s)], -1)), -1)
        ),
        jnp.float32(0.1),
    ),
    "beside an offset": (
        lambda s, at, p: s + p[:, 0][jnp.abs(at.key - at.query)] + jnp.sum(between(at, p) ** 2, -1),
        PLACES,
    ),
}
MASKS = {
    "a distance": masks.Where(lambda at, p: jnp.sum(between(at, p) ** 2, -1) < 4, PLACES),
    "a table of kinds": masks.Where(lambda at, p: p[kind_of(at)], floats(4, 4) > -0.5),
    "a map": masks.Where(lambda at, p: p[at.query, at.key], MAP > -0.5),
    "a map of all": masks.Where(lambda at, p: p[(at.batch[0], *at[1:])], OF_ALL > -0.5),
    "near in both": masks.Where(
        lambda at: jnp.all(
            jnp.stack([abs(at.query // 6 - at.key // 6) < 2, abs(at.query % 6 - at.key % 6) < 3]), 0
        )
    ),
    "something in common": masks.Where(
        lambda at, p: jnp.any(p[at.query] & p[at.key], -1), floats(T, 3) > -0.5
    ),
}
MASKS["all together"] = (MASKS["a map"] | ~MASKS["a distance"]) & masks.Causal()
CALLS = {
    **{name: {"score": scores.Function(*SCORES[name])} for name in SCORES},
    **{f"a mask, {name}": {"mask": MASKS[name]} for name in MASKS},
    "a chain": {
        "score": scores.Chain(
            scores.ALiBi(floats(N)), scores.Function(*SCORES["a norm"]), scores.SoftCap(3.0)
        ),
        "mask": MASKS["all together"],
    },
}


def attended(named, query, changes):
    """Output and log-sum-exp, by tiles of 8 x 8."""
    key = query[..., :K, :]
    given = changes.get("mask"), 1.0, changes.get("score")
    sides = TileSizes(8, 8)
    return blockwise_attention(query, key, key, None, *given, sides=sides, named=named)


@pytest.mark.usefixtures("hardware")
@pytest.mark.parametrize("name", CALLS)
def test_they_are_the_same_in_kernels(name):
    query = jnp.asarray(floats(B, T, N, H))

    def gradients(named):
        loss = lambda *x: sum(jnp.sum(jnp.sin(y)) for y in attended(named, *x))  # noqa: E731
        of_both = jax.jit(jax.value_and_grad(loss, (0, 1), allow_int=True))(query, CALLS[name])
        return [x for x in jax.tree.leaves(of_both) if x.dtype != jax.dtypes.float0]

    close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-4)
    jax.tree.map(close, gradients("fused"), gradients("blockwise"))


@pytest.mark.parametrize("name", CALLS)
def test_they_are_the_same_in_forward_mode(name):
    """Written out too, in loops: as the reference has them, which sees the whole."""
    query = jnp.asarray(floats(B, T, N, H))
    changes = CALLS[name]

    def moved(implementation):
        attend = functools.partial(
            attn.dot_product_attention, **changes, implementation=implementation
        )
        of_query = lambda x: attend(x, x[..., :K, :], x[..., :K, :], scale=1.0)  # noqa: E731
        return jax.jit(lambda x: jax.jvp(of_query, (x,), (jnp.sin(x),)))(query)

    close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-4)
    jax.tree.map(close, moved("fused"), moved("reference"))


@mask_class
class FirstOfThree(masks.Mask):
    """The first two keys, of every three, of those before."""

    def allow(self, indices):
        return jnp.cumsum((indices.key % 3 == 0) & (indices.query >= 0), -1) < 3


UNSEEN = {
    "part of an axis": lambda s, at, p: s - 2 * s[..., :1],
    "parts in another order": lambda s, at, p: jnp.roll(s, 1, -1),
    "places in a tile": lambda s, at, p: s + jnp.arange(s.shape[-1]),
    "heads as rows": lambda s, at, p: jnp.swapaxes(s, 0, 1) * 2,
    "no tile of one pair": lambda s, at, p: (
        s + jnp.zeros(99)[jnp.squeeze(at.query)[:, None] + 2 * jnp.squeeze(at.key)]
    ),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_what_one_pair_does_not_show_is_refused(name):
    x = jnp.zeros((2, T, 2, H))
    with pytest.raises(ValueError, match="implementation is 'fused', and the call is not for it"):
        attn.dot_product_attention(x, x, x, score=UNSEEN[name], implementation="fused")
    assert attn.explain(x, x, x, score=UNSEEN[name], platform="gpu").implementation == "blockwise"


def test_a_mask_class_that_mixes_pairs_is_refused():
    """It checks itself, so it is no error elsewhere."""
    x, mask = jnp.zeros((1, T, N, H)), FirstOfThree() & masks.Causal()
    with pytest.raises(ValueError, match="its function of pairs does cumsum along keys"):
        attn.dot_product_attention(x, x, x, mask=mask, implementation="fused")
    assert attn.explain(x, x, x, mask=mask, platform="tpu").implementation == "blockwise"


REFUSED = {
    "a long table of both": lambda s, at, p: s + jnp.zeros(99)[at.query + 2 * at.key],
    "a map elsewhere": lambda s, at, p: s + jnp.zeros((99, 99))[at.query, 2 * at.key],
    "many numbers": lambda s, at, p: s + jnp.sum(jnp.ones((T, 65))[at.query] * s[..., None], -1),
    "many steps": lambda s, at, p: jax.lax.fori_loop(0, 65, lambda _, x: jnp.sin(x), s),
    "a condition": lambda s, at, p: jax.lax.cond(
        at.head.size > at.head[0, 0, 0, 0], jnp.sin, abs, s
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_written_out_is_refused(name):
    x = jnp.zeros((1, T, N, H))
    with pytest.raises(ValueError, match="implementation is 'fused', and the call is not for it"):
        attn.dot_product_attention(x, x, x, score=REFUSED[name], implementation="fused")
    assert attn.explain(x, x, x, score=REFUSED[name], platform="tpu").implementation == "blockwise"
