"""What is under test: every implementation of the registry, and the tiled one in small tiles."""

import contextlib
import functools

import pytest

from attn.blockwise import blockwise_attention
from attn.dot_product import IMPLEMENTATIONS
from attn.tiles import TileSizes

SMALL_TILES = "blockwise in small tiles"
SMALL_KERNELS = "fused in small tiles"
REFUSED = {"relative bias": "not elementwise"}
"""Features that the kernels do not take, and a part of the reason that they give."""


# Last, so that all implementations of a case run in a row and share what they are compared with.
@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc):
    if "implementation" in metafunc.fixturenames:
        # The kernels are interpreted, so in small tiles alone.
        named = [name for name in IMPLEMENTATIONS if name not in (None, "fused")]
        names = [*named, SMALL_TILES, SMALL_KERNELS]
        if metafunc.module.__name__.endswith(("test_devices", "test_features", "test_strict")):
            # One tile is what the small ones are made of: by default the others speak for it.
            for n in (0, -1):
                names[n] = pytest.param(names[n], marks=pytest.mark.slow)
        metafunc.parametrize("implementation", names, indirect=True)


@pytest.fixture
def implementation(request, monkeypatch):
    """The name of an implementation, for ``attn.dot_product_attention(implementation=...)``."""
    if request.param in (SMALL_TILES, SMALL_KERNELS):
        fused, sides = request.param == SMALL_KERNELS, TileSizes(query=4, key=5)
        tiled = functools.partial(blockwise_attention, sides=sides, fused=fused)
        monkeypatch.setitem(IMPLEMENTATIONS, request.param, tiled)
    return request.param


@pytest.fixture
def refusal(implementation):
    """``refusal(name)``: where the feature of a test is refused, that it is; else nothing."""

    def of(name):
        if implementation == SMALL_KERNELS and name in REFUSED:
            return pytest.raises(ValueError, match=REFUSED[name])
        return contextlib.nullcontext()

    return of
