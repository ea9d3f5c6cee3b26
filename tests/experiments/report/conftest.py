"""Figures are drawn for the browser alone."""

import io

import pytest
from PIL import Image

from experiments import figures


@pytest.fixture(autouse=True)
def drawn(request, monkeypatch):
    """Stands for the figures, which take seconds a page; the browser sees the real ones."""
    if "browser" in request.node.name:
        return
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4)).save(buffer, format="png")
    pictures = [figures.Drawn(name, f"Of {name}.", buffer.getvalue()) for name in ("one", "two")]
    monkeypatch.setattr(figures, "draw_all", lambda results: pictures if results.models else [])
    monkeypatch.setattr(figures, "draw_overviews", lambda runs: pictures)
    monkeypatch.setattr(figures, "draw_headline", lambda runs: buffer.getvalue())
