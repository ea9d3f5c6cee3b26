"""On which hardware kernels are, which run here as Python does them."""

import pytest

from attn.overrides import KERNELS


@pytest.fixture(params=["gpu", "tpu"])
def hardware(request, monkeypatch):
    """Whose kernels are interpreted."""
    monkeypatch.setitem(KERNELS["fused"], "cpu", {"kernels": request.param, "interpret": True})
