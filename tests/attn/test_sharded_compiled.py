"""A sequence spread over chips that are not here: it compiles, and what overlaps."""

import jax
import pytest

from tests.compilers import TOPOLOGIES, lines_of, needs_gpu_compiler, needs_tpu_compiler

PROGRAM = """
import re, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import attn
from attn import masks
from experiments.targets import chip_of, devices_of

chip = chip_of(sys.argv[1])
mesh = Mesh(np.array(devices_of(sys.argv[1])), ("sequence",), axis_types=(AxisType.Auto,))
cut = NamedSharding(mesh, PartitionSpec(None, "sequence"))
x = jax.ShapeDtypeStruct((1, 16384, 4, 128), jnp.bfloat16, sharding=cut)
ids = jax.ShapeDtypeStruct((1, 16384), jnp.int32)

def loss(query, key, value, ids):
    output = attn.sharded.dot_product_attention(
        query, key, value, axis_name="sequence", mesh=mesh, method=sys.argv[2],
        placement=sys.argv[3], implementation=sys.argv[4], is_causal=True, mask=masks.Segments(ids),
    )
    return jnp.sum(output.astype(jnp.float32))

call = "tpu_custom_call" if chip.platform == "tpu" else "mosaic_gpu_v2"
with attn.compiled_for(chip.platform, chip.capability):
    lowered = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x, ids)
    print("kernels", lowered.as_text().count(call), sep=";")
    compiled = lowered.compile()
print("bytes", compiled.memory_analysis().temp_size_in_bytes, sep=";")
SIGNS = {"collective-permute-start": "<", "collective-permute-done": ">", "custom-call": "K"}
for computation in compiled.as_text().split("\\n}\\n"):
    work = "while|fusion|custom-call"
    operation = rf" (collective-permute-start|collective-permute-done|{work})\\("
    found = re.findall(operation, computation)
    if {"while", "custom-call"} & {*found} and "ENTRY" not in computation:
        print("loop", "".join(SIGNS.get(x, "w") for x in found), sep=";")
"""


@pytest.mark.slow
@needs_tpu_compiler
@pytest.mark.parametrize(
    ("chip", "method", "placement", "named"),
    [("v5e", method, "contiguous", "blockwise") for method in ("ring", "gather", "all_to_all")]
    + [(chip, "ring", "exchanged", "blockwise") for chip in ("v5e", "v5p", "v6e")]
    + [(chip, "ring", "exchanged", "fused") for chip in ("v5e", "v5p", "v6e")]
    + [("v5e", method, "contiguous", "fused") for method in ("gather", "all_to_all")],
)
def test_the_compiler_for_tpu_takes_it(chip, method, placement, named):
    """No map of all pairs; keys, and what is summed for them, travel while devices compute.

    So it is of loops over tiles; of kernels see below.
    """
    found = lines_of("-c", PROGRAM, TOPOLOGIES[chip], method, placement, named)
    ((_, size),) = (x for x in found if x[0] == "bytes")
    assert int(size) < 4 * 16384**2
    ((_, kernels),) = (x for x in found if x[0] == "kernels")
    assert int(kernels) == (3 if named == "fused" else 0)
    loops = [order for name, order in found if name == "loop" and "<" in order]
    assert sorted(x.count("<") for x in loops) == ([2, 4] if method == "ring" else [])
    if named == "blockwise":
        assert not any("<>" in x or x.endswith("<") for x in loops)
    elif chip != "v5p":
        # XLA schedules kernels otherwise: on v6e it starts to send what is summed for keys after
        # them, on v5p the keys too.
        assert all("K" in x[x.index("<") : x.rindex(">")] for x in loops)


@pytest.mark.slow
@needs_gpu_compiler
@pytest.mark.parametrize("method", ["ring", "gather", "all_to_all"])
def test_the_compiler_for_gpu_takes_it(method):
    """No map of all pairs; the keys of a ring travel while the kernels of both passes run."""
    placement = "exchanged" if method == "ring" else "contiguous"
    found = lines_of("-c", PROGRAM, "h100:4", method, placement, "fused")
    ((_, size),) = (x for x in found if x[0] == "bytes")
    assert int(size) < 4 * 16384**2
    ((_, kernels),) = (x for x in found if x[0] == "kernels")
    assert int(kernels) == 3
    loops = [order for name, order in found if name == "loop" and "<" in order]
    # Keys, and keys and sums; from jax 0.11 on XLA sends these two together.
    of_ring = [1, 2 if jax.__version_info__ < (0, 11) else 1]
    assert sorted(x.count("<") for x in loops) == (of_ring if method == "ring" else [])
    assert all("K" in x[x.rindex("<") : x.rindex(">")] for x in loops)
