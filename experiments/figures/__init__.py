"""The figures of a run, drawn from its records alone; a new one is a function and a line here.

A figure is a function from ``Results`` to a matplotlib figure, or to None where the records hold
nothing for it.
"""

import io
from collections.abc import Callable
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from PIL import Image

from experiments.figures import accuracy, inside, overview, scaling, training
from experiments.figures.style import STYLE, pyplot
from experiments.results import Results

PIXELS_PER_INCH = 144


class Kind(NamedTuple):
    """How a figure is drawn, of a run or of several, and what a reader is told of it."""

    draw: Callable[[Any], Figure | None]
    caption: str


class Drawn(NamedTuple):
    """A figure that has been drawn."""

    name: str
    caption: str
    png: bytes


WIDTHS = (
    "Dots are seeds, lines their medians. Grey and marked: published points, of other budgets, "
    "vocabularies and learning rates; a yardstick, not a baseline."
)

FIGURES: dict[str, Kind] = {
    "by_seed": Kind(
        accuracy.by_seed,
        "Every fresh seed is a dot, the bar their median, dashed lines the floors. Steps are those "
        "after which training answers first were right by the threshold; an open triangle is a run "
        "that did not get there in the steps it had.",
    ),
    "accuracy_by_distance": Kind(
        accuracy.by_distance,
        "A thin line a seed, a thick one their median. Dotted vertical lines: where a receptive "
        "field ends. Grey: floors, what is reached without relating the question to its source.",
    ),
    "accuracy_by_width": Kind(scaling.by_width, WIDTHS),
    "accuracy_by_length": Kind(
        scaling.by_length,
        "A thin line a seed, a thick one their median; the dotted line is the length of training.",
    ),
    "loss_by_position": Kind(
        accuracy.by_position,
        "A thin line a seed, a thick one their median. Shaded: every second part of the row.",
    ),
    "attention_maps": Kind(
        inside.attention_maps,
        "Weights of the first seed on one test row, on a scale of square roots. Marked: the true "
        "source of each answer and the positions after it into which the short convolution carries "
        "it. Numbers: mean weight on them over the probed rows.",
    ),
    "blocked_sources": Kind(
        inside.blocked_sources,
        "Medians of seeds, on few rows. In every layer attention to the source is cut: from its "
        "question, or from all that comes later; for comparison, from every question to as many "
        "other positions. Dashed: chance.",
    ),
    "accuracy_by_state": Kind(
        scaling.by_state,
        "Dots are seeds. State: keys and values, or the recurrent state, of all layers in float32, "
        "and what short convolutions keep.",
    ),
    "gradient_reach": Kind(
        inside.gradient_reach,
        "Mean share of |d logit of the answer / d embedding| by distance before the question, of "
        "the first seed, over its answers. A line ends where the gradient is exactly zero; dotted: "
        "the end of the receptive field.",
    ),
    "learning_curves": Kind(
        training.learning_curves,
        "Means over a dispatch, on training rows as they come. Dotted: the threshold of success; "
        "dashed: chance; a line that ends early has reached the stop, or diverged (cross).",
    ),
    "cost": Kind(
        training.cost,
        "Forward and backward of one row in a batch of 8, least of five; memory is the compiled "
        "program's temporary. At laboratory size, and of unoptimised mixers.",
    ),
}
"""In the order of the page."""


OVERVIEWS: dict[str, Kind] = {
    "overview": Kind(
        overview.overview,
        "Every seed is a dot, the bar their median; dashed: chance. Of each mixer the variant that "
        "did best in the search.",
    ),
    "all_widths": Kind(scaling.by_width_of_all, WIDTHS),
}
"""Over several runs; they, too, in the order of the page."""


def draw_all(results: Results) -> list[Drawn]:
    """Returns every figure that the records hold something for."""
    return _drawn(FIGURES, results) if results.models else []


def draw_overviews(runs: list[Results]) -> list[Drawn]:
    """Returns every figure over all runs that their records hold something for."""
    return _drawn(OVERVIEWS, [results for results in runs if results.models])


def _drawn(kinds: dict[str, Kind], records: Any) -> list[Drawn]:
    found = [
        (name, kind, draw(lambda kind=kind: kind.draw(records))) for name, kind in kinds.items()
    ]
    return [Drawn(name, kind.caption, png) for name, kind, png in found if png is not None]


def draw_headline(runs: list[Results]) -> bytes | None:
    """Returns the figure of the first run that has one to head a page with."""
    for results in runs:
        png = draw(lambda results=results: inside.headline(results)) if results.models else None
        if png is not None:
            return png
    return None


def draw(function: Callable[[], Figure | None]) -> bytes | None:
    """Returns the PNG of what a function draws, None if it draws nothing."""
    with pyplot.rc_context(STYLE):
        figure = function()
        if figure is None:
            return None
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=PIXELS_PER_INCH, format="png")
        pyplot.close(figure)
    # A palette of 256 takes a third of the bytes, and of these few colours shows no less.
    image = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    smaller = io.BytesIO()
    image.save(smaller, format="png", optimize=True)
    return smaller.getvalue()
