"""Figures of the attention map: each as the whole map has it, at linear memory."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attn
from attn import diagnostics, masks, scores
from attn import figures as sums
from attn.tiles import TileSizes
from tests.attn.cases import (
    FLOAT64,
    Case,
    assert_close,
    differentiable,
    discrete,
    jit,
)
from tests.quick import quick_to_compile

SMALL = functools.partial(Case, num_heads=6, head_width=5)
CASES = {
    "plain": SMALL(),
    "causal, one key head": SMALL(num_key_heads=1, options={"is_causal": True}),
    "no leading axes, more queries than keys": SMALL(
        batch=(), num_queries=17, num_keys=13, num_key_heads=6, bias=(13,)
    ),
    "window and lengths, aligned at the end": SMALL(
        batch=(2, 1),
        scale=True,
        query_seq_lengths=((5,), (13,)),
        key_value_seq_lengths=((17,), (6,)),
        options={"local_window_size": (6, 1), "alignment": "end"},
    ),
    "everything": SMALL(
        bias=(6, 13, 17),
        mask=(2, 1, 13, 17),
        query_seq_lengths=(13, 11),
        options={"is_causal": True, "alignment": "end"},
    ),
}
CAPPED = "everything"
"""The case that has a score function too, with a parameter."""

EDGES = (-1.5, 0, 1, 2.5, 6, np.inf)
FRACTIONS = 0.1, 0.5, 0.9


@pytest.fixture(autouse=True)
def tiles(monkeypatch):
    """Several tiles along both axes, the last of them padded."""
    monkeypatch.setattr(sums, "SIDES", TileSizes(query=4, key=5))


def inputs_of(name, seed=""):
    inputs = differentiable(CASES[name], seed)
    del inputs["value"]
    return inputs | ({"cap": np.float64(1.3)} if name == CAPPED else {})


def called(function, name, **more):
    """Returns a function of ``inputs_of(name)`` and ``discrete(CASES[name])``."""

    def call(inputs, arrays):
        inputs = dict(inputs)
        score = {"score": scores.SoftCap(inputs.pop("cap"))} if "cap" in inputs else {}
        return function(**inputs, **arrays, **score, **CASES[name].options, **more)

    return call


def positions_of(case):
    rng = np.random.default_rng(1)
    return rng.integers(-2, case.num_keys, (*case.batch, case.num_queries, 3))


def distances_of(case):
    """Returns ``i + offset - j``, ``[T, S]``."""
    is_end = case.options.get("alignment") == "end"
    offset = case.num_keys - case.num_queries if is_end else 0
    return np.arange(case.num_queries)[:, None] + offset - np.arange(case.num_keys)


def figures(name):
    """Returns every differentiable figure, and its formula on weights ``[*B, N, T, S]``.

    The formulas are written once for NumPy and for JAX, whose namespace is their last argument.
    """
    case = CASES[name]
    ahead, positions = distances_of(case), positions_of(case)
    call = functools.partial(called, name=name)

    def entropy(p, np):
        return -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0), axis=-1)

    def mean_of(distances):
        return lambda p, np: np.sum(p * distances, axis=-1)

    def by_distance(distances):
        bins = [(distances >= a) & (distances < b) for a, b in itertools.pairwise(EDGES)]
        return lambda p, np: np.stack([np.sum(np.where(b, p, 0), axis=-1) for b in bins], axis=-1)

    def mass_on(p, np):
        at = np.broadcast_to(positions[..., None, :, :], (*p.shape[:-1], 3))
        found = np.take_along_axis(p, np.maximum(at, 0), axis=-1)
        return np.sum(np.where(at >= 0, found, 0), axis=-1)

    def top(p, np):
        return -np.sort(-p, axis=-1)[..., :3]

    return {
        "entropy": (call(diagnostics.entropy), entropy),
        "distance": (call(diagnostics.expected_distance), mean_of(np.abs(ahead))),
        "signed distance": (call(diagnostics.expected_distance, signed=True), mean_of(ahead)),
        "mass by distance": (
            call(diagnostics.mass_by_distance, edges=EDGES),
            by_distance(np.abs(ahead)),
        ),
        "mass by signed distance": (
            call(diagnostics.mass_by_distance, edges=EDGES, signed=True),
            by_distance(ahead),
        ),
        "largest weight": (call(diagnostics.largest_weight), lambda p, np: np.max(p, axis=-1)),
        "weights of the top keys": (
            lambda *x: call(diagnostics.top_keys, k=3)(*x).weights,
            top,
        ),
        "mass on positions": (call(diagnostics.mass_on, positions=positions), mass_on),
        "column sums": (call(diagnostics.column_sums), lambda p, np: np.sum(p, axis=-2)),
    }


def dense(key):
    """Returns the formula on the map of ``CAPPED``, as a function of its inputs."""
    weights = called(attn.attention_weights, CAPPED)
    formula = figures(CAPPED)[key][1]
    return lambda x: heads_last(CASES[CAPPED], formula(weights(x, arrays_of(CAPPED)), jnp))


def heads_last(case, x):
    """Returns ``[*B, N, ...]`` as ``[*B, T or S, N, ...]``."""
    axis = len(case.batch)
    return x.swapaxes(axis, axis + 1)


def weights_of(name):
    return np.asarray(jit(called(attn.attention_weights, name))(inputs_of(name), arrays_of(name)))


def arrays_of(name):
    return discrete(CASES[name])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", CASES)
def test_figures_are_those_of_the_map(name):
    of_tiles = {key: call for key, (call, _) in figures(name).items()}
    found = jit(lambda *x: {key: call(*x) for key, call in of_tiles.items()})(
        inputs_of(name), arrays_of(name)
    )
    p = weights_of(name)
    for key, (_, formula) in figures(name).items():
        expected = heads_last(CASES[name], formula(p, np))
        np.testing.assert_allclose(found[key], expected, err_msg=key, **FLOAT64)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", CASES)
def test_top_keys_and_quantiles_are_those_of_the_map(name):
    case, p = CASES[name], weights_of(name)
    calls = [called(diagnostics.top_keys, name, k=7)]
    calls += [called(diagnostics.distance_quantile, name, fraction=f) for f in FRACTIONS]
    top, *quantiles = jit(lambda *x: [call(*x) for call in calls])(inputs_of(name), arrays_of(name))

    order = np.argsort(-p, axis=-1, kind="stable")[..., :7]
    weights = np.take_along_axis(p, order, axis=-1)
    np.testing.assert_array_equal(top.indices, heads_last(case, np.where(weights > 0, order, -1)))
    assert np.all(np.diff(top.weights, axis=-1) <= 0)

    distances = np.abs(distances_of(case))
    within = [np.sum(np.where(distances <= d, p, 0), -1) for d in range(np.max(distances) + 1)]
    for fraction, found in zip(FRACTIONS, quantiles, strict=True):
        expected = np.argmax(np.stack(within) >= fraction, axis=0)
        expected = np.where(np.any(p > 0, axis=-1), expected, -1)
        np.testing.assert_array_equal(found, heads_last(case, expected))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("key", sorted(figures(CAPPED).keys() - {"distance", "mass by distance"}))
def test_gradients_are_those_of_the_map(key):
    """In query, key, bias and the parameter of a score function; of queries that see none, 0."""
    call, _ = figures(CAPPED)[key]
    inputs, arrays = inputs_of(CAPPED), arrays_of(CAPPED)

    def gradient(function):
        return jit(jax.grad(lambda x: jnp.sum(jnp.sin(3 * function(x)))))(inputs)

    found = gradient(lambda x: call(x, arrays))
    assert_close(found, gradient(dense(key)), **FLOAT64)
    assert all(np.any(x) for x in jax.tree.leaves(found))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("key", ["entropy", "weights of the top keys"])
def test_second_derivatives_are_those_of_the_map(key):
    call, _ = figures(CAPPED)[key]
    inputs, arrays = inputs_of(CAPPED), arrays_of(CAPPED)
    tangents = inputs_of(CAPPED, "tangents")

    def products(function):
        loss = lambda x: jnp.sum(jnp.sin(3 * function(x)))  # noqa: E731
        return jit(lambda x: jax.jvp(jax.grad(loss), (x,), (tangents,))[1])(inputs)

    found = products(lambda x: call(x, arrays))
    assert_close(found, products(dense(key)), **FLOAT64)
    assert all(np.any(x) for x in jax.tree.leaves(found))


EVERY = {
    "entropy": {},
    "expected_distance": {},
    "distance_quantile": {"fraction": 0.5},
    "mass_by_distance": {"edges": (0, 1, 4, 9)},
    "largest_weight": {},
    "top_keys": {"k": 2},
    "mass_on": {"positions": np.arange(13)},
    "column_sums": {},
    "summary": {},
}
"""The public functions, and what each needs beside query and key."""


def every(*arguments, only=EVERY, **options):
    return {name: getattr(diagnostics, name)(*arguments, **EVERY[name], **options) for name in only}


def test_every_figure_is_tested():
    public = {
        name
        for name, x in vars(diagnostics).items()
        if getattr(x, "__module__", None) == diagnostics.__name__ and name[0].islower()
    }
    assert public == set(EVERY)


def random(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def test_vmap_is_a_loop():
    """Over queries and lengths, which leave other tiles empty in every lane."""
    query, key, lengths = random(3, 13, 2, 5), random(17, 1, 5, seed=1), np.array([17, 0, 6])

    def of_lane(query, length):
        options = {"mask": masks.Lengths(key=length), "is_causal": True}
        return every(query, key, only=set(EVERY) - {"summary", "largest_weight"}, **options)

    found = jit(jax.vmap(of_lane))(query, lengths)
    alone = jit(of_lane)
    lanes = [alone(*lane) for lane in zip(query, lengths, strict=True)]
    expected = jax.tree.map(lambda *x: np.stack(x), *lanes)
    assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_gradients_under_vmap_are_a_loop():
    query, key = random(2, 13, 2, 5), random(17, 1, 5, seed=1)

    def loss(query):
        found = every(query, key, only=("mass_by_distance", "largest_weight"))
        return sum(jnp.sum(jnp.sin(x)) for x in found.values())

    found, alone = jit(jax.vmap(jax.grad(loss)))(query), jit(jax.grad(loss))
    assert_close(found, np.stack([alone(x) for x in query]), rtol=1e-5, atol=1e-6)


def test_a_query_that_sees_nothing_and_keys_that_nobody_sees():
    """Figures of the one are 0 (or -1), with gradients 0; NaN in either reaches nothing."""
    query, key = random(7, 2, 3), random(11, 1, 3, seed=1)
    mask = np.ones((7, 11), bool)
    mask[4:] = False
    mask[:, 9:] = False
    bad_query, bad_key = query.copy(), key.copy()
    bad_query[4:], bad_key[9:] = np.nan, np.nan
    options = {
        "mask": mask,
        "only": set(EVERY) - {"mass_on", "largest_weight", "expected_distance", "summary"},
    }

    def loss(query, key):
        found = every(query, key, **options)
        leaves = [x for x in jax.tree.leaves(found) if jnp.issubdtype(x.dtype, jnp.floating)]
        return sum(jnp.sum(jnp.sin(x)) for x in leaves), found

    gradients = jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    (d_query, d_key), found = gradients(bad_query, bad_key)
    assert_close(((d_query, d_key), found), gradients(query, key), rtol=0, atol=0)
    assert not np.any(d_query[4:])
    assert not np.any(d_key[9:])
    assert np.all(found["column_sums"][9:] == 0)
    assert np.all(found["distance_quantile"][4:] == -1)
    assert np.all(found["top_keys"].indices[4:] == -1)
    assert np.all(found["top_keys"].weights[4:] == 0)
    for name in ("entropy", "mass_by_distance"):
        assert np.all(found[name][4:] == 0)
        assert np.any(found[name][:4] != 0)


def test_a_bias_of_minus_infinity_is_a_mask():
    """In value and gradient: a query all of whose keys have it sees nothing."""
    query, key = random(7, 2, 3), random(11, 1, 3, seed=1)
    mask = np.random.default_rng(0).random((7, 11)) < 0.6
    mask[3] = False
    only = ("entropy", "largest_weight", "column_sums")

    def both(query, **options):
        def loss(query):
            found = every(query, key, only=only, **options)
            return jnp.sum(found["entropy"]) + jnp.sum(found["largest_weight"]), found

        return jit(jax.grad(loss, has_aux=True))(query)

    bias = np.where(mask, 0, -np.inf).astype(np.float32)
    assert_close(both(query, bias=bias), both(query, mask=mask), rtol=1e-6, atol=1e-6)


def test_ties():
    """Keys of equal weight: the first is the first, and half of the weight is half of the keys.

    In a causal window every row of tiles has its full ones visited before its mixed ones.
    """
    query, key = np.zeros((13, 1, 3), np.float32), np.zeros((13, 1, 3), np.float32)
    only = ("top_keys", "distance_quantile", "largest_weight")
    found = jit(lambda *x: every(*x, local_window_size=(9, 0), only=only))(query, key)
    first = np.maximum(np.arange(13) - 9, 0)
    second = np.where(np.arange(13) > 0, first + 1, -1)
    np.testing.assert_array_equal(found["top_keys"].indices[:, 0], np.stack([first, second], -1))
    count = np.minimum(np.arange(13) + 1, 10)
    np.testing.assert_allclose(found["largest_weight"][:, 0], 1 / count, rtol=1e-6)
    np.testing.assert_array_equal(found["distance_quantile"][:, 0], -(-count // 2) - 1)


def test_all_of_the_weight_lies_within_the_greatest_distance():
    """At every length, whatever the rounding of sums of weights that should be 1."""
    for num_keys in (1, 2, 9, 65):
        query, key = random(3, 1, 4), random(num_keys, 1, 4, seed=1)
        whole = jit(functools.partial(diagnostics.distance_quantile, fraction=1))(query, key)
        expected = np.maximum(np.arange(3), num_keys - 1 - np.arange(3))
        np.testing.assert_array_equal(whole[:, 0], expected)


def test_averages_are_over_queries_that_see_something():
    query, key, lengths = random(2, 13, 4, 5), random(2, 17, 2, 5, seed=1), np.array([9, 0])
    only = ("entropy", "mass_by_distance", "distance_quantile")

    def both(query, key):
        options = {"query_seq_lengths": lengths, "is_causal": True}
        each, average = (every(query, key, only=only, average=a, **options) for a in (False, True))
        return each, average, diagnostics.summary(query, key, **options)

    each, average, summary = jit(both)(query, key)
    for name, x in each.items():
        expected = np.stack([np.mean(x[0, :9], axis=0), np.zeros(x.shape[2:])])
        np.testing.assert_allclose(average[name], expected, err_msg=name, rtol=1e-5)
    np.testing.assert_allclose(summary["entropy"], average["entropy"], rtol=1e-6)
    assert sorted(summary) == ["entropy", "expected_distance", "largest_weight"]


def test_a_nan_that_is_attended_shows():
    """It is not taken for a key that is masked, nor its queries for queries that see nothing."""
    query, key = random(2, 1, 3), random(1, 1, 3)
    key[0] = np.nan
    only = ("entropy", "mass_by_distance", "top_keys", "column_sums", "summary")
    found = jit(lambda *x: every(*x, only=only))(query, np.repeat(key, 2, axis=0))
    for x in jax.tree.leaves(found):
        assert np.all(np.isnan(x)) or x.dtype == np.int32


def test_positions_may_be_for_all_or_for_each():
    query, key = random(2, 5, 2, 3), random(2, 7, 1, 3, seed=1)
    mass_on = functools.partial(diagnostics.mass_on, query, key)
    at = np.array([3, -1, 0, 6, 2])
    p = np.asarray(attn.attention_weights(query, key))
    expected = p[:, :, np.arange(5), at].swapaxes(1, 2)
    expected[:, 1] = 0
    for positions in (at, list(at), np.stack([at, at]), np.stack([at, at])[..., None]):
        np.testing.assert_allclose(mass_on(positions=positions), expected, rtol=1e-5)
    twice = np.stack([np.stack([at, at], axis=-1)] * 2)
    np.testing.assert_allclose(mass_on(positions=twice), 2 * expected, rtol=1e-5)


def test_dtypes():
    def dtypes(dtype):
        x = jax.ShapeDtypeStruct((13, 2, 3), dtype)
        return {str(x.dtype) for x in jax.tree.leaves(jax.eval_shape(every, x, x))}

    with jax.enable_x64(True):
        assert dtypes("float64") == {"float64", "int32"}
        assert dtypes("bfloat16") == dtypes("float32") == {"float32", "int32"}


def test_a_call_outside_of_jit_is_compiled_once():
    query, key = random(3, 2, 3), random(4, 1, 3)
    sizes = []
    for _ in range(2):
        diagnostics.entropy(query, key, is_causal=True)
        diagnostics.mass_by_distance(query, key, edges=np.arange(3) + len(sizes))
        sizes.append(sums.evaluated._cache_size())
    assert sizes[0] == sizes[1]


FEW, MANY = 2048, 4096


def growth(program):
    """Returns how many times the temporary bytes twice the tokens take."""

    def bytes_of(num_tokens):
        x = jax.ShapeDtypeStruct((num_tokens, 2, 16), jnp.float32)
        lowered = jax.jit(program, compiler_options=quick_to_compile()).lower(x, x)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    return bytes_of(MANY) / bytes_of(FEW)


def at(num_tokens):
    return {"positions": np.arange(num_tokens)}


@pytest.mark.parametrize("name", EVERY)
def test_memory_is_linear(monkeypatch, name):
    monkeypatch.setattr(sums, "SIDES", None)
    assert growth(functools.partial(_figure, name)) <= MANY / FEW


def _figure(name, query, key):
    more = EVERY[name] if name != "mass_on" else at(query.shape[0])
    return getattr(diagnostics, name)(query, key, is_causal=True, **more)


@pytest.mark.parametrize("name", ["entropy", "mass_by_distance", "top_keys", "column_sums"])
def test_memory_of_gradients_is_linear(monkeypatch, name):
    monkeypatch.setattr(sums, "SIDES", None)

    def loss(query, key):
        leaves = jax.tree.leaves(_figure(name, query, key))
        return sum(jnp.sum(jnp.sin(x)) for x in leaves if jnp.issubdtype(x.dtype, jnp.floating))

    assert growth(jax.grad(loss, argnums=(0, 1))) <= MANY / FEW


def test_memory_of_a_figure_of_the_map_is_quadratic():
    """So that the laws above are known to be able to fail."""

    def largest(query, key):
        return jnp.max(attn.attention_weights(query, key), axis=-1)

    assert growth(largest) > 0.9 * (MANY / FEW) ** 2


BATCHED = (2, 13, 2, 3)
WRONG = {
    "query": ("entropy", {"query": np.zeros((3, 2), np.float32)}, ValueError, "query has shape"),
    "key": ("column_sums", {"key": random(2, 5, 3, 3)}, ValueError, "divides the N = 2"),
    "bias": ("summary", {"bias": np.zeros((3,), np.float32)}, ValueError, "bias has shape"),
    "alignment": ("entropy", {"alignment": "left"}, ValueError, "alignment is 'left'"),
    "dropout": ("entropy", {"dropout_rate": 0.5}, TypeError, "dropout_rate is no option"),
    "edges fall": ("mass_by_distance", {"edges": [0, 2, 1]}, ValueError, "two or more increasing"),
    "edges repeat": ("mass_by_distance", {"edges": [0, 1, 1]}, ValueError, "increasing"),
    "edges are NaN": ("mass_by_distance", {"edges": [0, np.nan]}, ValueError, "increasing"),
    "one edge": ("mass_by_distance", {"edges": [0]}, ValueError, "two or more"),
    "edges of two axes": ("mass_by_distance", {"edges": [[0, 1]]}, ValueError, "two or more"),
    "edges are text": ("mass_by_distance", {"edges": "01"}, TypeError, "real numbers"),
    "fraction of 0": ("distance_quantile", {"fraction": 0}, ValueError, "fraction is 0"),
    "fraction above 1": ("distance_quantile", {"fraction": 1.5}, ValueError, r"in \(0, 1\]"),
    "fraction is NaN": ("distance_quantile", {"fraction": np.nan}, ValueError, "fraction is nan"),
    "fraction is text": ("distance_quantile", {"fraction": "1"}, TypeError, "fraction is a str"),
    "no keys": ("top_keys", {"k": 0}, ValueError, "k is 0; expected from 1 to the S = 13"),
    "too many keys": ("top_keys", {"k": 14}, ValueError, "k is 14"),
    "half a key": ("top_keys", {"k": 1.5}, TypeError, "k is a float"),
    "positions of S": ("mass_on", {"positions": np.arange(13) + 1}, ValueError, "holds 13"),
    "positions of 12": ("mass_on", {"positions": np.arange(12)}, ValueError, r"shape \(12,\)"),
    "positions of heads": (
        "mass_on",
        {"positions": np.zeros((2, 2, 13, 1), int)},
        ValueError,
        r"\[\*B, T, W\] = \(2, 13, 'W'\)",
    ),
    "float positions": ("mass_on", {"positions": np.zeros(13)}, TypeError, "dtype float"),
    "no positions": ("mass_on", {"positions": None}, TypeError, "positions is a NoneType"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments_are_named(wrong):
    name, arguments, error, message = WRONG[wrong]
    given = {"query": random(*BATCHED), "key": random(*BATCHED), **EVERY[name], **arguments}
    with pytest.raises(error, match=message):
        getattr(diagnostics, name)(**given)


def test_traced_edges_are_refused():
    x = random(3, 1, 2)
    with pytest.raises(TypeError, match="edges is traced"):
        jax.jit(lambda e: diagnostics.mass_by_distance(x, x, edges=e))(np.arange(3))
