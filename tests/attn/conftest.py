"""What is under test: every implementation of the registry, and the tiled one in small tiles."""

import functools

import pytest

from attn.blockwise import blockwise_attention
from attn.dot_product import IMPLEMENTATIONS
from attn.tiles import TileSizes

SMALL_TILES = "blockwise in small tiles"


# Last, so that all implementations of a case run in a row and share what they are compared with.
@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc):
    if "implementation" in metafunc.fixturenames:
        names = [*IMPLEMENTATIONS, SMALL_TILES]
        if metafunc.module.__name__.endswith(("test_devices", "test_features", "test_strict")):
            # One tile is what the small ones are made of: by default the others speak for it.
            names[0] = pytest.param(names[0], marks=pytest.mark.slow)
        metafunc.parametrize("implementation", names, indirect=True)


@pytest.fixture
def implementation(request, monkeypatch):
    """The name of an implementation, for ``attn.dot_product_attention(implementation=...)``."""
    if request.param == SMALL_TILES:
        tiled = functools.partial(blockwise_attention, sides=TileSizes(query=4, key=5))
        monkeypatch.setitem(IMPLEMENTATIONS, SMALL_TILES, tiled)
    return request.param
