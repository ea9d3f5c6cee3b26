"""What is foretold of a call is what the compiled program takes."""

import collections
import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attn
from attn import masks, scores
from attn.indices import tile_indices
from tests.compilers import lines_of, needs_gpu_compiler, needs_tpu_compiler

WITHIN = 1.5
"""What is promised of the bytes."""


def shape(*sizes, dtype="float32"):
    return jax.ShapeDtypeStruct(sizes, dtype)


SHAPES = {
    "square": (shape(1, 2048, 4, 64),) * 3,
    "long": (shape(1, 8192, 2, 32),) * 3,
    "few keys": (shape(1, 4096, 8, 64), shape(1, 1024, 2, 64), shape(1, 1024, 2, 32)),
    "padded": (shape(2, 1000, 4, 32), shape(2, 3001, 4, 32), shape(2, 3001, 4, 32)),
    "half precision": (shape(1, 8192, 4, 64, dtype="bfloat16"),) * 3,
}


def analysis(function, *x):
    compiled = jax.jit(function).lower(*x).compile()
    return compiled.memory_analysis().temp_size_in_bytes, compiled.cost_analysis()["flops"]


def both_passes(attend, query, key, value):
    shapes = jax.eval_shape(attend, query, key, value)

    def passes(query, key, value, cotangent):
        output, pullback = jax.vjp(attend, query, key, value)
        return output, pullback(cotangent)

    return passes, shape(*shapes.shape, dtype=shapes.dtype)


@pytest.mark.parametrize("named", ["blockwise", "reference"])
@pytest.mark.parametrize(
    "name",
    [x if x in ("few keys", "padded") else pytest.param(x, marks=pytest.mark.slow) for x in SHAPES],
)
@pytest.mark.parametrize("is_causal", [False, True])
def test_bytes(name, is_causal, named):
    options = {"is_causal": is_causal, "implementation": named}

    def attend(*x):
        return attn.dot_product_attention(*x, **options)

    found = attn.explain(*SHAPES[name], **options)
    passes, cotangent = both_passes(attend, *SHAPES[name])
    for cost, (size, _) in (
        (found.forward, analysis(attend, *SHAPES[name])),
        (found.gradient, analysis(passes, *SHAPES[name], cotangent)),
    ):
        assert size / WITHIN <= cost.temporary_bytes <= size * WITHIN


@pytest.mark.parametrize("named", ["blockwise", "reference"])
def test_flops_of_one_tile(named):
    """XLA counts a loop's body once, so what it counts can be compared where there is no loop."""
    x = (shape(2, 256, 4, 64), shape(2, 384, 4, 64), shape(2, 384, 4, 32))

    def attend(*x):
        return attn.dot_product_attention(*x, implementation=named)

    found = attn.explain(*x, implementation=named)
    passes, cotangent = both_passes(attend, *x)
    for cost, (_, flops) in (
        (found.forward, analysis(attend, *x)),
        (found.gradient, analysis(passes, *x, cotangent)),
    ):
        # What is elementwise is in XLA's count alone.
        assert flops / 1.15 <= cost.flops <= flops


MASKS = {
    "causal": masks.Causal(),
    "window": masks.Window(700, 0),
    "segments": masks.Segments(np.repeat(np.arange(5), [600, 1, 999, 300, 173])),
    "strided or a user's": masks.Strided(1000) | masks.Where(lambda at: at.key >= at.query + 1500),
}


@pytest.mark.parametrize("name", MASKS)
def test_tiles_are_those_that_are_visited(name):
    """Counted while it runs, by a score function that reports where it is."""
    x = jnp.zeros((1, 2073, 1, 4))
    visited = collections.Counter()

    def report(scores, at, _):
        jax.debug.callback(
            lambda i, j: visited.update([(int(i), int(j))]), at.queries[0], at.keys[0]
        )
        return scores

    # Checks of arguments call the function once on made-up indices, without running it.
    jax.block_until_ready(attn.dot_product_attention(x, x, x, mask=MASKS[name], score=report))
    jax.effects_barrier()
    found = attn.explain(x, x, x, mask=MASKS[name])
    assert found.tiles is not None
    assert sum(visited.values()) == len(visited) == found.tiles["full"] + found.tiles["mixed"]
    allowed = np.reshape(MASKS[name].allow(indices(2073)), (2073, 2073))
    expected = collections.Counter()
    t, s = found.tile
    for i in range(0, 2073, t):
        for j in range(0, 2073, s):
            part = allowed[i : i + t, j : j + s]
            is_whole = part.shape == (t, s)
            kind = "empty" if not part.any() else "full" if part.all() and is_whole else "mixed"
            expected[kind] += 1
    assert found.tiles == {kind: expected[kind] for kind in ("full", "mixed", "empty")}


def indices(length):
    return tile_indices((1,), 1, jnp.arange(length), jnp.arange(length))


def test_traced_mask_is_not_known_yet():
    x = shape(1, 2048, 2, 8)
    found = {}

    def program(lengths):
        found["tiles"] = attn.explain(x, x, x, key_value_seq_lengths=lengths).tiles
        return lengths

    jax.jit(program)(jnp.array([100]))
    assert found["tiles"] is None
    known = attn.explain(x, x, x, key_value_seq_lengths=jnp.array([100]))
    assert known.tiles is not None
    assert known.tiles["empty"] > 0


def test_text():
    x = shape(1, 8192, 4, 64)
    assert str(attn.explain(x, x, x, is_causal=True)).splitlines()[:5] == [
        "implementation  blockwise; of jvp and beyond the gradient blockwise",
        "not fused       its kernels are for tpu, gpu; named, they are interpreted here",
        "not cudnn       its kernels are for gpu; this is cpu",
        "not reference   it takes O(T S) memory: it runs if it is named",
        "tiles           120 full, 16 mixed, 120 empty; of 512 queries, 512 keys",
    ]


def test_errors_are_those_of_the_call():
    x = shape(1, 16, 4, 8)
    with pytest.raises(ValueError, match="key has shape"):
        attn.explain(x, shape(1, 16, 3, 8), x)
    with pytest.raises(ValueError, match="implementation is 'fast'"):
        attn.explain(x, x, x, implementation="fast")
    with pytest.raises(ValueError, match="bias has shape"):
        attn.explain(x, x, x, shape(3, 16, 16))


MORE = {
    "sinks": {"sinks": shape(4)},
    "dropout": {"dropout_rate": 0.1, "dropout_rng": jax.random.key(0)},
    "the residual": {"return_residual": True},
}


@pytest.mark.parametrize("name", MORE)
def test_what_cudnn_cannot_do_is_of_the_kernels_after_it(name):
    x = shape(1, 1024, 4, 64, dtype="bfloat16")
    assert attn.explain(x, x, x, is_causal=True, platform="gpu").implementation == "cudnn"
    found = attn.explain(x, x, x, is_causal=True, platform="gpu", **MORE[name])
    assert found.implementation == "fused"
    with pytest.raises(ValueError, match="implementation is 'cudnn', and the call is not for it"):
        attn.explain(x, x, x, implementation="cudnn", platform="gpu", **MORE[name])


def test_sinks_and_dropout_are_checked_as_by_the_call():
    x = shape(1, 16, 4, 8)
    with pytest.raises(ValueError, match=r"sinks has shape \(3,\); expected \(4,\)"):
        attn.explain(x, x, x, sinks=shape(3))
    with pytest.raises(ValueError, match="dropout_rng is None; expected a random key"):
        attn.explain(x, x, x, dropout_rate=0.1)


def test_a_platform_that_is_not_here():
    x = jax.ShapeDtypeStruct((1, 1998, 4, 64), "bfloat16")
    found = {name: attn.explain(x, x, x, platform=name) for name in ("cpu", "gpu", "tpu")}
    assert [y.implementation for y in found.values()] == ["blockwise", "cudnn", "fused"]
    assert found["tpu"].tile == (512, 512)
    assert found["gpu"].refused["fused"] == "cudnn comes before it: it runs if it is named"
    y = jax.ShapeDtypeStruct((1, 1998, 4, 320), "bfloat16")
    reason = attn.explain(y, y, y, platform="gpu").refused["fused"]
    assert reason == "its heads are 320 wide, more than 256"
    named = attn.explain(x, x, x, platform="gpu", implementation="fused")
    assert (named.implementation, named.tile) == ("fused", (128, 128))
    with pytest.raises(ValueError, match="platform is 'ipu'; expected one of 'cpu', 'gpu', 'tpu'"):
        attn.explain(x, x, x, platform="ipu")
    with (
        pytest.raises(ValueError, match="platform is 'ipu'; expected one of 'cpu', 'gpu', 'tpu'"),
        attn.compiled_for("ipu"),
    ):
        pass
    for capability in (None, "8.0"):
        with attn.compiled_for("gpu", capability):
            found = attn.explain(x, x, x, bias=jax.ShapeDtypeStruct((4, 1, 1), "float32"))
        assert found.implementation == "blockwise"
        assert "compute capability 9.0" in found.refused["fused"]
    with attn.compiled_for("gpu", "9.0"):
        assert attn.explain(x, x, x, bias=jax.ShapeDtypeStruct((4, 1, 1), "float32")) == (
            attn.explain(x, x, x, bias=jax.ShapeDtypeStruct((4, 1, 1), "float32"), platform="gpu")
        )


TABLE = np.zeros((17, 17), np.float32)


def by_pair(score, at, table):
    """What no kernel takes."""
    return score + table[at.query % 17, at.key % 17]


TILES = {
    "kernels": ("gpu", "9.0", {"is_causal": True, "return_residual": True}, {}),
    "kernels of TPU": ("tpu", None, {"is_causal": True}, {}),
    "a function that they refuse": ("gpu", "9.0", {"score": by_pair, "score_params": TABLE}, {}),
    "the same on TPU": ("tpu", None, {"score": by_pair, "score_params": TABLE}, {}),
    "heads that they refuse": ("gpu", "9.0", {"is_causal": True}, {"width": 320}),
    "numbers that they refuse": ("gpu", "9.0", {"is_causal": True}, {"dtype": "float64"}),
    "another GPU": ("gpu", "8.0", {"is_causal": True, "return_residual": True}, {}),
    "a GPU that is not known": ("gpu", None, {"return_residual": True}, {}),
    "loops that are named": ("gpu", "9.0", {"implementation": "blockwise"}, {}),
    "kernels that are named": ("tpu", None, {"implementation": "fused"}, {}),
}


@pytest.mark.parametrize("name", TILES)
def test_the_tile_is_the_one_that_is_planned(name, monkeypatch):
    """Where kernels refuse a call too: loops have tiles of their own."""
    platform, capability, options, of_arrays = TILES[name]
    planned = []

    def attend(call, context, params, query, key, value, bias, scale):
        planned.append((call.grid.query_side, call.grid.key_side))
        return value, jnp.zeros(query.shape[:-1])

    monkeypatch.setattr("attn.blockwise.attend", attend)
    with jax.enable_x64(True), attn.compiled_for(platform, capability):
        width, dtype = of_arrays.get("width", 64), of_arrays.get("dtype", "bfloat16")
        x = jax.ShapeDtypeStruct((1, 1000, 8, width), dtype)
        found = attn.explain(x, x, x, **options)
        jax.eval_shape(lambda x: attn.dot_product_attention(x, x, x, **options), x)
    assert planned == [found.tile]
    assert (found.tile == (500, 500)) == (found.implementation == "blockwise")


def test_what_is_over_several_devices_is_divided():
    devices = np.array(jax.devices()[:2])
    mesh = jax.sharding.Mesh(devices, ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x = jax.ShapeDtypeStruct((2, 512, 4, 64), "bfloat16", sharding=spread)
    single = jax.ShapeDtypeStruct((2, 2048, 4, 64), "float32", sharding=spread)
    for platform, tile in (("gpu", (128, 128)), ("tpu", (512, 512))):
        found = attn.explain(x, x, x, platform=platform)
        assert found.implementation == "blockwise"
        assert found.refused["fused"].startswith("XLA divides it over devices")
        found = attn.explain(single, single, single, platform=platform)
        assert found.tile == tile, "loops, in the tiles of the kernels that it was planned for"
        with pytest.raises(ValueError, match="XLA divides it over devices"):
            attn.explain(x, x, x, platform=platform, implementation="fused")
    whole, ids = shape(2, 512, 4, 64, dtype="bfloat16"), jnp.zeros((2, 512), int)
    sinks = jax.ShapeDtypeStruct((2, 4), "float32", sharding=spread)
    for more in ({"mask": masks.Segments(jax.device_put(ids, spread))}, {"sinks": sinks}):
        found = attn.explain(whole, whole, whole, platform="tpu", **more)
        assert found.implementation == "blockwise"
    array = jax.device_put(jnp.zeros(x.shape, x.dtype), spread)
    assert attn.explain(array, array, array, platform="tpu").implementation == "blockwise"
    one = jax.device_put(array, jax.devices()[0])
    assert attn.explain(one, one, one, platform="tpu").implementation == "fused"


@pytest.mark.parametrize("is_set", [False, True])
@pytest.mark.parametrize("around", [lambda x: x, jax.jit])
def test_it_is_told_inside_of_shard_map_too(around, is_set):
    """Of what a device has: the same as of arrays of these shapes outside."""
    axis_types = (jax.sharding.AxisType.Auto,)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",), axis_types=axis_types)
    x, table, rows = (
        jnp.zeros((2, 600, 2, 8)),
        jnp.zeros((8, 2)),
        jax.sharding.PartitionSpec("data"),
    )
    told = []

    def tell(x, table):
        options = {"is_causal": True, "score": scores.RelativeBias(table)}
        for platform in ("cpu", "gpu", "tpu"):
            told.append(str(attn.explain(x, x, x, **options, platform=platform)))
        lengths = jnp.sum(x, axis=(1, 2, 3)).astype(int)
        assert attn.explain(x, x, x, key_value_seq_lengths=lengths).tiles is None
        return x

    specs = {"in_specs": (rows, jax.sharding.PartitionSpec()), "out_specs": rows}
    with jax.set_mesh(mesh) if is_set else contextlib.nullcontext():
        around(jax.shard_map(tell, mesh=mesh, **specs))(x, table)
    jax.jit(tell)(x[:1], table)
    assert told[:3] == told[3:]
    assert "fused" in told[1]


def test_what_is_beyond_the_gradient_is_said():
    x = shape(1, 512, 4, 64, dtype="bfloat16")
    for named, beyond in (("fused", "blockwise"), ("reference", "reference")):
        found = attn.explain(x, x, x, implementation=named, platform="tpu")
        assert found.beyond == beyond
        assert f"of jvp and beyond the gradient {beyond}" in str(found)


def test_what_is_not_known_is_asked_for():
    (batch,) = jax.export.symbolic_shape("b")
    x = shape(batch, 16, 4, 8)
    with pytest.raises(
        ValueError, match=r"query has shape \(b, 16, 4, 8\); expected sizes that are"
    ):
        attn.explain(x, x, x)
    x, number = shape(1, 16, 4, 8), shape()
    with pytest.raises(TypeError, match="scale is a ShapeDtypeStruct; expected a real number"):
        attn.explain(x, x, x, scale=number)
    with pytest.raises(TypeError, match="score_params is a ShapeDtypeStruct; expected arrays"):
        attn.explain(x, x, x, score=lambda s, at, p: s * p, score_params=number)
    with pytest.raises(TypeError, match="dropout_rng is a ShapeDtypeStruct; expected a random key"):
        attn.explain(x, x, x, dropout_rate=0.1, dropout_rng=shape(2, dtype="uint32"))
    with pytest.raises(TypeError, match="return_residual is 'no'; expected a bool"):
        attn.explain(x, x, x, return_residual="no")


@pytest.mark.parametrize(
    ("platform", "capability", "kind"),
    [
        *(("gpu", 9.0, TypeError), ("gpu", "sm_90", ValueError), ("gpu", "90", ValueError)),
        *(("gpu", "\u0669.\u0660", ValueError), ("tpu", "9.0", ValueError)),
    ],
)
def test_a_capability_that_can_be_none_is_refused(platform, capability, kind):
    with pytest.raises(kind, match="capability is"), attn.compiled_for(platform, capability):
        pass


@pytest.mark.parametrize(("rows", "heads", "side"), [(1, 1, 1024), (1, 16, 512), (9, 2, 128)])
def test_tiles_are_small_where_masked_rows_and_heads_are_many(rows, heads, side):
    x = jax.ShapeDtypeStruct((rows, 4096, heads, 8), jnp.float32)
    told = str(attn.explain(x, x, x, mask=masks.Causal(), implementation="blockwise"))
    assert f"of {side} queries, {side} keys" in told
    whole = str(attn.explain(x, x, x, implementation="blockwise"))
    assert f"of {max(side, 512)} queries" in whole


PROGRAM = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import attn
from attn import masks, scores
from experiments.targets import chip_of, devices_of

chip = chip_of(sys.argv[1])
mesh = Mesh(np.array(devices_of(sys.argv[1])[:1]), ("x",), axis_types=(AxisType.Auto,))
named = {"implementation": "fused"}

def found(name, dtype="bfloat16", B=1, T=4096, S=None, N=8, K=8, H=128, V=None, **options):
    shapes = (T, N, H), (S or T, K, H), (S or T, K, V or H)
    cut = NamedSharding(mesh, PartitionSpec())
    x = [jax.ShapeDtypeStruct((B, *shape), dtype, sharding=cut) for shape in shapes]
    attend = lambda *x: attn.dot_product_attention(*x, **named, **options)
    gradient = jax.grad(lambda *x: jnp.sum(attend(*x).astype(jnp.float32) ** 2), (0, 1, 2))
    with attn.compiled_for(chip.platform, chip.capability):
        explained = attn.explain(*x, **named, **options)
        for program, cost in ((attend, explained.forward), (gradient, explained.gradient)):
            memory = jax.jit(program).lower(*x).compile().memory_analysis()
            print(name, cost.temporary_bytes, memory.temp_size_in_bytes, sep=";")

found("plain", is_causal=True)
found("groups", K=2, mask=masks.Window(200, 0))
found("rows", B=4, T=1500, H=64, V=128)
found("few queries", T=3, S=16384, K=2, mask=masks.Window(9999))
found("float32, 96 wide", dtype="float32", H=96, is_causal=True)
if chip.platform == "gpu":
    found("relative bias", score=scores.RelativeBias(jnp.zeros((32, 8))))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "too_much"),
    [
        pytest.param("h100:1", 2, marks=needs_gpu_compiler),
        pytest.param("v5e:2x2", np.inf, marks=needs_tpu_compiler),
    ],
)
def test_memory_of_kernels_is_at_most_what_is_said(target, too_much):
    for name, said, found in lines_of("-c", PROGRAM, target):
        assert int(found) <= int(said) <= too_much * int(found), name
