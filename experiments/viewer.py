"""Attention maps that a reader can ask: point at a token of a row, see where the model looked.

A fragment for the report page, complete in itself: data, style and program are inline, nothing is
fetched, so it also works from a file and offline. The page's half is ``viewer.html``, ``.css`` and
``.js`` beside this file.
"""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

NO_SOURCE = -1
"""As of the tasks, which this module needs nothing else of."""
NOT_A_NUMBER = 255
"""The level that stands for a weight of a model that has diverged."""
VISIBLE = {" ": "␣", "\n": "⏎", "\t": "⇥", "": "∅"}


class Answer(NamedTuple):
    """One asked position of a row.

    Its source is the ``width`` tokens that end at ``source``, or ``NO_SOURCE`` (-1).
    """

    position: int
    source: int
    width: int
    target: str
    predicted: str
    right: bool


class Example(NamedTuple):
    """One row through one model.

    Attributes:
      label: what the row is called, e.g. "recall: attention, row 0".
      tokens: what stands at each of the L positions.
      answers: in any order; the first with a source is what the viewer opens with.
      maps: attention weights in 0..1, ``[layers, heads, L, L]``, the query before the key.
      carried: positions after a source into which a short convolution carries it. They are drawn
        dashed and count as the source where a weight on it is stated.
    """

    label: str
    tokens: Sequence[str]
    answers: Sequence[Answer]
    maps: np.ndarray
    carried: int = 0


def render(examples: Sequence[Example]) -> str:
    r"""Returns an HTML fragment ``<section class="attention-viewer">...</section>``.

    A page may hold any number of them. The page must declare UTF-8. A map takes
    :math:`\frac43 L^2` bytes: 2 layers of 1 head at L = 256 are 175 kB a row.

    Raises:
      ValueError: if there are no examples, or one contradicts itself.
    """
    if not examples:
        raise ValueError("a viewer needs at least one example")
    # ASCII, and no "<" in any string: a token cannot end the script element that holds the data.
    data = json.dumps([_as_data(example) for example in examples]).replace("<", "\\u003c")
    style, program, page = (
        Path(__file__).with_suffix(suffix).read_text(encoding="utf-8")
        for suffix in (".css", ".js", ".html")
    )
    # Data last: a token may well be the name of another place.
    page = page.replace("{{style}}", style).replace("{{program}}", program)
    return page.replace("{{data}}", data)


def visible(token: str) -> str:
    """Returns a token as it is printed: white space and what has no glyph as something to see."""
    if token in VISIBLE:
        return VISIBLE[token]
    return "".join(
        VISIBLE.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode())
        for c in token
    )


def quantise(weights: np.ndarray) -> np.ndarray:
    """Returns levels, uint8: ``254 sqrt(weight)`` rounded, and 255 where it is not finite.

    The square root spends the levels where attention differs: a weight of .004, which is a look
    everywhere alike over 256 tokens, is level 16 and not 1. At most .004 is lost at the top.
    """
    finite = np.isfinite(weights)
    levels = np.rint(254 * np.sqrt(np.clip(np.where(finite, weights, 0), 0, 1)))
    return np.where(finite, levels, NOT_A_NUMBER).astype(np.uint8)


def _as_data(example: Example) -> dict[str, Any]:
    maps = np.asarray(example.maps, np.float32)
    length = len(example.tokens)
    if maps.ndim != 4 or not maps.size or maps.shape[2:] != (length, length):
        raise ValueError(
            f"{example.label}: {length} tokens need maps [layers, heads, {length}, {length}], "
            f"got {list(maps.shape)}"
        )
    finite = maps[np.isfinite(maps)]
    if finite.size and (finite.min() < 0 or finite.max() > 1.01):  # .01: bfloat16 rounds past 1
        raise ValueError(
            f"{example.label}: weights are in 0..1, got {finite.min():g} to {finite.max():g}"
        )
    for answer in example.answers:
        has_source = answer.source != NO_SOURCE
        if not 0 <= answer.position < length or (
            has_source and not 0 < answer.width <= answer.source + 1 <= length
        ):
            raise ValueError(f"{example.label}: {answer} is outside a row of {length}")
    return {
        "label": example.label,
        "tokens": [visible(token) for token in example.tokens],
        "answers": [
            {
                "position": int(answer.position),
                "source": int(answer.source),
                "width": int(answer.width),
                "target": visible(answer.target),
                "predicted": visible(answer.predicted),
                "right": bool(answer.right),
            }
            for answer in example.answers
        ],
        "carried": int(example.carried),
        "layers": maps.shape[0],
        "heads": maps.shape[1],
        "levels": base64.b64encode(quantise(maps).tobytes()).decode(),
    }
