"""A function of tiles taken apart is the function: at every tile, and at no width but its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn import scores
from attn.arguments import resolve
from attn.indices import along_diagonals
from attn.kernels.call import taken_apart
from attn.kernels.pairwise import split
from attn.kernels.values import KEY, NEITHER, QUERY
from attn.overrides import Refused
from attn.plan import plan
from attn.tiles import Share, TileSizes

B, N, T, S, t, s = 2, 3, 12, 20, 4, 5
COUNTS = T // t, S // s
SHARES = tuple(map(Share, COUNTS))
RNG = np.random.default_rng(0)
OPERANDS = {
    "ids": RNG.integers(0, 9, (B, S)),
    "slopes": RNG.normal(size=(N,)),
    "table": RNG.normal(size=(7,)),
    "pairs": RNG.normal(size=(B, 1, T, S)),
}
SCORES = jax.ShapeDtypeStruct((B, N, t, s), jnp.float32)


def places(i, j):
    """Queries and keys of a tile, ``[1, 1, t, 1]`` and ``[1, 1, 1, s]``."""
    return (i * t + jnp.arange(t))[:, None][None, None], (j * s + jnp.arange(s))[None, None, None]


def cut(x, start, size, axis):
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis)


def ids(x, i, j):
    queries, keys = cut(x["ids"], i * t, t, 1), cut(x["ids"], j * s, s, 1)
    return queries[:, None, :, None] == keys[:, None, None]


def gathered(x, i, j):
    queries, keys = places(i, j)
    return jnp.sin(x["table"][queries % 7] * x["table"][keys % 7])


def twice(x, i, j):
    @jax.jit
    def ahead(a, b):
        return jnp.where(a > b, a - b, 0)

    queries, keys = places(i, j)
    return ahead(queries, keys) + ahead(keys + 1, queries)


def by_distance(x, i, j):
    queries, keys = (jnp.reshape(n, -1) for n in places(i, j))
    distances = keys[0] - queries[-1] - 2 + jnp.arange(t + s - 1)
    return along_diagonals(jnp.sin(distances) * x["slopes"][:, None], t)


def offsets(i, j):
    queries, keys = places(i, j)
    return keys - queries


@jax.custom_jvp
def tripled(x, y):
    """``x y``, whose derivative is said to be three times what it is."""
    return x * y


@tripled.defjvp
def _(primals, tangents):
    (x, y), (dx, dy) = primals, tangents
    return tripled(x, y), 3 * (dx * y + x * dy)


@jax.custom_jvp
def mixed(x):
    """A function of each pair whose derivative is not."""
    return x


@mixed.defjvp
def _(primals, tangents):
    return primals[0], jnp.cumsum(tangents[0], -1)


def wandering(x):
    """Each step takes the last one twice."""
    for _ in range(40):
        x = x + jnp.sin(x)
    return x.astype(int) % 7


def network(x, i, j):
    """Of each offset, what a layer of seven makes of it."""
    hidden = jax.nn.relu(offsets(i, j)[..., None] * x["table"] - 1)
    return hidden @ x["table"]


FUNCTIONS = {
    "a derivative of its own": lambda x, i, j, p: (
        tripled(p, x["slopes"][:, None, None] + jnp.zeros(p.shape)) + jax.nn.softplus(offsets(i, j))
    ),
    "a table of offsets": lambda x, i, j, p: p + x["table"][jnp.clip(offsets(i, j), -3, 3) + 3],
    "a table of offsets, and of heads": lambda x, i, j, p: (
        p + jnp.outer(x["slopes"], x["table"])[:, jnp.abs(offsets(i, j) + 1)[0, 0] % 7] * p
    ),
    "offsets, heads last": lambda x, i, j, p: (
        p + jnp.moveaxis(jnp.outer(x["table"], x["slopes"])[offsets(i, j)[0, 0].clip(0, 6)], -1, 0)
    ),
    "allowed by a table of offsets": lambda x, i, j, p: (
        (jnp.sin(jnp.arange(7)) > 0)[offsets(i, j) % 7] & (places(i, j)[1] > 3)
    ),
    "ahead and behind": lambda x, i, j, p: jnp.where(
        places(i, j)[1] > places(i, j)[0], x["table"][offsets(i, j).clip(0, 6)], p
    ),
    "a table of what has a derivative of its own": lambda x, i, j, p: (
        p
        + x["table"][jax.nn.relu(offsets(i, j)).clip(0, 6)]
        * jnp.logaddexp(x["table"][offsets(i, j) % 7], offsets(i, j) / 9)
    ),
    "a network after a derivative of its own": lambda x, i, j, p: (
        p * (jax.nn.softplus(offsets(i, j) / 9)[..., None] @ jnp.ones((1, 1)))[..., 0]
    ),
    "many steps of offsets": lambda x, i, j, p: p * x["table"][wandering(offsets(i, j))],
    "several of a table": lambda x, i, j, p: (
        p
        * jnp.stack([x["table"][offsets(i, j) % 7], jnp.full(offsets(i, j).shape, 2.0)], 1)[:, 0]
        * jnp.concatenate(
            [jnp.sin(offsets(i, j))[..., None], 1.0 + jnp.zeros((1, 1, t, s, 2))], -1
        )[..., ::2].sum(-1)
    ),
    "floats": lambda x, i, j, p: (
        p
        * (jnp.sin(jnp.subtract(*map(jnp.float32, places(i, j))))[..., None] @ jnp.ones((1, 1)))[
            ..., 0
        ]
    ),
    "a network of offsets": lambda x, i, j, p: p * network(x, i, j),
    "by distance": lambda x, i, j, p: p * by_distance(x, i, j) + places(i, j)[0],
    "by distance, the same for all tiles": lambda x, i, j, p: (
        p + along_diagonals(jnp.arange(t + s - 1.0) * x["slopes"][:, None], t)
    ),
    "causal": lambda x, i, j, p: jnp.where(places(i, j)[1] <= places(i, j)[0], p, -1.0),
    "slopes": lambda x, i, j, p: (
        p - x["slopes"][:, None, None] * jnp.abs(places(i, j)[0] - places(i, j)[1])
    ),
    "an array that is cut": lambda x, i, j, p: (
        p * cut(cut(x["pairs"], i * t, t, 2), j * s, s, 3) + places(i, j)[0]
    ),
    "the other axis first": lambda x, i, j, p: p + cut(cut(x["pairs"], j * s, s, 3), i * t, t, 2),
    "ids": lambda x, i, j, p: jnp.where(ids(x, i, j), p, 0),
    "gathered": lambda x, i, j, p: p * gathered(x, i, j),
    "one function called twice": lambda x, i, j, p: p + twice(x, i, j),
    "repeated": lambda x, i, j, p: (
        p + jnp.ones(p.shape) * jnp.broadcast_to(places(i, j)[0], p.shape)
    ),
    "one row alone": lambda x, i, j, p: p * (places(i, j)[0] == 3),
    "two axes": lambda x, i, j, p: (
        p + jnp.broadcast_to((places(i, j)[0] * places(i, j)[1])[0, 0], p.shape)
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_is_the_same_at_every_tile(name):
    def function(x, i, j, row, p):
        del row
        return [FUNCTIONS[name](x, i, j, p)]

    taken = split(function, COUNTS, OPERANDS, SCORES)
    whole = {x: taken.whole(x, OPERANDS, SHARES) for x in taken.inputs if x.is_cut}
    diagonals = {x: taken.diagonals(x, OPERANDS) for x in taken.inputs if x.is_diagonal}
    for i in range(COUNTS[0]):
        for j in range(COUNTS[1]):
            scores = RNG.normal(size=SCORES.shape).astype(np.float32)
            (expected,) = function(OPERANDS, i, j, i, scores)
            rest = [x for x in taken.inputs if not (x.is_cut or x.is_diagonal)]
            given = dict(zip(rest, taken.outer(rest, OPERANDS, i, j, i), strict=True))
            for x, array in whole.items():
                given[x] = array[..., i * t : (i + 1) * t, j * s : (j + 1) * s]
            for x, array in diagonals.items():
                there = np.arange(s) - np.arange(t)[:, None] + t - 1
                given[x] = array[taken.distances.index(i, j)][..., there]
            for b in range(B):
                for n in range(N):
                    of_cell = {x: cell(array, b, n) for x, array in given.items()}
                    found = taken.inner(of_cell, scores[b, n].T, 0)
                    found = np.broadcast_to(found, (s, t)).T
                    np.testing.assert_allclose(found, expected[b, n], rtol=1e-6, atol=1e-6)


def cell(x, b, n):
    """What one head reads of ``[B or 1, N or 1, t or 1, s or 1]``, keys first."""
    x = np.asarray(x).reshape((1,) * (4 - np.ndim(x)) + np.shape(x))
    return jnp.asarray(x[min(b, x.shape[0] - 1), min(n, x.shape[1] - 1)].T)


def test_nothing_of_pairs_is_computed_outside():
    function = FUNCTIONS["ids"]
    taken = split(lambda x, i, j, _, p: [function(x, i, j, p)], COUNTS, OPERANDS, SCORES)
    assert {(x.depends, x.narrow) for x in taken.inputs} == {
        (QUERY, (B, 1, t, 1)),
        (KEY, (B, 1, 1, s)),
    }


def test_the_same_value_is_taken_once():
    def function(x, i, j, row, p):
        del row
        queries, keys = places(i, j)
        return [p + (queries - keys), p * (places(i, j)[0] - keys), p + x["slopes"][:, None, None]]

    taken = split(function, COUNTS, OPERANDS, SCORES)
    assert [x.depends for x in taken.inputs] == [QUERY, KEY, NEITHER]


def refused_array(x, i, j, p):
    return p + jnp.arange(t * s).reshape(t, s)


def reports(x, i, j, p):
    jax.debug.callback(lambda i: None, i)
    return p


REFUSED = {
    "a derivative of more than its pair": (lambda x, i, j, p: mixed(p), "cumsum of pairs"),
    "along diagonals by the query alone": (
        lambda x, i, j, p: p + along_diagonals(jnp.arange(t + s - 1.0) * (i + 1), t),
        "of pairs",
    ),
    "along diagonals by no distance": (
        lambda x, i, j, p: p + along_diagonals(jnp.arange(t + s - 1) + (2 * j - i), t),
        "of pairs",
    ),
    "a sum over pairs": (lambda x, i, j, p: p - p.sum(-1, keepdims=True), "reduce_sum of pairs"),
    "a gather at pairs": (
        lambda x, i, j, p: p + x["table"][(places(i, j)[0] + places(i, j)[1]) % 7],
        "of pairs",
    ),
    "a table of offsets and queries": (
        lambda x, i, j, p: p + x["table"][(offsets(i, j) + places(i, j)[0]) % 7],
        "of pairs",
    ),
    "a table of what may not be less than 0": (
        lambda x, i, j, p: p + x["table"][jnp.int32(jnp.greater(*map(jnp.uint32, places(i, j))))],
        "nor of offsets: .* of pairs",
    ),
    "a table of small integers": (
        lambda x, i, j, p: (
            p + x["table"][jnp.int32(jnp.greater(*(jnp.int8(n + 60) for n in places(i, j))))]
        ),
        "nor of offsets: .* of pairs",
    ),
    "a table of booleans": (
        lambda x, i, j, p: p + x["table"][jnp.int32(jnp.equal(*(n > 0 for n in places(i, j))))],
        "nor of offsets: .* of pairs",
    ),
    "a table of what is not an offset": (
        lambda x, i, j, p: p + x["table"][(places(i, j)[1] - 2 * places(i, j)[0]) % 7],
        "nor of offsets: .* of pairs",
    ),
    "a table of offsets of what is not known": (
        lambda x, i, j, p: p + x["table"][(places(i, j)[1] + x["ids"][0, 0] - places(i, j)[0]) % 7],
        "nor of offsets: .* of pairs",
    ),
    "a table of offsets of rounded places": (
        lambda x, i, j, p: (
            p + x["table"][jnp.int32(jnp.subtract(*map(jnp.bfloat16, (places(i + 99, j))))) % 7]
        ),
        "nor of offsets: .* of pairs",
    ),
    "some of the offsets": (
        lambda x, i, j, p: p + jnp.flip(x["table"][offsets(i, j) % 7], -1)[..., :1],
        "of pairs",
    ),
    "one of a tile": (
        lambda x, i, j, p: p + x["table"][offsets(i, j) % 7][..., 1:2],
        "of pairs",
    ),
    "a sum over offsets": (
        lambda x, i, j, p: p + jnp.cumsum(x["table"][offsets(i, j) % 7], -1),
        "of pairs",
    ),
    "a turned tile of offsets": (
        lambda x, i, j, p: p + x["table"][offsets(i, j) % 7].swapaxes(-1, -2)[..., :1, :1],
        "of pairs",
    ),
    "a table for each place of a tile": (
        lambda x, i, j, p: p + x["table"][(offsets(i, j) + jnp.arange(t * s).reshape(t, s)) % 7],
        "of pairs",
    ),
    "a turned tile": (
        lambda x, i, j, p: p[..., :t, :t].swapaxes(-1, -2)[..., :1, :1] + p,
        "of pairs",
    ),
    "an array of pairs": (refused_array, "holds an array of pairs"),
    "another tile's part": (
        lambda x, i, j, p: p + cut(cut(x["pairs"], i * t, t, 2), j * 2, s, 3),
        "elsewhere than at its tile",
    ),
    "side effects": (reports, "side effects"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_of_one_pair_is_refused(name):
    function, reason = REFUSED[name]
    with pytest.raises(Refused, match=reason):
        split(lambda x, i, j, _, p: [function(x, i, j, p)], COUNTS, OPERANDS, SCORES)


@jax.custom_jvp
def through(x):
    """Which of two a score is, and it moves as the score does."""
    return jnp.zeros_like(x)


through.defjvp(lambda primals, tangents: (through(*primals), tangents[0]))


def test_a_number_may_have_a_derivative():
    taken = split(lambda x, i, j, _, p: [through(p)], COUNTS, OPERANDS, SCORES)
    found = jax.grad(lambda p: jnp.sum(taken.inner({}, p, 0)))(jnp.ones((s, t)))
    np.testing.assert_array_equal(found, 1)


def test_a_derivative_of_its_own_is_the_one_there_is():
    function = FUNCTIONS["a derivative of its own"]
    taken = split(lambda x, i, j, _, p: [function(x, i, j, p)], COUNTS, OPERANDS, SCORES)
    given = dict(zip(taken.inputs, taken.outer(taken.inputs, OPERANDS, 0, 0, 0), strict=True))
    of_cell = {x: cell(array, 0, 1) for x, array in given.items()}
    scores = jnp.asarray(RNG.normal(size=(s, t)), jnp.float32)
    found = jax.grad(lambda p: jnp.sum(jnp.sin(taken.inner(of_cell, p, 0))))(scores)
    value = taken.inner(of_cell, scores, 0)
    expected = jnp.cos(value) * 3 * OPERANDS["slopes"][1]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_what_is_of_distances_is_one_value_masked_or_not():
    """So there is one table of it, and one gradient."""
    x = jnp.ones((1, 256, 2, 64))
    bias = scores.RelativeBias(jnp.ones((8, 2)))
    resolved = resolve(x, x, None, None, score=bias, is_causal=True)
    sides = TileSizes(128, 128)
    call, context, params = plan(x, x, resolved.mask, resolved.score, None, 0.0, sides)
    inputs = call.arrange(params, x, x, x, None, resolved.scale)
    taken = taken_apart(call, context, inputs, interpret=True)
    assert sum(x.is_diagonal for x in taken.pairs.inputs) == 1
