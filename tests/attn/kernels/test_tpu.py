"""Kernels in programs for TPU, where there is none: where they run, and that they compile."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax._src.pallas.mosaic.core import CoreType
from jax._src.pallas.mosaic.lowering import lowering_rules
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import attn
from attn import scores
from attn.kernels.tpu.operations import HAS
from tests.compilers import TOPOLOGIES, lines_of, needs_tpu_compiler

X = jax.ShapeDtypeStruct((2, 512, 4, 64), "bfloat16")


def kernels_in(function, *x):
    """How many kernels the program for TPU calls, before it is compiled."""
    lowered = jax.jit(function).trace(*x).lower(lowering_platforms=("tpu",))
    return lowered.as_text().count("tpu_custom_call")


def total(*x, **options):
    return jnp.sum(attn.dot_product_attention(*x, is_causal=True, **options))


def test_they_run_both_passes():
    assert kernels_in(total, X, X, X) == 1
    assert kernels_in(jax.grad(total, (0, 1, 2)), X, X, X) == 3


def test_they_run_under_vmap_and_remat():
    several = jax.ShapeDtypeStruct((3, *X.shape), X.dtype)
    assert kernels_in(jax.vmap(jax.grad(total, (0, 1, 2))), several, several, several) == 3
    assert kernels_in(jax.grad(jax.checkpoint(total), (0, 1, 2)), X, X, X) >= 3


def test_they_do_not_run_if_another_is_named():
    for named in ("blockwise", "reference"):
        attend = jax.grad(lambda *x, named=named: total(*x, implementation=named), (0, 1, 2))
        assert kernels_in(attend, X, X, X) == 0


def test_what_xla_divides_over_devices_is_blockwise_and_what_a_user_divides_is_not():
    mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,), devices=jax.devices()[:4])
    x = jax.ShapeDtypeStruct((4, *X.shape[1:]), X.dtype)
    divided = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, P("data")))
    gradient = jax.grad(total, (0, 1, 2))
    assert kernels_in(gradient, divided, divided, divided) == 0
    spread = jax.shard_map(gradient, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    assert kernels_in(spread, x, x, x) == 3
    with pytest.raises(ValueError, match="XLA divides it over devices"):
        kernels_in(lambda x: total(x, x, x, implementation="fused"), divided)


def looked_up(score, at, table):
    """Not elementwise: a pair is looked up in a long table, and by more than its distance."""
    return score + table[(at.query + at.key) % table.size]


def test_what_they_refuse_is_blockwise():
    table = jnp.zeros(99)
    assert kernels_in(lambda *x: total(*x, score=looked_up, score_params=table), X, X, X) == 0


@pytest.mark.parametrize("name", ["lgamma", "int16"])
def test_what_they_have_not_is_blockwise_or_said(name):
    def changed(s, at, _):
        if name == "int16":
            return s + (at.query.astype(name) + at.key.astype(name)) % jnp.int16(3)
        return lax.lgamma(s)

    assert kernels_in(lambda *x: total(*x, score=changed), X, X, X) == 0
    with pytest.raises(ValueError, match=f"has what a kernel has not: .*{name}"):
        kernels_in(lambda *x: total(*x, score=changed, implementation="fused"), X, X, X)


def test_a_derivative_of_its_own_is_kept_in_them():
    relu = lambda s, at, _: jax.nn.relu(s)  # noqa: E731
    gradient = jax.grad(lambda *x: total(*x, score=relu, implementation="fused"))
    assert kernels_in(gradient, X, X, X) == 3
    key, value = jnp.eye(2)[None, :, None], jnp.arange(2.0).reshape(1, 2, 1, 1)
    slopes = gradient(jnp.zeros((1, 2, 1, 2)), key, value)  # All scores are 0, and there relu's 0.
    assert not slopes.any()


def test_a_table_of_offsets_runs_in_them_in_a_shard_map_too():
    mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,), devices=jax.devices()[:4])
    x = jax.ShapeDtypeStruct((4, *X.shape[1:]), X.dtype)
    table = jnp.arange(9.0)

    def change(s, at, p):
        softened = jnp.logaddexp(s, p[0]) + jax.nn.relu(s)
        return softened + p[jnp.clip(at.key - at.query, -4, 4) + 4]

    gradient = jax.grad(lambda *x: total(*x[:3], score=change, score_params=x[3]), (0, 1, 2, 3))
    assert kernels_in(gradient, x, x, x, table) == 3
    specs = (P("data"), P("data"), P("data"), P())
    spread = jax.shard_map(gradient, mesh=mesh, in_specs=specs, out_specs=specs)
    assert kernels_in(spread, x, x, x, table) == 3

    def ahead(s, at, p):
        """By places that a device alone knows."""
        return s + jnp.arange(99.0)[(at.key - (at.query + lax.axis_index("data"))) % 99]

    output = lambda *x: total(*x[:3], score=ahead, score_params=x[3])  # noqa: E731
    spread = jax.shard_map(output, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)
    assert kernels_in(spread, x, x, x, table) == 0


def test_operations_are_those_that_mosaic_has():
    assert {primitive.name for primitive in lowering_rules[CoreType.TC]} >= HAS


def test_a_bias_by_distance_runs_in_them_in_a_shard_map_too():
    mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,), devices=jax.devices()[:4])
    x = jax.ShapeDtypeStruct((4, *X.shape[1:]), X.dtype)
    bias = scores.RelativeBias(jnp.zeros((32, 4)))
    gradient = jax.grad(lambda *x: total(*x, score=bias), (0, 1, 2))
    assert kernels_in(gradient, x, x, x) == 3
    spread = jax.shard_map(gradient, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    assert kernels_in(spread, x, x, x) == 3


def test_a_ring_of_devices_runs_them_where_xla_has_nothing_to_divide():
    x = jax.ShapeDtypeStruct((1, 2048, 4, 64), "bfloat16")

    def kernels(sizes, **options):
        names = ("data", "sequence")[-len(sizes) :]
        mesh = jax.make_mesh(sizes, names, (AxisType.Auto,) * len(sizes))

        def loss(*x):
            spread = {"axis_name": "sequence", "mesh": mesh, "placement": "exchanged"}
            return jnp.sum(attn.sharded.dot_product_attention(*x, **spread, **options))

        return kernels_in(jax.grad(loss, (0, 1, 2)), x, x, x)

    assert kernels((4,), is_causal=True) == kernels((1, 4), is_causal=True) == 3
    assert kernels((4,), method="all_to_all", implementation="fused") == 3
    assert kernels((2, 4), is_causal=True) == kernels((4,), implementation="blockwise") == 0
    with pytest.raises(ValueError, match="XLA divides it over devices"):
        kernels((2, 4), implementation="fused")


def test_forward_mode_and_second_order_need_none():
    assert kernels_in(lambda *x: jax.jvp(total, x, x), X, X, X) == 1, "the value"

    def hvp(*x):
        return jax.jvp(jax.grad(total), x, x)[1]

    assert kernels_in(hvp, X, X, X) <= 1


def test_a_platform_without_them_says_so():
    attend = jax.jit(lambda *x: total(*x, implementation="fused"))
    with pytest.raises(ValueError, match="no kernel for rocm"):
        attend.trace(X, X, X).lower(lowering_platforms=("rocm",))


def test_one_export_for_every_platform_has_them_for_its_own():
    export = jax.export.export(jax.jit(total), platforms=["cpu", "cuda", "tpu"])
    assert export(X, X, X).mlir_module().count("tpu_custom_call") == 1


def test_what_is_named_and_refused_says_why():
    x = jnp.zeros((1, 8, 4, 8))
    given = {"score": looked_up, "score_params": jnp.zeros(99), "implementation": "fused"}
    for function in (attn.dot_product_attention, attn.explain):
        with pytest.raises(ValueError, match=r"implementation is 'fused'.*not elementwise"):
            function(x, x, x, **given)


def test_distances_that_fast_memory_has_no_room_for_are_refused():
    def of(length):
        x = jax.ShapeDtypeStruct((1, length, 1, 64), "bfloat16")
        bias = scores.RelativeBias(jnp.zeros((8, 1)))
        return attn.explain(x, x, x, score=bias, platform="tpu", implementation=None)

    assert of(2**16).implementation == "fused"
    found = of(2**17 + 512)
    assert found.implementation == "blockwise"
    assert "distances" in found.refused["fused"]


def test_what_keeps_much_has_smaller_tiles_or_loops():
    """A compiler would run out of fast memory, which is no reason that loops run instead."""
    x = jax.ShapeDtypeStruct((1, 2048, 4, 64), "bfloat16")

    def found(width):
        change = lambda s, at, p: jax.nn.gelu(s[..., None] * p) @ p  # noqa: E731
        weights = jnp.ones(width)
        return attn.explain(x, x, x, score=change, score_params=weights, platform="tpu")

    assert [found(width).tile for width in (1, 16, 32)] == [(512, 512), (128, 256), (128, 128)]
    assert found(64).implementation == "blockwise"
    assert "keeps more than there is room for" in found(64).refused["fused"]


def test_a_long_function_is_read_in_a_short_time():
    """Each of its values is of two before it, and would be met 2^400 times."""
    x = jax.ShapeDtypeStruct((1, 256, 4, 64), "bfloat16")

    def change(s, at, _):
        for _ in range(400):
            s = jnp.sin(s) + s
        return s

    assert attn.explain(x, x, x, score=change, platform="gpu").implementation == "fused"
    assert attn.explain(x, x, x, score=change, platform="tpu").implementation == "blockwise"


def test_explained():
    found = attn.explain(X, X, X, is_causal=True, implementation="fused")
    assert found.implementation == "fused"
    assert found.tile == (512, 512)
    assert "blockwise" in found.refused
    odd = jax.ShapeDtypeStruct((1, 2001, 2, 8), "float32")
    assert attn.explain(odd, odd, odd, implementation="fused").tile == (512, 512)
    short = jax.ShapeDtypeStruct((1, 3, 2, 8), "float32")
    assert attn.explain(short, short, short, implementation="fused").tile == (128, 128)


SOME = ["plain", "segments, lengths", "a user's score function", "width 256", "relative bias"]
EVERY = [
    *SOME,
    *("float16", "quotients and signs", "nothing of the score", "bias and mask, wide", "768 wide"),
    *("a table of offsets", "derivatives of their own", "long, wide"),
    *("features of both", "many features", "a table of kinds", "as many entries as may be"),
    *("cases, steps", "a network of a score", "a bias that is looked up"),
    *("float32", "width 96", "width 128", "width 192", "values of another width", "any length"),
    *(
        "one query",
        "prefix, window",
        "dense",
        "a user's mask",
        "soft cap",
        "relative bias of long rows",
        "bias",
        "dropout",
        "long",
    ),
]


@pytest.mark.slow
@needs_tpu_compiler
@pytest.mark.parametrize(("chip", "names"), [("v5e", EVERY), ("v5p", SOME), ("v6e", SOME)])
def test_the_compiler_takes_them(chip, names):
    found = lines_of("-m", "tests.attn.kernels.afar", TOPOLOGIES[chip], "default", *names)
    assert [int(kernels) for _, kernels, _ in found] == [1, 3] * len(names)
    for name, _, size in found:
        if not any(x in name for x in ("bias", "dense", "wide", "long")):
            assert int(size) < 2 * 4 * 1024**2 * 4, f"{name}: no map of all pairs"
        if "long" in name:
            assert int(size) < 2**31
