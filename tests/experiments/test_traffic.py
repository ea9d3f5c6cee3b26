"""Collectives of compiled programs, against what the programs are written to send."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from experiments.traffic import traffic

N = 4
X = np.ones((8, 6), np.float32)
BLOCK = X.nbytes // N


def loop(x):
    return lax.fori_loop(0, 5, lambda _, x: lax.ppermute(x, "a", [(0, 1), (1, 2), (2, 3)]), x)


def branch(x):
    several = lambda x: lax.ppermute(lax.psum(x, "a"), "a", [(0, 1)])  # noqa: E731
    return lax.cond(jnp.sum(lax.axis_index("a")) > 1, lambda x: lax.psum(x, "a"), several, x)


@pytest.mark.parametrize(
    ("function", "count", "size"),
    [
        (jnp.sin, {}, {}),
        (lambda x: lax.psum(x, "a"), {"all-reduce": 1}, {"all-reduce": 2 * BLOCK * 3 / 4}),
        (
            lambda x: sum(lax.psum((x, x[:1]), "a")),  # One of two arrays.
            {"all-reduce": 1},
            {"all-reduce": 2 * (BLOCK + BLOCK // 2) * 3 / 4},
        ),
        (
            lambda x: lax.psum_scatter(jnp.tile(x, (2, 1)), "a", tiled=True),
            {"reduce-scatter": 1},
            {"reduce-scatter": BLOCK // 2 * 3},
        ),
        (
            lambda x: lax.all_to_all(jnp.tile(x, (2, 1)), "a", 0, 0),
            {"all-to-all": 1},
            {"all-to-all": 2 * BLOCK * 3 / 4},
        ),
        (
            lambda x: lax.all_gather(x, "a").sum(0),
            {"all-gather": 1},
            {"all-gather": N * BLOCK * 3 / 4},
        ),
        (loop, {"collective-permute": 5}, {"collective-permute": 5 * BLOCK}),
        (
            lambda x: lax.scan(lambda x, _: (loop(x), None), x, length=3)[0],
            {"collective-permute": 15},
            {"collective-permute": 15 * BLOCK},
        ),
        (
            branch,
            {"all-reduce": 1, "collective-permute": 1},
            {"all-reduce": 2 * BLOCK * 3 / 4, "collective-permute": BLOCK},
        ),
    ],
)
def test_what_is_sent(function, count, size):
    mesh = jax.make_mesh((N,), ("a",), (AxisType.Auto,), devices=jax.devices()[:N])
    spread = jax.shard_map(function, mesh=mesh, in_specs=P("a"), out_specs=P("a"), check_vma=False)
    found = traffic(jax.jit(spread).lower(X).compile().as_text())
    assert dict(found.count) == count
    assert dict(found.bytes) == size
    assert found.total == sum(size.values())


AS_FOR_TPU = """\
HloModule jit_step, is_scheduled=true, num_partitions=8
%again (x: (s32[], f32[4])) -> pred[] {
  %five = s32[]{:T(128)} constant(5)
  ROOT %less = pred[] compare(%count, %five), direction=LT
}

%body (x: (s32[], f32[4])) -> (s32[], f32[4]) {
  %sent = (f32[4], f32[4]) collective-permute-start(%y), channel_id=1
  %done = f32[4] collective-permute-done(%sent)
}

%unknown (x: (s32[], s32[], f32[4])) -> pred[] {
  ROOT %less = pred[] compare(%count, %most), direction=LT
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %all = ((s8[6], f32[1]), (s8[24]{0:T(8)}, f32[4])) all-gather-start(%y), replica_groups=[2,4]<=[8]
  %sum = (bf16[6]{0:T(8)(2,1)}, u64[1]) all-reduce-start(%y, %z), replica_groups={{0,1},{2,3}}
  %to = (f32[2,2], f32[2,2], u32[], u32[]) collective-permute-start(%y), channel_id=2
  %a = (s32[], f32[4]) while(%x), condition=%again, body=%body
  %b = (s32[], s32[], f32[4]) while(%x), condition=%unknown, body=%body
}
"""


def test_a_loop_whose_condition_alone_tells_how_long_it_is():
    found = traffic(AS_FOR_TPU)
    assert found.count["collective-permute"] == 5 + 1 + 1
    assert found.bytes["collective-permute"] == (5 + 1 + 1) * 16


def test_operations_that_begin_and_end():
    found = traffic(AS_FOR_TPU)
    assert found.bytes["all-gather"] == (24 + 4 * 4) * 3 / 4
    assert found.bytes["all-reduce"] == 6 * 2 + 8


@pytest.mark.parametrize(
    ("cut", "whole", "devices"),
    [(("a", "b"), ("a", None), 2), ((None, ("a", "b")), (None, None), 4), ((None, "c"), (), 2)],
)
def test_what_xla_divides_over_some_axes_of_a_mesh(cut, whole, devices):
    """A product summed over them: its text names axes where a program of ``shard_map`` lists."""
    mesh = jax.make_mesh((2, 2, 2), ("a", "b", "c"), (AxisType.Auto,) * 3)
    x = jax.ShapeDtypeStruct((8, 16), np.float32, sharding=jax.NamedSharding(mesh, P(*cut)))
    y = jax.ShapeDtypeStruct((16, 8), np.float32, sharding=jax.NamedSharding(mesh, P(cut[1])))
    product = jax.jit(jnp.matmul, out_shardings=jax.NamedSharding(mesh, P(*whole)))
    found = traffic(product.lower(x, y).compile().as_text())
    size = 4 * 8 * 8 // (2 if cut[0] else 1)
    assert dict(found.count) == {"all-reduce": 1}
    assert found.bytes["all-reduce"] == 2 * size * (devices - 1) / devices


@pytest.mark.parametrize(
    ("groups", "devices"),
    [
        ("[2,4]<=[8]", 4),
        ("[4,2]<=[2,2,2]T(0,2,1)", 2),
        ("{{0,1,2},{3,4,5}}", 3),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", 4),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}", 8),
        ("mesh['a'=1,'b'=4,'c'=2], device_ids=([2,2,2]T(1,0,2)) {'b'}", 4),
        ("mesh['a'=2,'b'=4], device_ids=([2,2,2]T(0,2,1)) {'b':(2)2}", 2),
        ("mesh['a'=2,'b'=8] {'a','b':(1)4}", 8),
    ],
)
def test_how_xla_writes_who_takes_part(groups, devices):
    line = f"  %y = f32[12]{{0}} all-gather(%x), replica_groups={groups}, dimensions={{0}}"
    program = (
        f"HloModule m, num_partitions=16\n\nENTRY %main (x: f32[4]) -> f32[12] {{\n{line}\n}}\n"
    )
    assert traffic(program).total == 48 * (devices - 1) / devices
