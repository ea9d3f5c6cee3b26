"""The figures of a run, drawn from its records alone.

One colour a mixer in every figure, from the palette of Okabe and Ito, which readers of every
colour vision tell apart; chance is a dashed grey line, the end of a receptive field a dotted one.
"""

from collections.abc import Callable
from typing import Any

import matplotlib

matplotlib.use("agg")

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from experiments.config import Config
from experiments.models.decoder import receptive_field
from experiments.records import RunFolder
from experiments.tasks import NO_SOURCE, Chance

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
GREY = "#666666"
STYLE: dict[Any, Any] = {
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}
MANY_ANSWERS = 20
"""Answers a row from which true sources are drawn as a band, not each in a box."""


def draw_all(config: Config, folder: RunFolder, chance: Chance) -> list[str]:
    """Writes every figure that the records hold something for; returns their file names."""
    evaluations = {mixer: folder.mixer(mixer).evaluation for mixer in config.mixers}
    lengths = config.evaluation_lengths
    length = config.task.length if config.task.length in lengths else lengths[0]
    own = {m: e["lengths"][str(length)] for m, e in evaluations.items()}
    panels: dict[str, Callable[[Axes], None]] = {}
    if len(lengths) > 1:
        panels["accuracy_by_length"] = lambda ax: accuracy_by_length(
            ax, config, evaluations, chance
        )
    if any("without_source" in scores for scores in own.values()):
        panels["bits_by_position"] = lambda ax: bits_by_position(ax, config, own, length, chance)
    if any(len(scores["by_distance"]) > 1 for scores in own.values()):
        panels["accuracy_by_distance"] = lambda ax: accuracy_by_distance(ax, config, own, chance)
    metrics = {mixer: folder.mixer(mixer).metrics() for mixer in config.mixers}
    panels["learning_curves"] = lambda ax: learning_curves(ax, config, metrics, chance)
    looking = {m: e["attention"] for m, e in evaluations.items() if e["attention"] is not None}

    written = []
    with pyplot.rc_context(STYLE):
        headline = next(iter(panels))
        if looking:
            figure, (left, right) = pyplot.subplots(
                1, 2, figsize=(9.6, 4.0), width_ratios=(1.35, 1)
            )
            panels[headline](left)
            mixer, attention = next(iter(looking.items()))
            attention_map(right, mixer, attention)
            written.append(_save(figure, folder, "headline"))
        for name, panel in panels.items():
            figure, axes = pyplot.subplots(figsize=(6.4, 3.8))
            panel(axes)
            written.append(_save(figure, folder, name))
        if looking:
            figure, row = pyplot.subplots(
                1, len(looking), figsize=(4.3 * len(looking), 4.2), squeeze=False
            )
            for axes, (mixer, attention) in zip(row[0], looking.items(), strict=True):
                attention_map(axes, mixer, attention)
            written.append(_save(figure, folder, "attention_maps"))
    return written


def bits_by_position(
    axes: Axes, config: Config, scores: dict[str, dict[str, Any]], length: int, chance: Chance
) -> None:
    """Cross-entropy of the answer asked at each position; the part that can be recalled shaded."""
    for mixer, colour in _colours(config):
        positions = scores[mixer]["by_position"]
        x = [p["position"] for p in positions]
        axes.plot(x, [p["bits"] for p in positions], color=colour, label=mixer)
        low, high = zip(*(p["bits_interval"] for p in positions), strict=True)
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    boundary = length / 2
    axes.axvspan(boundary, length - 1, color=GREY, alpha=0.08, linewidth=0)
    top = axes.get_ylim()[1]
    for x, label in ((boundary / 2, "first reading"), (boundary * 1.5, "second reading")):
        axes.text(x, top, label, ha="center", va="top", color=GREY)
    _chance_line(axes, chance.bits, "characters by frequency")
    axes.set(xlabel="position (characters)", ylabel="cross-entropy (bits / character)")
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, length - 1)
    _legend(axes)


def accuracy_by_distance(
    axes: Axes, config: Config, scores: dict[str, dict[str, Any]], chance: Chance
) -> None:
    """Accuracy against the distance of the source, with 95 % intervals and receptive fields."""
    for mixer, colour in _colours(config):
        bins = scores[mixer]["by_distance"]
        centres = [(b["from"] + b["to"]) / 2 for b in bins]
        _with_intervals(axes, centres, bins, colour, mixer)
        reach = receptive_field(config.model, mixer)
        if reach is not None and reach < bins[-1]["to"]:
            axes.axvline(reach, color=colour, linestyle=":")
            axes.text(
                reach, 0.5, f" {mixer} reaches {reach}", color=colour, rotation=90, va="center"
            )
    _chance_line(axes, chance.accuracy, "chance")
    axes.set(xlabel="distance from question to source (tokens)", ylabel="accuracy")
    _percent(axes)
    _legend(axes)


def accuracy_by_length(
    axes: Axes, config: Config, evaluations: dict[str, dict[str, Any]], chance: Chance
) -> None:
    """Accuracy against the length of the row; the length of training marked."""
    for mixer, colour in _colours(config):
        by_length = evaluations[mixer]["lengths"]
        scores = [scores["with_source"] for scores in by_length.values()]
        _with_intervals(axes, [int(length) for length in by_length], scores, colour, mixer)
    _chance_line(axes, chance.accuracy, "chance")
    axes.axvline(config.task.length, color=GREY, linestyle=":")
    axes.text(config.task.length, 0.5, " trained here", color=GREY, rotation=90, va="center")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(config.evaluation_lengths))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda length, _: f"{length:g}")
    axes.set(xlabel="length of the row (tokens)", ylabel="accuracy")
    _percent(axes)
    _legend(axes)


def learning_curves(
    axes: Axes, config: Config, metrics: dict[str, list[dict[str, float]]], chance: Chance
) -> None:
    """Training loss of each step, faint, and its mean over a dispatch."""
    size = config.train.steps_per_dispatch
    for mixer, colour in _colours(config):
        bits = np.array([line["loss"] for line in metrics[mixer]]) / np.log(2)
        axes.plot(np.arange(1, len(bits) + 1), bits, color=colour, alpha=0.2, linewidth=0.8)
        means = bits.reshape(-1, size).mean(1)
        axes.plot(size * (np.arange(len(means)) + 0.5), means, color=colour, label=mixer)
    _chance_line(axes, chance.bits, "chance")
    axes.set(xlabel="optimiser step", ylabel="training loss (bits / answer)")
    axes.set_ylim(bottom=0)
    _legend(axes)


def attention_map(axes: Axes, mixer: str, attention: dict[str, Any]) -> None:
    """One row's attention weights in the head that looks at sources most; true sources marked."""
    example, best = attention["example"], attention["best"]
    weights = np.array(example["map"])
    axes.grid(False)
    image = axes.imshow(np.sqrt(weights), cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
    pairs = [
        (source, position)
        for source, position in zip(example["sources"], example["positions"], strict=True)
        if source != NO_SOURCE
    ]
    before, after = example["spans"]
    if len(pairs) < MANY_ANSWERS:
        size = {"width": before + after + 2, "height": 2}
        for source, position in pairs:
            corner = (source - before - 1, position - 1)
            axes.add_patch(Rectangle(corner, **size, fill=False, edgecolor=COLOURS[1]))
        label = "boxes: true sources"
    else:
        x, y = np.array(pairs).T
        for edge in (x - before - 1.5, x + after + 1.5):
            axes.plot(edge, y, color=COLOURS[1], linewidth=0.8)
        label = "between the lines: true sources"
    axes.set_title(
        f"{mixer}: layer {best['layer'] + 1}, head {best['head'] + 1}\n"
        f"weight on the source {best['mass']:.2f}\n{label}",
        fontsize=9,
    )
    axes.set(xlabel="attended position (tokens)", ylabel="attending position (tokens)")
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.8, label="attention weight")
    bar.set_ticks([0, 0.5, np.sqrt(0.5), 1], labels=["0", "0.25", "0.5", "1"])


def _colours(config: Config) -> list[tuple[str, str]]:
    return [(m, COLOURS[i % len(COLOURS)]) for i, m in enumerate(config.mixers)]


def _with_intervals(
    axes: Axes, x: list[float], scores: list[dict[str, Any]], colour: str, label: str
) -> None:
    accuracy = np.array([s["accuracy"] for s in scores])
    low, high = np.array([s["accuracy_interval"] for s in scores]).T
    errors = np.maximum([accuracy - low, high - accuracy], 0)
    axes.errorbar(x, accuracy, errors, color=colour, label=label, marker="o", markersize=4)


def _chance_line(axes: Axes, value: float, label: str) -> None:
    axes.axhline(value, color=GREY, linestyle="--", linewidth=1.2, label=label)


def _legend(axes: Axes) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)


def _percent(axes: Axes) -> None:
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _save(figure: Any, folder: RunFolder, name: str) -> str:
    figure.savefig(folder.figures / f"{name}.png")
    pyplot.close(figure)
    return f"{name}.png"
