"""Kernels for GPU, without one: lowered for CUDA on this machine, and simulated on it.

What they compute, the conformance suite compares, interpreted; on a GPU, the check of a device does
(``benchmarks.device_check``).
"""

import functools
import importlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax._src.pallas.mosaic_gpu.interpret.gpu_callbacks import get_races
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

import attn
from attn import kernels, masks, scores
from attn.arguments import resolve
from attn.indices import Indices
from attn.kernels.gpu import backward, forward, operations, walk
from attn.overrides import KERNELS
from attn.plan import plan
from attn.spread import shares_of
from attn.tiles import OF_KERNELS, TileSizes
from tests.compilers import lines_of, needs_gpu_compiler

B, T, S, N, K, H, V = 2, 384, 640, 4, 2, 64, 128
RNG = np.random.default_rng(0)
IDS = [jnp.asarray(np.sort(RNG.integers(0, 4, (B, n)))) for n in (T, S)]


def arrays(dtype=jnp.bfloat16, *, width=H, value_width=V, lengths=(T, S)):
    shapes = (lengths[0], N, width), (lengths[1], K, width), (lengths[1], K, value_width)
    return [jnp.asarray(RNG.normal(size=(B, *shape)), dtype) for shape in shapes]


def decayed(score, at, params):
    return jnp.tanh(score) * params["a"][at.head] - params["b"] * jnp.abs(at.query - at.key)


NARROW = "bfloat16", "float16"


def every_operation(s, at, _):
    """All that is said to be there, on floats, integers and bools."""
    i, j = at.query + 0 * at.key, at.key + 0 * at.query
    u, v = jnp.float32(0.5) * s, lax.square(s) + 1
    is_less, size = s < at.key, jnp.abs(s)
    floats = [lax.exp2(s), lax.log(v), lax.logistic(s), lax.rsqrt(v), lax.cos(s), lax.sin(s)]
    floats += [lax.max(s, u), lax.min(s, u), s / v, lax.clamp(-1.0, s, 1.0), lax.tanh(u)]
    floats += [lax.exp(u), lax.sign(s), -s, lax.round(s), lax.atan2(s, v), lax.erf(s)]
    floats += [lax.rem(s, v), size**u, *(s.astype(x).astype(s.dtype) for x in NARROW)]
    bools = [~is_less, is_less ^ (i > j), (s >= u) | (i >= j), (s > u) & (i <= 2 * j), i == 2 * j]
    bools += [(s != u) ^ (s <= u), i != j, (s == u) | (i < j), s.astype(jnp.int32).astype(bool)]
    integers = [i & 3, i | j, i ^ j, ~i, i << 2, lax.shift_right_logical(i, 1), lax.div(i, j + 1)]
    integers += [lax.rem(i, j + 1), lax.max(i, j), lax.min(i, 2 * j), jnp.sign(i - j), -i, i**2]
    unsigned = [x.astype(jnp.uint32) for x in integers]
    unsigned += [unsigned[0] ^ unsigned[1], unsigned[1] >> 3, unsigned[0] // (unsigned[1] + 1)]
    more = (jnp.where(x, s, -s) for x in bools)
    return sum([*floats, *more, *(x.astype(s.dtype) for x in (*integers, *unsigned))])


CALLS = {
    "plain": {},
    "causal, odd": {"is_causal": True, "lengths": (200, 333)},
    "traced segments": {"segments": IDS},
    "window or prefix, lengths": {
        "mask": masks.Window(40, 3) | masks.Prefix(20),
        "key_value_seq_lengths": np.array([600, 17]),
    },
    "a mask of one's own": {"mask": masks.Where(lambda at: (at.query * 3 + at.key) % 5 != 0)},
    "a score of one's own": {
        "score": decayed,
        "score_params": {"a": jnp.arange(1.0, N + 1), "b": jnp.float32(0.1)},
    },
    "ALiBi, soft cap": {
        "score": scores.Chain(scores.ALiBi(np.full(N, 0.1, np.float32)), scores.SoftCap(20.0))
    },
    "bias, dense mask": {
        "bias": np.ones((1, N, T, S), np.float32),
        "mask": RNG.random((T, S)) > 0.5,
    },
    "96 wide": {"width": 96, "value_width": 192},
    "256 wide": {"width": 256, "value_width": 256},
    "float16": {"dtype": jnp.float16},
    "float32": {"dtype": jnp.float32},
    "a bias of distances": {"score": scores.RelativeBias(jnp.zeros((8, N)))},
    "dropout": {"dropout_rate": 0.1, "dropout_rng": jax.random.key(0)},
    "every operation": {"score": every_operation},
    "what it has not, by what it has": {
        "score": lambda s, at, _: jnp.sqrt(s * s + 1) - jnp.log1p(jnp.abs(at.query - at.key))
    },
}


def lowered(implementation, *, segments=None, bias=None, score_params=None, **options):
    """The text of a program for CUDA of output, log-sum-exp and gradients."""
    of_arrays = {
        k: options.pop(k) for k in ("dtype", "width", "value_width", "lengths") if k in options
    }
    given = {"segments": segments, "bias": bias, "score_params": score_params}

    def loss(arrays, given):
        segments = given.pop("segments")
        more = {k: x for k, x in given.items() if x is not None}
        if segments is not None:
            more["mask"] = masks.Segments(*segments)
        output, lse = attn.dot_product_attention(
            *arrays, **options, **more, implementation=implementation, return_residual=True
        )
        return jnp.sum(output.astype(jnp.float32)) + jnp.sum(jnp.where(lse > -9, lse, 0))

    gradient = jax.jit(jax.value_and_grad(loss))
    traced = gradient.trace(arrays(**of_arrays), dict(given))
    return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("name", CALLS)
def test_it_is_lowered_for_cuda(name):
    text = lowered("fused", **CALLS[name])
    found = re.findall(r"custom_call @mosaic_gpu\S*", text)
    assert len(found) == (4 if name in ("96 wide", "256 wide", "a bias of distances") else 3)
    if "bias" not in name:
        sizes = "|".join(f"{t}x{s}" for t in (T, S) for s in (T, S) if (t, s) != (T, T))
        assert not re.search(rf"tensor<(\d+x)*({sizes})x", text), "nothing of T x S"


def test_where_nothing_is_named_loops_over_tiles_run_unless_it_is_for_a_hopper():
    assert "mosaic_gpu" not in lowered(None)
    with attn.compiled_for("gpu"):
        assert "mosaic_gpu" not in lowered(None)
    with attn.compiled_for("gpu", "9.0"):
        assert "mosaic_gpu" in lowered(None)
    with attn.compiled_for("gpu", "8.0"):
        assert "mosaic_gpu" not in lowered(None)
        with pytest.raises(
            ValueError, match=r"its products are of compute capability 9.0; this is 8.0"
        ):
            lowered("fused")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 320, "value_width": 64}, "its heads are 320 wide, more than 256"),
        ({"dtype": jnp.float32, "width": 256, "value_width": 256}, "shared memory, in 3 parts"),
        (
            {"score": lambda s, at, _: jax.lax.lgamma(s)},
            "has what a kernel has not: digamma, lgamma",
        ),
    ],
)
def test_what_it_cannot_take_is_said(options, message):
    with pytest.raises(ValueError, match=message):
        lowered("fused", **options)


OF_PAIRS = {
    "a cap that is given": lambda s, at, p: p[0] * jnp.tanh(s / p[0]),
    "powers": lambda s, at, p: (
        s**3 + (2 + s * s) ** -1 - jnp.abs(at.query - at.key) ** (0.5 * p[0]) + jnp.floor(s)
    ),
    "logarithms": lambda s, at, p: jnp.log1p(jnp.abs(s)) + jnp.expm1(-s * s) + jnp.sqrt(1 + s * s),
    "signs": lambda s, at, p: jnp.sign(s) - jnp.abs(s) + jnp.sign(at.query - at.key),
    "integers": lambda s, at, p: s + (at.query + at.key) // 7 % 3 * p[0],
    "conversions": lambda s, at, p: jnp.where((at.query - at.key).astype(bool), s, 2 * s),
    "derivatives of their own": lambda s, at, p: jax.nn.relu6(s) + jax.nn.softplus(p[0] * s),
    "offsets": lambda s, at, p: s + p[jnp.clip(at.query - at.key, 0, N - 1)],
    "remainders": lambda s, at, p: s + s % 2.0,
    "half": lambda s, at, p: s.astype(jnp.bfloat16).astype(jnp.float32) * p[0],
    "nothing of the score": lambda s, at, p: jnp.zeros_like(s),
    "nothing but of queries": lambda s, at, p: jnp.zeros_like(s) + p[0] * at.query,
    "nothing but of keys": lambda s, at, p: jnp.zeros_like(s) + p[0] * at.key,
}
NOT_OF_PAIRS = {
    "the gamma function": lambda s, at, p: jax.lax.lgamma(s),
    "small integers": lambda s, at, p: (
        s + ((at.query % 100).astype(jnp.int8) > (at.key % 99).astype(jnp.int8))
    ),
}


@pytest.mark.parametrize("name", [*OF_PAIRS, *NOT_OF_PAIRS])
def test_a_score_of_ones_own_is_lowered_or_refused(name):
    call = {"score": (OF_PAIRS | NOT_OF_PAIRS)[name], "is_causal": True}
    call["score_params"] = jnp.arange(1.0, N + 1)
    with attn.compiled_for("gpu", "9.0"):
        assert ("mosaic_gpu" in lowered(None, **call)) == (name in OF_PAIRS)
        if name in NOT_OF_PAIRS:
            with pytest.raises(ValueError, match="has what a kernel has not"):
                lowered("fused", **call)


def test_every_operation_is_among_those_that_are_lowered():
    tile = jax.ShapeDtypeStruct((8, 8), "float32")
    at = Indices((), jnp.int32(0), jnp.arange(8)[:, None], jnp.arange(8))
    text = str(jax.make_jaxpr(lambda s: every_operation(s, at, None))(tile))
    assert set(re.findall(r"= (\w+)", text)) >= operations.HAS


@pytest.mark.parametrize("mapped", ["all", "keys and their ids", "queries, twice"])
def test_vmap_adds_lanes(mapped, monkeypatch):
    """Lanes of the kernel, of lists of tiles that differ by lane too."""
    monkeypatch.setitem(KERNELS["fused"], "cpu", {"kernels": "gpu", "interpret": True})
    shapes = (2, 19, N, 8), (2, 23, K, 8), (2, 23, K, 8)
    query, key, value = (jnp.asarray(RNG.normal(size=x), jnp.float32) for x in shapes)
    ids = [jnp.asarray(np.sort(RNG.integers(0, 3, (2, n)))) for n in (19, 23)]

    def attend(implementation, query, key, value, *ids):
        mask = masks.Segments(*ids) & masks.Causal()
        attention = functools.partial(
            attn.dot_product_attention, mask=mask, implementation=implementation
        )
        loss = lambda *x: jnp.sum(attention(*x) ** 2)  # noqa: E731
        return jax.value_and_grad(loss, argnums=(0, 1, 2))(query, key, value)

    def both(implementation):
        one = functools.partial(attend, implementation)
        if mapped == "all":
            return jax.vmap(one)(query, key, value, *ids)
        if mapped == "keys and their ids":
            some = jax.vmap(one, (None, 0, None, None, 0))
            return some(query[0], key, value[0], ids[0][0], ids[1])
        twice = jax.vmap(jax.vmap(one), (0, None, None, None, None))
        return twice(jnp.stack([query, 2 * query]), key, value, *ids)

    found, expected = both("fused"), both("blockwise")
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, found, expected)


OF_FEW = {
    "all keys": {},
    "all keys, in full tiles": {},
    "causal, at the end": {"is_causal": True, "alignment": "end"},
    "none, and the first": {"key_value_seq_lengths": np.array([0, 1])},
    "a window": {"mask": masks.Window(300, 300, offset=2000)},
    "segments": {"mask": masks.Segments(np.arange(3)[None] % 2, np.arange(4100)[None] // 900 % 3)},
    "a score of one's own": {
        "score": decayed,
        "score_params": {"a": jnp.arange(1.0, N + 1), "b": jnp.float32(0.01)},
    },
}


@pytest.fixture
def taken(monkeypatch):
    """Into how many the keys were split, call by call, on a GPU that is simulated."""
    monkeypatch.setitem(KERNELS["fused"], "cpu", {"kernels": "gpu", "interpret": True})
    found, module = [], importlib.import_module("attn.kernels.gpu.forward")
    monkeypatch.setattr(
        module, "num_splits_of", lambda *x: found.append(walk.num_splits_of(*x)) or found[-1]
    )
    return found


@pytest.mark.parametrize("name", OF_FEW)
def test_few_queries_have_their_keys_split(name, taken):
    """Their results joined, with splits that see none, and one that has what is not finite."""
    lengths = 128 if "full" in name else 3, 4100
    query, key, value = arrays(jnp.float32, width=8, value_width=16, lengths=lengths)
    key = key.at[0, 4099, 0].set(jnp.nan)

    def of(implementation):
        attend = functools.partial(
            attn.dot_product_attention,
            implementation=implementation,
            return_residual=True,
            **OF_FEW[name],
        )
        tangents = jax.tree.map(jnp.cos, (query, key, jnp.ones_like(value)))
        return attend(query, key, value), jax.jvp(attend, (query, key, value), tangents)

    found, expected = of("fused"), of("reference")
    assert max(taken) > 4
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, found, expected)


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
def test_those_that_vmap_adds_are_split_as_those_of_a_batch(axes, taken):
    def attend(query, key, implementation="fused"):
        return attn.dot_product_attention(
            query, key, key, implementation=implementation, return_residual=True
        )

    rows = jnp.asarray(RNG.normal(size=(3, 5, 2, N, 8)), jnp.float32)
    keys = jnp.asarray(RNG.normal(size=(3, 5, 4100, K, 8)), jnp.float32)
    rows, keys = (x if axis == 0 else x[0] for x, axis in zip((rows, keys), axes, strict=True))
    found = jax.vmap(jax.vmap(attend), axes)(rows, keys)
    rows, keys = (jnp.broadcast_to(x, (3, *x.shape[-4:])) for x in (rows, keys))
    assert set(taken) == {walk.PROCESSORS // (3 * 5 * N)}
    for exact in (attend(rows, keys), attend(rows, keys, "reference")):
        for x, y in zip(found, exact, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("which", ["query", "key", "value", "cotangent"])
@pytest.mark.parametrize("reach", [None, 3])
def test_what_is_not_finite_reaches_what_depends_on_it_alone(reach, which, bad, monkeypatch):
    monkeypatch.setitem(KERNELS["fused"], "cpu", {"kernels": "gpu", "interpret": True})
    monkeypatch.setattr("attn.kernels.OF_KERNELS", {"gpu": TileSizes(5, 4)})
    length, mask = 18, masks.Causal() if reach is None else masks.Window(reach, 0)
    allowed = np.tri(length, dtype=bool)
    if reach is not None:
        allowed &= ~np.tri(length, k=-reach - 1, dtype=bool)
    row, place, head = 1, 6, {"query": 3, "cotangent": 3}.get(which, 1)
    shapes = {"query": N, "key": K, "value": K, "cotangent": N}
    given = {name: np.asarray(RNG.normal(size=(2, length, n, 8))) for name, n in shapes.items()}
    given[which][row, place, head, 5] = bad
    *inputs, cotangent = (jnp.asarray(x, jnp.float32) for x in given.values())
    attend = functools.partial(attn.dot_product_attention, mask=mask, implementation="fused")
    output, pull = jax.vjp(attend, *inputs)
    found = [np.isnan(np.asarray(x)) for x in (output, *pull(cotangent))]
    queries, keys = np.zeros((2, length, N), bool), np.zeros((2, length, K), bool)
    if which in ("query", "cotangent"):
        queries[row, place, head] = True
    else:
        keys[row, place, head] = True
        queries |= np.einsum("ts,bsn->btn", allowed, np.repeat(keys, N // K, axis=-1))
    of_groups = queries.reshape(2, length, K, -1).any(-1)
    of_keys = keys | np.einsum("ts,btn->bsn", allowed, of_groups)
    outputs = np.zeros_like(queries) if which == "cotangent" else queries
    for x, expected in zip(found, (outputs, queries, of_keys, of_keys), strict=True):
        np.testing.assert_array_equal(x, np.broadcast_to(expected[..., None], x.shape))


def first_order(options, *, batch, lengths, dtype, is_forward=False):
    """Output, log-sum-exp and cotangents, or not these, by kernels of whole size, not hardware."""
    rng = np.random.default_rng(1)
    query, key, value = (
        jnp.asarray(rng.normal(size=(batch, n, heads, 64)), dtype)
        for n, heads in zip((*lengths, lengths[1]), (2, 1, 1), strict=True)
    )
    resolved = resolve(query, key, None, None, **options)
    call, context, params = plan(
        query, key, resolved.mask, resolved.score, None, 0.0, OF_KERNELS["gpu"], None, "fused"
    )
    inputs = call.arrange(params, query, key, value, None, resolved.scale)
    taken = kernels.check(call, context, inputs, kernels="gpu", interpret=True)

    @jax.jit
    def both(context, inputs):
        shares = shares_of(call.grid, None)
        output, lse = forward(taken, context, inputs, shares)
        if is_forward:
            return output, lse
        d_output = jnp.cos(jnp.arange(output.size, dtype=jnp.float32)).reshape(output.shape)
        given = lse, d_output, -jnp.sum(d_output * output, axis=-3)
        return output, lse, backward(taken, context, inputs, *given, shares)

    return both(context, inputs)


SIMULATED = {
    "causal": (
        {"is_causal": True},
        {"batch": 1, "lengths": (130, 300), "dtype": jnp.bfloat16},
    ),
    "splits of keys": (
        {"key_value_seq_lengths": np.array([300])},
        {"batch": 1, "lengths": (3, 380), "dtype": jnp.bfloat16, "is_forward": True},
    ),
    "a bias of distances, in two parts": (
        {"is_causal": True, "score": scores.RelativeBias(jnp.ones((8, 2)))},
        {"batch": 1, "lengths": (120, 129), "dtype": jnp.float32},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SIMULATED)
def test_its_threads_wait_for_each_other(name, monkeypatch):
    """Simulated with its barriers and copies, it neither waits for ever nor reads too soon."""
    options, given = SIMULATED[name]
    if name == "splits of keys":
        monkeypatch.setattr(walk, "LEAST_TILES", 1)
    with jax.default_matmul_precision("default"):
        expected = first_order(options, **given)
        params = InterpretGPUParams(detect_races=True)
        walk_of = walk.walk_of
        simulated = lambda *x: walk_of(*x)._replace(simulated=params)  # noqa: E731
        monkeypatch.setattr(walk, "walk_of", simulated)
        found = first_order(options, **given)
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for x, y in pairs:
        if x.dtype != jax.dtypes.float0:
            np.testing.assert_allclose(x, y, rtol=1e-6)
    assert not get_races().races_found


HALF = [
    *("plain", "segments, lengths", "a user's score function", "relative bias", "width 192"),
    *("width 256", "any length", "dense", "a cap that is given", "quotients and signs", "bias"),
    *("long", "relative bias of long rows", "a table of offsets", "derivatives of their own"),
    *("few queries", "inverses", "remainders"),
    *("features of both", "cases, steps", "a bias that is looked up"),
]
SINGLE = ["float32", "float32, 128 wide"]


@pytest.mark.slow
@needs_gpu_compiler
@pytest.mark.parametrize(
    ("precision", "names"),
    [("default", HALF), ("default", SINGLE), ("highest", SINGLE)],
    ids=["half precision", "two parts", "three parts"],
)
def test_the_compiler_takes_them(precision, names):
    """NVIDIA's assembler too, which is what refuses a kernel that cannot run."""
    found = lines_of("-m", "tests.attn.kernels.afar", "h100:1", precision, *names)
    assert [name for name, _, _ in found] == [name for name in names for _ in range(2)]
    for (name, *output), (_, *gradient) in zip(found[::2], found[1::2], strict=True):
        # A bias of distances has one more, and so have heads of which both sums do not fit.
        more = "relative" in name or "offsets" in name or name in ("width 192", "width 256")
        assert (int(output[0]), int(gradient[0])) == (1, 4 if more else 3)
        for size in (int(output[1]), int(gradient[1])):
            if "long" in name:
                assert size < 2**31
            elif name not in ("bias", "dense", "a bias that is looked up"):
                assert size < 2 * 4 * 1024**2 * 4, f"{name}: no map of all pairs"
