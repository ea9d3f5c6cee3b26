"""How figures look: a colour a mixer, a line a variant, a marker a position code.

Lines are named at their ends, where a reader looks for them, and not in a legend.
"""

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("agg")

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from experiments.models import MIXERS, POSITIONS
from experiments.results import changes, mixer_of

# Okabe and Ito's colours, which readers of every colour vision tell apart; their yellow, too
# light for a line on white, is darkened.
COLOURS = {
    "attention": "#0072B2",
    "window": "#D55E00",
    "ssd": "#009E73",
    "delta_rule": "#CC79A7",
    "gru": "#E69F00",
    "lstm": "#56B4E9",
    "long_convolution": "#000000",
    "none": "#A59A1C",
}
SPARE_COLOURS = ("#7B4FA3", "#8C564B", "#5F7F00", "#B04060")
"""For mixers that have none above."""
GREY = "#767676"
MARKERS = {
    "none": "o",
    "rotary": "s",
    "alibi": "^",
    "relative": "D",
    "sinusoidal": "v",
    "learned": "P",
}
SPARE_MARKERS = ("*", "X", "<", ">")
"""For position codes that have none above."""
LINES: tuple[Any, ...] = ("-", (0, (4, 1.6)), (0, (1, 1.2)), (0, (5, 1.4, 1, 1.4)))
PUBLISHED_MARKERS = ("x", "+", "1", "2", "3", "4")
ASIDE = ("position", "num_heads")
"""What models may change and still share a panel."""
MAX_IN_PANEL = 8
"""Models in one panel before it is split."""
STYLE: dict[Any, Any] = {
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.08,
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "figure.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
}


class Label(NamedTuple):
    """A name to stand at the right of a panel, at the height at which its line ends."""

    text: str
    end: float
    """In units of the y axis."""
    line: dict[str, Any]
    """Style of the line that is named."""


def colour_of(model: str) -> str:
    """Returns the colour of a model's mixer, the same in every figure."""
    mixer = mixer_of(model)
    return COLOURS.get(mixer) or _spare(mixer, MIXERS, COLOURS, SPARE_COLOURS)


def _spare(name: str, known: Iterable[str], used: Iterable[str], spare: Sequence[str]) -> str:
    """Returns what stands for a name that has nothing of its own, another for each if they last."""
    without = sorted({*known, name} - set(used))
    return spare[without.index(name) % len(spare)]


def line_of(model: str, models: Sequence[str], position: str) -> dict[str, Any]:
    """Returns the line of a model among those of its run, which has this position code.

    The first model of a mixer is solid; others of that mixer are broken, each its own way.
    """
    siblings = [other for other in models if mixer_of(other) == mixer_of(model)]
    style = LINES[siblings.index(model) % len(LINES)]
    marker = MARKERS.get(position) or _spare(position, POSITIONS, MARKERS, SPARE_MARKERS)
    return {"color": colour_of(model), "linestyle": style, "marker": marker}


def panels_of(models: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Returns the models by panel, each with its title: one panel, or several if they are many.

    They are parted by what they change in the decoder, position codes and heads aside; what is
    still too many, into the variants of the first mixer and all the other mixers beside the first
    model.
    """
    if len(models) <= MAX_IN_PANEL:
        return [("", list(models))]
    groups: dict[str, list[str]] = {}
    for model in models:
        parts = [f"{k} = {v}" for k, v in changes(model).items() if k not in ASIDE]
        groups.setdefault(", ".join(parts), []).append(model)
    if len(groups) > 4:
        groups = {"": list(models)}
    panels = []
    for title, group in groups.items():
        variants = [m for m in group if mixer_of(m) == mixer_of(group[0])]
        if len(group) > MAX_IN_PANEL and 1 < len(variants) < len(group):
            panels.append((f"variants of {mixer_of(group[0])}", variants))
            panels.append(("mixers", [group[0], *(m for m in group if m not in variants)]))
        else:
            plain = "as configured" if len(groups) > 1 else ""
            panels.append((title.replace("_", " ") or plain, group))
    return panels


def new_panels(count: int, width: float = 4.9, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    """Returns a figure with a row of panels that share their y axis."""
    size = (max(width * count, 6.1), height)
    figure, grid = pyplot.subplots(1, count, figsize=size, sharey=True, squeeze=False)
    return figure, list(grid[0])


def new_grid(
    count: int, columns: int = 4, width: float = 2.6, height: float = 2.1
) -> tuple[Figure, list[Axes]]:
    """Returns a figure with small panels of the same axes, and none left over."""
    columns = min(columns, count)
    rows = -(-count // columns)
    size = (max(width * columns + 0.4, 5.2), height * rows + 0.6)
    figure, grid = pyplot.subplots(
        rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False
    )
    axes = list(grid.flat)
    for spare in axes[count:]:
        spare.remove()
    for above in axes[max(count - columns, 0) : count]:
        above.tick_params(labelbottom=True)
    return figure, axes[:count]


def title(figure: Figure, text: str) -> None:
    """Writes what a figure shows above it, in as many lines as its width asks for."""
    lines = textwrap.fill(text, int(figure.get_figwidth() * 11))
    figure.suptitle(lines, x=0.01, ha="left")


def outer_labels(figure: Figure, x: str, y: str) -> None:
    """Names the axes that all panels share."""
    figure.supxlabel(x, fontsize=9)
    figure.supylabel(y, fontsize=9)


def label_ends(axes: Axes, labels: Iterable[Label], size: float = 8) -> None:
    """Writes labels at the right of a panel, near where their lines end and clear of each other.

    Each has a piece of its line before it, joined to the end of the line by a hair. Call it once
    limits and scales stand.
    """
    to_fraction = axes.transScale + axes.transLimits
    right = axes.get_xlim()[1]
    ends = [(float(to_fraction.transform((right, x.end))[1]), x) for x in labels]
    ends = sorted(((min(max(y, 0.0), 1.0), label) for y, label in ends), key=lambda e: e[0])
    spec = axes.get_subplotspec()
    rows = 1 if spec is None else spec.get_gridspec().nrows
    figure: Any = axes.get_figure(root=True)
    height = figure.get_figheight() * 72 * 0.78 / rows
    places = spread([y for y, _ in ends], 1.3 * size / height)
    for (end, label), place in zip(ends, places, strict=True):
        style = {"transform": axes.transAxes, "clip_on": False}
        grey = {"color": GREY, "linewidth": 0.5, "alpha": 0.6}
        axes.add_line(Line2D([1.0, 1.03], [end, place], **grey, **style))
        sample = {"linewidth": 1.6, "markersize": 4, **label.line}
        axes.add_line(Line2D([1.03, 1.065, 1.10], [place] * 3, markevery=[1], **sample, **style))
        axes.text(
            1.12,
            place,
            label.text,
            color=label.line["color"],
            fontsize=size,
            va="center",
            transform=axes.transAxes,
        )


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Returns ascending values of 0..1 moved as little as need be to stand ``gap`` apart in it.

    Of all such places those of the least squared move: under the order, neighbours that would
    overlap are pooled (Robertson et al., Order Restricted Statistical Inference, 1988, chapter 1),
    and the bounds clip the result. If there are too many they go on above 1.
    """
    blocks: list[tuple[float, int]] = []  # sum of value - rank * gap, and how many
    for rank, value in enumerate(values):
        total, count = value - rank * gap, 1
        while blocks and blocks[-1][0] / blocks[-1][1] > total / count:
            above = blocks.pop()
            total, count = total + above[0], count + above[1]
        blocks.append((total, count))
    highest = max(1.0 - (len(values) - 1) * gap, 0.0)
    starts = [
        min(max(total / count, 0.0), highest) for total, count in blocks for _ in range(count)
    ]
    return [start + rank * gap for rank, start in enumerate(starts)]


def horizontal(axes: Axes, value: float, style: str = "--") -> dict[str, Any]:
    """Draws a grey line across the panel; returns its style, for a label."""
    line = {"color": GREY, "linestyle": style, "linewidth": 1.1}
    axes.axhline(value, **line, zorder=1)
    return {**line, "marker": ""}


def percent_axis(axis: Any) -> None:
    """Makes an axis one of shares, from 0 to 100 %."""
    axis.axes.set(**{f"{axis.axis_name}lim": (-0.03, 1.04)})
    axis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    axis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def log2_axis(axis: Any, values: Sequence[float], unit: str = "") -> None:
    """Makes an axis logarithmic, with ticks at these values alone."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(FixedLocator(sorted(set(values))))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:,.3g}{unit}" if unit else f"{value:,g}")


def bytes_axis(axis: Any, values: Sequence[float]) -> None:
    """Makes an axis logarithmic in bytes, with a few powers of two as ticks around the values."""
    low, high = math.floor(math.log2(min(values))), math.ceil(math.log2(max(values)))
    step = max(1, math.ceil((high - low) / 5))
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.axes.set(**{f"{axis.axis_name}lim": (2 ** (low - 0.2), 2 ** (high + 0.2))})
    axis.set_major_locator(FixedLocator([2.0**power for power in range(low, high + 1, step)]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: in_bytes(value))


def in_bytes(count: float) -> str:
    """Returns a number of bytes in a unit that keeps it short."""
    return f"{count / 1024:.3g} kB" if count >= 1024 else f"{count:.0f} B"


def medians(columns: Sequence[Sequence[float]]) -> np.ndarray:
    """Returns the median over seeds at every place."""
    return np.median(np.asarray(columns, float), axis=0)
