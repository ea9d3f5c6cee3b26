"""Score functions against their formulas on whole arrays, which know no tiles.

Each case is a score function and its formula, written over ``xp``: NumPy in float64 for values,
``jax.numpy`` in float64 for gradients.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

import attn
from attn import masks
from attn.indices import tile_indices
from attn.scores import ALiBi, Chain, Function, LogLength, RelativeBias, Score, SoftCap
from tests.attn.test_positions import t5_buckets

BATCH, N, T, S = (2, 5), 3, 11, 13
ROW, COLUMN = np.arange(T)[:, None], np.arange(S)[None, :]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def heads(x):
    return x[:, None, None]


def own(scores, indices, params):
    """A user's function: uses every index, and a tree of parameters."""
    row, column = indices.batch
    place = jnp.sin(1.0 + row + 2 * column + 3 * indices.head)
    distance = (indices.query - 2 * indices.key).astype(scores.dtype)
    gate = params["gate"].astype(scores.dtype)[indices.head]
    return scores * gate + params["rate"].astype(scores.dtype) * distance * place


def own_dense(xp, s, p):
    row, column = np.ogrid[: BATCH[0], : BATCH[1]]
    angle = 1.0 + (row + 2 * column)[..., None, None, None] + 3 * heads(np.arange(N))
    return s * heads(p["gate"]) + p["rate"] * (ROW - 2 * COLUMN) * np.sin(angle)


class Case(NamedTuple):
    make: object
    params: object
    dense: object


SLOPES = np.array([0.5, -0.2, 0.03])
TABLE = normal(8, N, seed=1)
LENGTHS = np.array([[1, 2, 3, 4, 5], [13, 9, 8, 7, 6]])

CASES = {
    "cap": Case(SoftCap, 1.5, lambda xp, s, p: p * xp.tanh(s / p)),
    "cap of each head": Case(
        SoftCap, np.array([0.5, 1.0, 4.0]), lambda xp, s, p: heads(p) * xp.tanh(s / heads(p))
    ),
    "alibi": Case(ALiBi, SLOPES, lambda xp, s, p: s - heads(p) * abs(ROW - COLUMN)),
    "alibi, offset": Case(
        lambda p: ALiBi(p, offset=2), SLOPES, lambda xp, s, p: s - heads(p) * abs(ROW + 2 - COLUMN)
    ),
    "relative": Case(
        lambda p: RelativeBias(p, max_distance=9),
        TABLE,
        lambda xp, s, p: s + xp.moveaxis(p[t5_buckets(COLUMN - ROW, 8, 9, True)], -1, 0),
    ),
    "relative, one way, offset": Case(
        lambda p: RelativeBias(p, bidirectional=False, max_distance=10, offset=2),
        TABLE,
        lambda xp, s, p: s + xp.moveaxis(p[t5_buckets(COLUMN - ROW - 2, 8, 10, False)], -1, 0),
    ),
    "log length": Case(
        LogLength, np.array([0.4, 1.0, -0.3]), lambda xp, s, p: s * heads(p) * np.log(ROW + 1)
    ),
    "log length, offset": Case(
        lambda p: LogLength(p, offset=2), 0.7, lambda xp, s, p: s * p * np.log(ROW + 3)
    ),
    "log length, number": Case(
        lambda p: LogLength(p, num_keys=7), 0.7, lambda xp, s, p: s * p * np.log(7)
    ),
    "log length, numbers": Case(
        lambda p: LogLength(p, num_keys=LENGTHS),
        np.array([0.4, 1.0, -0.3]),
        lambda xp, s, p: s * heads(p) * np.log(LENGTHS)[..., None, None, None],
    ),
    "function": Case(
        lambda p: Function(own, p), {"gate": SLOPES, "rate": np.array(0.3)}, own_dense
    ),
    "chain": Case(
        lambda p: Chain(ALiBi(p["slopes"]), SoftCap(p["cap"])),
        {"slopes": SLOPES, "cap": 2.5},
        lambda xp, s, p: (
            p["cap"] * xp.tanh((s - heads(p["slopes"]) * abs(ROW - COLUMN)) / p["cap"])
        ),
    ),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def on_tile(score, tile, first_query, first_key):
    """Returns the changed scores of a tile that begins there, which may be traced."""
    t, s = tile.shape[-2:]
    queries, keys = first_query + jnp.arange(t), first_key + jnp.arange(s)
    return score(tile, tile_indices(tile.shape[:-3], tile.shape[-3], queries, keys))


def by_tiles(score, scores, t, s):
    """Returns the changed scores of the whole, tile by tile; the last of each side is smaller."""
    rows = [
        [on_tile(score, scores[..., i : i + t, j : j + s], i, j) for j in range(0, S, s)]
        for i in range(0, T, t)
    ]
    return jnp.concatenate([jnp.concatenate(row, -1) for row in rows], -2)


def floats(tree, dtype):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


@pytest.mark.usefixtures("float64")
@cases
def test_is_its_formula_on_the_whole(case):
    scores = normal(*BATCH, N, T, S)
    expected = case.dense(np, scores, case.params)
    actual = jax.jit(on_tile)(case.make(case.params), scores, 0, 0)
    assert actual.dtype == jnp.float64
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)
    assert np.max(np.abs(expected - scores)) > 0.1, "the case changes nothing"


@cases
def test_a_tile_is_a_part_of_the_whole(case):
    """At every place, with a traced place and numbers of queries and keys that it does not know."""
    scores = normal(*BATCH, N, T, S).astype(np.float32)
    expected = case.dense(np, scores.astype(np.float64), case.params)
    score = floats(case.params, jnp.float32)
    tile_of = jax.jit(lambda p, tile, i, j: on_tile(case.make(p), tile, i, j))
    for t, s in ((4, 5), (1, S), (T, 1)):
        for i, j in ((0, 0), (3, 0), (0, 7), (T - t, S - s)):
            i, j = min(i, T - t), min(j, S - s)
            place = (..., slice(i, i + t), slice(j, j + s))
            actual = tile_of(score, scores[place], i, j)
            assert actual.dtype == jnp.float32
            np.testing.assert_allclose(actual, expected[place], rtol=2e-5, atol=2e-5)


@pytest.mark.usefixtures("float64")
@cases
def test_gradients_are_those_of_the_formula(case):
    """To parameters and scores, summed over tiles, some of them one query or key wide."""
    scores, weights = normal(*BATCH, N, T, S), normal(*BATCH, N, T, S, seed=2)
    params = floats(case.params, jnp.float64)

    def tiled(params, scores):
        return jnp.vdot(weights, by_tiles(case.make(params), scores, 8, 12) ** 2)

    def dense(params, scores):
        return jnp.vdot(weights, case.dense(jnp, scores, params) ** 2)

    actual = jax.jit(jax.grad(tiled, argnums=(0, 1)))(params, scores)
    expected = jax.jit(jax.grad(dense, argnums=(0, 1)))(params, scores)
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-10, atol=1e-10), actual, expected
    )
    # One bucket of a table with two sides is never used: 0 positions after the query.
    used = [np.mean(np.abs(x) > 1e-6) for x in jax.tree.leaves(expected[0])]
    assert min(used) >= 7 / 8, "the formula does not depend on its parameters"


@pytest.mark.usefixtures("float64")
@cases
def test_forward_mode_and_transposition(case):
    """A tangent is the finite difference, and its linear transposition the gradient."""
    scores, weights = normal(*BATCH, N, 4, 5), normal(*BATCH, N, 4, 5, seed=2)
    primals = floats(case.params, jnp.float64), jnp.asarray(scores)
    rng = np.random.default_rng(3)
    tangents = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), primals)

    def f(params, scores):
        return on_tile(case.make(params), scores, 3, 2)

    @jax.jit
    def both(primals, tangents):
        step = jax.tree.map(lambda x: 1e-6 * x, tangents)
        above = f(*jax.tree.map(jnp.add, primals, step))
        below = f(*jax.tree.map(jnp.subtract, primals, step))

        def tangent(tangents):
            return jax.jvp(f, primals, tangents)[1]

        (transposed,) = jax.linear_transpose(tangent, tangents)(jnp.asarray(weights))
        return tangent(tangents), (above - below) / 2e-6, transposed

    tangent, difference, transposed = both(primals, tangents)
    np.testing.assert_allclose(tangent, difference, atol=1e-7)
    products = jax.tree.map(np.vdot, transposed, tangents)
    np.testing.assert_allclose(sum(jax.tree.leaves(products)), np.vdot(weights, tangent))


@cases
def test_parameters_can_be_vmapped_and_change_without_a_new_trace(case):
    scores = jnp.asarray(normal(*BATCH, N, 4, 5), jnp.float32)
    params = floats(case.params, jnp.float32)
    several = [jax.tree.map(lambda x, k=k: x * k, params) for k in (1.0, 2.0, 3.0)]
    traces = 0

    @jax.jit
    def f(params, scores):
        nonlocal traces
        traces += 1
        return on_tile(case.make(params), scores, 2, 1)

    one_by_one = jnp.stack([f(params, scores) for params in several])
    assert traces == 1
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *several)
    together = jax.jit(jax.vmap(f, in_axes=(0, None)))(stacked, scores)
    np.testing.assert_allclose(together, one_by_one, rtol=1e-5, atol=1e-5)


@cases
def test_is_a_pytree_whose_leaves_are_anything(case):
    score = case.make(case.params)
    leaves, structure = jax.tree.flatten(score)
    again = jax.tree.unflatten(structure, [object() for _ in leaves])
    assert jax.tree.structure(again) == structure == jax.tree.structure(score)
    assert jax.tree.leaves(jax.tree.map(lambda _: None, score)) == []
    assert {id(x) for x in leaves} >= {id(x) for x in jax.tree.leaves(case.params)}
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), score, case.make(case.params))


def test_axes_of_a_vmap_are_written_as_a_score():
    scores = jnp.zeros((N, 4, 5))
    stacked = Chain(ALiBi(jnp.ones((7, N)), offset=1), SoftCap(jnp.float32(3)))
    axes = Chain(ALiBi(0, offset=1), SoftCap(None))
    assert jax.vmap(lambda f: on_tile(f, scores, 0, 0), in_axes=(axes,))(stacked).shape == (
        *(7, N),
        *(4, 5),
    )
    assert jax.vmap(lambda f: f.factor * 2, in_axes=(LogLength(0),))(LogLength(jnp.ones(7))).shape


def test_static_fields_are_of_the_structure():
    table = jnp.asarray(TABLE)
    bias = RelativeBias(table)
    for field, value in (("bidirectional", False), ("max_distance", 64), ("offset", 1)):
        other = dataclasses.replace(bias, **{field: value})
        assert jax.tree.structure(other) != jax.tree.structure(bias)
    assert jax.tree.structure(Function(own)) == jax.tree.structure(Function(own))
    assert jax.tree.structure(Function(own)) != jax.tree.structure(Function(lambda s, i, p: s))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@cases
def test_a_parameter_does_not_change_the_dtype_of_the_scores(case, dtype):
    with jax.enable_x64(True):
        params = floats(case.params, dtype)
        indices = tile_indices(BATCH, N, jnp.arange(2), jnp.arange(3))
        for scores in (jnp.float32, jnp.float64):
            tile = jax.ShapeDtypeStruct((*BATCH, N, 2, 3), scores)
            changed = jax.eval_shape(lambda p, x: case.make(p)(x, indices), params, tile)
            assert changed.dtype == scores
            case.make(params).check(BATCH, N, T, S, scores)


def test_low_precision_parameters_are_cast_before_they_are_used():
    """A distance of 1001 is 1000 in bfloat16."""
    tile = jnp.zeros((N, 1, 1), jnp.float32)
    actual = on_tile(ALiBi(jnp.ones(N, jnp.bfloat16)), tile, 1001, 0)
    np.testing.assert_array_equal(actual, -1001.0)


@pytest.mark.parametrize("name", ["cap of each head", "alibi", "relative", "log length"])
def test_heads_of_a_tile_have_their_own_parameters(name):
    """A tile may hold some of the heads only, as where heads are spread over devices."""
    score = CASES[name].make(floats(CASES[name].params, jnp.float32))

    @jax.jit
    def whole_and_part(score):
        indices = tile_indices((), N, jnp.arange(4), jnp.arange(5))
        part = indices._replace(head=indices.head[1:])
        return score(jnp.ones((N, 4, 5)), indices), score(jnp.ones((N - 1, 4, 5)), part)

    whole, part = whole_and_part(score)
    np.testing.assert_allclose(part, whole[1:], rtol=1e-6)


def test_the_gradient_of_a_table_scatters_diagonals_not_pairs():
    t, s = 64, 128
    tile = jax.ShapeDtypeStruct((*BATCH, N, t, s), jnp.float32)

    def gradient(table, tile):
        _, transposed = jax.vjp(lambda p: on_tile(RelativeBias(p), tile, 5, 7), table)
        return transposed(tile)

    jaxpr = jax.make_jaxpr(gradient)(jnp.zeros((32, N)), tile)
    scattered = [
        x.invars[2].aval.size for x in equations(jaxpr.jaxpr) if "scatter" in x.primitive.name
    ]
    assert scattered == [N * (t + s - 1)]


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def test_a_query_with_one_key_or_none_has_a_score_of_zero_and_finite_gradients():
    tile = jnp.asarray(normal(N, 4, 5), jnp.float32)

    def total(factor, tile):
        return jnp.sum(on_tile(LogLength(factor, offset=-2), tile, 0, 0))

    changed = on_tile(LogLength(jnp.ones(N), offset=-2), tile, 0, 0)
    np.testing.assert_array_equal(changed[:, :3], 0)
    assert np.all(changed[:, 3] != 0)
    gradients = jax.grad(total, argnums=(0, 1))(jnp.ones(N), tile)
    assert all(np.all(np.isfinite(x)) for x in gradients)


def test_log_length_leaves_rows_of_its_reference_length():
    tile = jnp.asarray(normal(N, 4, 5), jnp.float32)
    score = LogLength(1 / math.log(700), num_keys=700)
    np.testing.assert_allclose(on_tile(score, tile, 0, 0), tile, rtol=1e-6)


def test_a_chain_is_applied_in_order():
    tile = jnp.asarray(normal(N, 4, 5), jnp.float32)
    bend, lean = SoftCap(0.7), ALiBi(jnp.asarray(SLOPES, jnp.float32))
    first = on_tile(Chain(bend, lean), tile, 3, 0)
    np.testing.assert_allclose(first, on_tile(lean, on_tile(bend, tile, 3, 0), 3, 0), rtol=1e-6)
    assert np.max(np.abs(first - on_tile(Chain(lean, bend), tile, 3, 0))) > 0.1
    assert Chain(Chain(bend, lean), bend).functions == (bend, lean, bend)
    np.testing.assert_array_equal(on_tile(Chain(), tile, 3, 0), tile)


def test_a_function_may_close_over_traced_arrays():
    tile = jnp.asarray(normal(N, 4, 5), jnp.float32)

    @jax.jit
    def f(factor):
        score = Function(lambda scores, indices, params: scores * factor)
        score.check((), N, 4, 5, jnp.float32)
        return jnp.sum(on_tile(score, tile, 0, 0))

    np.testing.assert_allclose(jax.grad(f)(2.0), np.sum(tile), rtol=1e-5)


def test_parameters_may_be_numpy_arrays():
    """Which the indices of a tile, traced, could not index."""
    x, slopes = np.ones((5, 3, 4), np.float32), np.arange(3.0, dtype=np.float32)
    by_head = lambda scores, at, slopes: scores * slopes[at.head]  # noqa: E731
    some = lambda at, first: at.key < first[at.head]  # noqa: E731
    mask = masks.Where(some, np.array([1, 2, 3]))
    options = {"score": by_head, "score_params": slopes, "mask": mask}
    scores = attn.attention_scores(x, x, **options)
    seen = np.arange(5) < np.array([1, 2, 3])[:, None, None]
    expected = np.where(seen, 2 * slopes[:, None, None], -np.inf)
    np.testing.assert_allclose(scores, np.broadcast_to(expected, scores.shape))
    output = attn.dot_product_attention(x, x, x, **options)
    np.testing.assert_allclose(output, x, rtol=1e-6)


def test_one_function_twice_is_read_twice():
    """Though it is the same object, and nothing that JAX can see has changed."""
    shift = [np.zeros(3, np.float32)]
    score = Function(lambda scores, at, _: scores + jnp.asarray(shift[0])[at.key])
    x = np.arange(12, dtype=np.float32).reshape(3, 1, 4) / 12
    before = attn.dot_product_attention(x, x, x, score=score)
    shift[0] = np.array([0, 0, 50], np.float32)
    after = attn.dot_product_attention(x, x, x, score=score)
    np.testing.assert_allclose(after, np.broadcast_to(x[2], x.shape), rtol=1e-5)
    assert np.max(np.abs(after - before)) > 0.1


def test_repr():
    slopes = jnp.ones(8)
    assert repr(SoftCap(30.0)) == "SoftCap(cap=30.0)"
    assert repr(SoftCap(np.float32(30))) == "SoftCap(cap=30.0)"
    assert repr(ALiBi(slopes, offset=2)) == "ALiBi(slopes=float32[8], offset=2)"
    assert repr(RelativeBias(jnp.ones((32, 8), jnp.bfloat16))) == (
        "RelativeBias(table=bfloat16[32,8], bidirectional=True, max_distance=128, offset=0)"
    )
    assert repr(LogLength(1.0)) == "LogLength(factor=1.0, num_keys=None, offset=0)"
    function = Function(own, {"gate": slopes, "rate": [0.5, None]})
    assert repr(function) == (
        "Function(function=own, params={'gate': float32[8], 'rate': [0.5, None]})"
    )
    assert repr(Chain(SoftCap(30.0), ALiBi(slopes))) == (
        "Chain(SoftCap(cap=30.0), ALiBi(slopes=float32[8], offset=0))"
    )
    shown = []
    jax.jit(lambda x: shown.append(repr(SoftCap(x))))(1.0)
    assert shown == ["SoftCap(cap=float32[])"]


@cases
def test_check_accepts_what_fits(case):
    case.make(case.params).check(BATCH, N, T, S, jnp.float32)
    traced = jax.jit(lambda p: case.make(p).check(BATCH, N, T, S, jnp.float32))
    traced(floats(case.params, jnp.float32))


def test_check_does_not_look_at_traced_values():
    jax.jit(lambda cap: SoftCap(cap).check((), N, T, S, jnp.float32))(-1.0)
    number = jax.jit(lambda n: LogLength(1.0, num_keys=n).check((), N, T, S, jnp.float32))
    number(0)


def same(scores, indices, params):
    return scores


class Unhashable:
    __hash__ = None

    def __call__(self, scores, indices, params):
        return scores


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


WRONG = [
    (SoftCap(0.0), ValueError, r"SoftCap.cap is 0.0; expected it finite and above 0"),
    (SoftCap(math.inf), ValueError, r"SoftCap.cap is inf; expected it finite"),
    (SoftCap(np.array([1.0, math.nan, 1.0])), ValueError, r"SoftCap.cap is \[ 1. nan  1.\]"),
    (SoftCap(30), TypeError, r"SoftCap.cap is 30; expected of type float, or an array"),
    (SoftCap(ones(2)), ValueError, r"SoftCap.cap has shape \(2,\); expected \(\) or \(3,\)"),
    (SoftCap("1"), TypeError, r"SoftCap.cap is '1'; expected of type float"),
    (ALiBi(ones(4)), ValueError, r"ALiBi.slopes has shape \(4,\); expected \(3,\), one for each"),
    (ALiBi(0.5), ValueError, r"ALiBi.slopes has shape \(\); expected \(3,\)"),
    (ALiBi([0.5] * 3), TypeError, r"ALiBi.slopes is \[0.5, 0.5, 0.5\]; expected of type"),
    (ALiBi(ones(3, dtype=np.int32)), TypeError, r"ALiBi.slopes has dtype int32; .* floating"),
    (RelativeBias(ones(32)), ValueError, r"RelativeBias.table has shape \(32,\); .* \(32, 3\)"),
    (RelativeBias(ones(32, 4)), ValueError, r"RelativeBias.table has shape \(32, 4\); .* \(32, 3"),
    (RelativeBias(ones()), ValueError, r"RelativeBias.table has shape \(\); expected \(32, 3\)"),
    (RelativeBias(ones(9, 3)), ValueError, r"table has shape \(9, 3\): num_buckets is 9; .* even"),
    (RelativeBias(ones(2, 3)), ValueError, r"num_buckets is 2; expected an even number of at lea"),
    (RelativeBias(ones(1, 3), bidirectional=False), ValueError, r"num_buckets is 1; .* at least 2"),
    (RelativeBias(ones(32, 3), max_distance=8), ValueError, r"max_distance is 8; .* more than 8"),
    (RelativeBias(ones(32, 3) > 0), TypeError, r"RelativeBias.table has dtype bool"),
    (LogLength(1), TypeError, r"LogLength.factor is 1; expected of type float"),
    (LogLength(ones(3, 1)), ValueError, r"LogLength.factor has shape \(3, 1\); expected \(\) or"),
    (LogLength(1.0, num_keys=7.0), TypeError, r"LogLength.num_keys is 7.0; expected of type int"),
    (
        LogLength(1.0, num_keys=ones(2, 5)),
        TypeError,
        r"num_keys has dtype float32; .* kind of integer",
    ),
    (LogLength(1.0, num_keys=LENGTHS[0]), ValueError, r"num_keys has shape \(5,\); .* \(2, 5\)"),
    (LogLength(1.0, num_keys=0), ValueError, r"LogLength.num_keys is 0; expected 1 or more"),
    (LogLength(1.0, num_keys=7, offset=1), ValueError, r"LogLength.offset is 1 and num_keys is"),
    (Function(3), TypeError, r"Function.function is 3; expected a function"),
    (
        Function(lambda scores, indices: scores),
        TypeError,
        r"takes \(scores, indices\); expected a function of \(scores, indices, params\)",
    ),
    (Function(Unhashable()), TypeError, r"Function.function is .*; expected it to be hashable"),
    (Function(same, {"a": "b"}), TypeError, r"Function.params holds 'b'; expected arrays"),
    (Function(lambda s, i, p: None), TypeError, r"Function\(.*\) returns None; expected an array"),
    (Function(lambda s, i, p: s[0]), ValueError, r"Function\(.*\) returns shape \(5, 3, 2, 3\)"),
    (Function(lambda s, i, p: s > 0), TypeError, r"Function\(.*\) returns dtype bool for .* float"),
    (Chain(SoftCap(0.0)), ValueError, r"SoftCap.cap is 0.0"),
    (Chain(SoftCap(1.0), same), TypeError, r"Chain.functions holds <function same.*by Function"),
]


@pytest.mark.parametrize(("score", "error", "message"), WRONG, ids=[m for *_, m in WRONG])
def test_check_names_what_is_wrong(score, error, message):
    with pytest.raises(error, match=message):
        score.check(BATCH, N, T, S, jnp.float32)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ALiBi(SLOPES, offset=1.0), r"ALiBi.offset is 1.0; expected an int"),
        (lambda: LogLength(1.0, offset=None), r"LogLength.offset is None; expected an int"),
        (lambda: RelativeBias(TABLE, offset=True), r"RelativeBias.offset is True; expected an int"),
        (lambda: RelativeBias(TABLE, max_distance=9.0), r"RelativeBias.max_distance is 9.0"),
        (lambda: RelativeBias(TABLE, bidirectional=1), r"RelativeBias.bidirectional is 1; .* bool"),
    ],
)
def test_options_are_checked_where_they_are_written(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_a_subclass_is_checked_by_what_it_returns():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True, repr=False)
    class Bias(Score):
        array: jax.Array

        def __call__(self, scores, indices):
            return scores + self.array

    Bias(jnp.ones((N, 1, 1))).check(BATCH, N, T, S, jnp.float32)
    with pytest.raises(
        ValueError, match=r"Bias\(array=.*\) returns shape \(7, 2, 5, 3, 2, 3\) for a"
    ):
        Bias(jnp.ones((7, 1, 1, 1, 1, 1))).check(BATCH, N, T, S, jnp.float32)
