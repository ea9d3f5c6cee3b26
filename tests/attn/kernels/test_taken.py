"""What kernels take at sizes of use: masks and scores of every kind, alone and together.

Numbers are compared elsewhere, in tiles of a few pairs; whether a value is too large to be made
outside of a kernel is decided by sizes.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attn
from attn import masks, positions, scores

B, N, K, T, S, H = 3, 4, 2, 1024, 512, 64
RNG = np.random.default_rng(0)


def integers(*shape):
    return RNG.integers(1, 9, shape).astype(np.int32)


def floats(*shape):
    return RNG.random(shape).astype(np.float32) + 0.1


SEEN, TABLE, IDS = integers(S) > 2, integers(N, 16) > 2, integers(B, S)
MASKS = {
    "causal": masks.Causal(),
    "causal, at the end": masks.Causal(S - T),
    "causal, at places of rows": masks.Causal(integers(B)),
    "window": masks.Window(37, 5),
    "segments": masks.Segments(integers(B, T), IDS),
    "segments of all rows": masks.Segments(integers(T), integers(S)),
    "lengths of keys": masks.Lengths(key=integers(B)),
    "lengths of queries": masks.Lengths(query=integers(B)),
    "lengths": masks.Lengths(integers(B), integers(B)),
    "prefix": masks.Prefix(integers(B)),
    "strided": masks.Strided(3),
    "dilated": masks.Dilated(9, 0, 4),
    "a function of places": masks.Where(lambda at: (at.query * 3 + at.key + at.head) % 5 > 0),
    "a function of what is known of keys": masks.Where(lambda at: jnp.asarray(SEEN)[at.key]),
    "a table of offsets": masks.Where(
        lambda at: jnp.asarray(TABLE)[at.head, jnp.clip(at.query - at.key, 0, 15)]
    ),
    "dense": masks.Dense(np.ones((T, S), bool)),
    "dense, of keys": masks.Dense(np.ones((B, 1, 1, S), bool)),
    "dense, of queries": masks.Dense(np.ones((B, 1, T, 1), bool)),
    "dense, of heads": masks.Dense(np.ones((N, T, S), bool)),
}
SCORES = {
    "cap": scores.SoftCap(floats(N)),
    "ALiBi": scores.ALiBi(floats(N)),
    "relative bias": scores.RelativeBias(floats(16, N)),
    "log length": scores.LogLength(0.1),
    "two": scores.Chain(scores.ALiBi(floats(N)), scores.SoftCap(5.0)),
    "a slope": lambda s, at, _: jnp.tanh(s) - 0.1 * at.head * jnp.abs(at.query - at.key),
    "of keys": lambda s, at, _: s + jnp.asarray(SEEN)[at.key],
    "of heads and keys": lambda s, at, _: s + jnp.ones((N, S))[at.head, at.key],
    "of queries and keys": lambda s, at, _: s + jnp.ones(T)[at.query] * jnp.ones(S)[at.key],
    "a table of offsets": lambda s, at, _: (
        s + jnp.ones((N, 33))[at.head, jnp.clip(at.key - at.query, -16, 16) + 16]
    ),
    "of a derivative of its own": lambda s, at, _: jax.nn.softplus(s) * at.head,
}
BIASES = [(N, T, S), (T, S), (B, 1, 1, S), (1, 1, S), (N, 1, 1), (B, N, T, S), (B, 1, T, 1)]
CALLS = {
    **{name: {"mask": mask} for name, mask in MASKS.items()},
    **{f"not {name}": {"mask": ~mask} for name, mask in MASKS.items()},
    **{
        f"{name}, {score}": {"mask": masks.Causal() & MASKS[name], "score": SCORES[score]}
        for name, score in zip(MASKS, itertools.cycle(SCORES))
    },
    **{f"{name}, offsets": {"mask": MASKS["a table of offsets"] & MASKS[name]} for name in MASKS},
    **{
        f"lengths of keys, {score}": {"mask": MASKS["lengths of keys"], "score": SCORES[score]}
        for score in SCORES
    },
    **{
        f"lengths of keys, a bias {shape}": {
            "mask": MASKS["lengths of keys"],
            "bias": jax.ShapeDtypeStruct(shape, "float32"),
        }
        for shape in BIASES
    },
}


@pytest.mark.parametrize(
    ("shape", "taken"), [((352 * 512, 360 * 512), True), ((353 * 512, 360 * 512), False)]
)
def test_a_tpu_has_room_for_so_many_tiles(shape, taken):
    query, key = (jax.ShapeDtypeStruct((1, n, 1, 64), "bfloat16") for n in shape)
    found = attn.explain(query, key, key, platform="tpu")
    assert (found.implementation == "fused") == taken
    if not taken:
        assert found.refused["fused"] == "it has 353 x 360 tiles, more than 126976"


def flat(s, factors):
    return jnp.reshape(s, (-1, *s.shape[-2:])) * factors[:, None, None]


@jax.jit
def along_diagonals(table, offsets):
    """Named as a function of ours that is told by its name."""
    return table[jnp.abs(offsets) % table.size]


PARAMS = jnp.sin(jnp.arange(5.0))
TAKEN = {
    "a key head and its queries": lambda s, at, p: (
        jnp.reshape(s, (B, K, N // K, *s.shape[-2:])) * jnp.arange(1.0, 1 + K)[:, None, None, None]
    ).reshape(s.shape),
    "heads": lambda s, at, p: s * jnp.arange(1.0, 1 + N)[:, None, None] + at.head,
    "heads, each of one": lambda s, at, p: (
        jnp.reshape(s, (B, N, 1, *s.shape[-2:])) * jnp.arange(1.0, 1 + N)[:, None, None, None]
    ).reshape(s.shape),
    "a function named as ours": lambda s, at, p: s + along_diagonals(p, at.key - at.query),
    "as many numbers as distances": lambda s, at, p: (
        s + along_diagonals(jnp.sin(jnp.arange(127.0 + 128)) * p[1], at.key - at.query)
    ),
    "a rule of offsets and of one number": lambda s, at, p: (
        s + jnp.logaddexp(p[jnp.abs(at.key - at.query) % 5], jnp.full_like(s, p[0]))
    ),
    "features before keys": lambda s, at, p: (
        s + jnp.sum(jnp.tanh((at.key - at.query)[..., None, :] * p[:, None]), -2)
    ),
    "buckets": lambda s, at, p: (
        s + p[positions.relative_buckets(at.key - at.query, 5, bidirectional=False)]
    ),
    **{
        f"a search, {side}": lambda s, at, p, side=side: (
            s
            + p[jnp.searchsorted(jnp.arange(4), at.key - at.query, side=side, method="compare_all")]
        )
        for side in ("left", "right")
    },
}
LANES = "has other leading axes than scores"
REFUSED = {
    "all rows and heads as one": (
        lambda s, at, p: flat(s, jnp.arange(1.0, 1 + B * N)).reshape(s.shape),
        LANES,
    ),
    "heads, then rows": (
        lambda s, at, p: (
            jnp.reshape(s, (N, B, *s.shape[-2:])) * jnp.arange(1.0, 1 + N)[:, None, None, None]
        ).reshape(s.shape),
        LANES,
    ),
    "complex numbers": (lambda s, at, p: jnp.abs(s + 1j * p[0]), "has complex numbers"),
}


def value_and_gradient(score, implementation, num_keys=9):
    """By queries, and by what the score is given."""
    x = jnp.asarray(np.random.default_rng(1).normal(size=(B, 9, N, 8)), jnp.float32)
    key = x[:, :num_keys, :K]

    def loss(x, params):
        attend = functools.partial(attn.dot_product_attention, score=score, score_params=params)
        return jnp.sum(jnp.sin(attend(x, key, key, implementation=implementation)))

    return jax.value_and_grad(loss, (0, 1))(x, PARAMS)


@pytest.mark.usefixtures("hardware")
@pytest.mark.parametrize("num_keys", [9, 1])
@pytest.mark.parametrize("name", TAKEN)
def test_what_kernels_take_is_right(name, num_keys):
    both = (value_and_gradient(TAKEN[name], x, num_keys) for x in ("fused", "reference"))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, *both)


@pytest.mark.usefixtures("hardware")
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_of_a_pair_is_refused(name):
    """A kernel is in one lane at a time: what it makes of another order of them would be wrong."""
    score, reason = REFUSED[name]
    with pytest.raises(ValueError, match=reason):
        value_and_gradient(score, "fused")


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
@pytest.mark.parametrize(
    ("score", "reason"),
    [
        (lambda s, at, p: jax.lax.nextafter(s, s + 1), "has no derivative"),
        (lambda s, at, p: jnp.abs(s + 1j), "has complex numbers"),
    ],
)
def test_what_they_cannot_take_is_for_loops(score, reason, platform):
    """Where nothing is named, it is no error."""
    x = jax.ShapeDtypeStruct((1, 256, 4, 64), "bfloat16")
    assert reason in attn.explain(x, x, x, score=score, platform=platform).refused["fused"]
    with attn.compiled_for(platform, "9.0" if platform == "gpu" else None):
        attend = jax.jit(functools.partial(attn.dot_product_attention, score=score))
        lowering = {"gpu": "cuda", "tpu": "tpu"}[platform]
        text = attend.trace(x, x, x).lower(lowering_platforms=(lowering,)).as_text()
    assert "mosaic_gpu" not in text
    assert "tpu_custom_call" not in text


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
@pytest.mark.parametrize("name", CALLS)
def test_kernels_take_it(name, platform):
    query, key = (jax.ShapeDtypeStruct((B, *shape, H), "bfloat16") for shape in ((T, N), (S, K)))
    found = attn.explain(query, key, key, **CALLS[name], platform=platform)
    assert found.implementation == "fused", found.refused["fused"]
