"""What is under test: every implementation of the registry, the tiled one in small tiles, and it
over devices."""

import functools

import jax
import jax.numpy as jnp
import pytest

from attn import masks, sharded
from attn.blockwise import blockwise_attention
from attn.dot_product import IMPLEMENTATIONS
from attn.overrides import KERNELS
from attn.tiles import TileSizes, ceil_div

SMALL_TILES = "blockwise in small tiles"
SMALL_KERNELS = "fused in small tiles"
SPREAD = "a ring of two devices, in small tiles"
SMALL_GPU_KERNELS = "fused as for a GPU, in small tiles"
SPREAD_KERNELS = "fused on a ring of two devices, in small tiles"


def spread_attention(
    query, key, value, bias, mask, scale, score, dropout_seed, dropout_rate, *, implementation=None
):
    """``attn.sharded``, which takes lengths that its devices divide: the rest is padded, masked."""
    if dropout_seed is not None:
        pytest.skip("what is dropped depends on the length: see test_sharded.py")
    lengths = query.shape[-3], key.shape[-3]
    padded = [4 * ceil_div(n, 4) for n in lengths]
    is_there = masks.Where(lambda at: (at.query < lengths[0]) & (at.key < lengths[1]))
    mask = is_there if mask is None else mask.pad(*padded) & is_there

    def pad(x, axis, length):
        ends = [(0, 0)] * x.ndim
        ends[axis] = (0, length - x.shape[axis])
        return jnp.pad(x, ends)

    for axis, length in zip((-2, -1), padded, strict=True):
        if bias is not None and bias.shape[axis] != 1:
            bias = pad(bias, axis, length)
    output, lse = sharded.dot_product_attention(
        pad(query, -3, padded[0]),
        pad(key, -3, padded[1]),
        pad(value, -3, padded[1]),
        bias,
        mask,
        axis_name="sequence",
        mesh=jax.make_mesh((2,), ("sequence",), axis_types=(jax.sharding.AxisType.Auto,)),
        placement="exchanged",
        implementation=implementation,
        scale=scale,
        score=score,
        return_residual=True,
    )
    return output[..., : lengths[0], :, :].astype(lse.dtype), lse[..., : lengths[0], :]


# Last, so that all implementations of a case run in a row and share what they are compared with.
@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc):
    if "implementation" in metafunc.fixturenames:
        module = metafunc.module.__name__.rpartition(".")[2]
        # The kernels are interpreted, so in small tiles alone; for cuDNN see test_cudnn.py.
        names = [name for name in IMPLEMENTATIONS if name not in (None, "fused", "cudnn")]
        names += [SMALL_TILES, SMALL_KERNELS, SMALL_GPU_KERNELS]
        if module in ("test_devices", "test_features", "test_strict"):
            # One tile is what the small ones are made of: by default the others speak for it.
            for n in (0, -1, -2):
                names[n] = pytest.param(names[n], marks=pytest.mark.slow)
        if module != "test_devices":
            marks = () if module == "test_conformance" else pytest.mark.slow
            names.append(pytest.param(SPREAD, marks=marks))
        if module == "test_conformance":  # For the rest, see test_sharded.py.
            names.append(pytest.param(SPREAD_KERNELS, marks=pytest.mark.slow))
        metafunc.parametrize("implementation", names, indirect=True)


@pytest.fixture
def implementation(request, monkeypatch):
    """The name of an implementation, for ``attn.dot_product_attention(implementation=...)``."""
    if request.param in (SMALL_TILES, SMALL_KERNELS, SMALL_GPU_KERNELS):
        named = "blockwise" if request.param == SMALL_TILES else "fused"
        sides = TileSizes(query=4, key=5)
        if request.param == SMALL_GPU_KERNELS:
            # Other sides: a program that is compiled is not asked again for which hardware it is.
            sides = TileSizes(query=5, key=4)
            monkeypatch.setitem(KERNELS["fused"], "cpu", {"kernels": "gpu", "interpret": True})
        tiled = functools.partial(blockwise_attention, sides=sides, named=named)
        monkeypatch.setitem(IMPLEMENTATIONS, request.param, tiled)
    if request.param in (SPREAD, SPREAD_KERNELS):
        named = "fused" if request.param == SPREAD_KERNELS else None
        spread = functools.partial(spread_attention, implementation=named)
        monkeypatch.setitem(IMPLEMENTATIONS, request.param, spread)
        sides = TileSizes(query=4, key=5)
        monkeypatch.setattr("attn.plan.tile_sizes", lambda *_: sides)
        monkeypatch.setattr("attn.kernels.OF_KERNELS", {"tpu": sides, "gpu": sides})
    return request.param
