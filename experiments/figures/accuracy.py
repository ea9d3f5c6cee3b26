"""What models reach: by seed, by distance of the source, by position."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.figures import style
from experiments.figures.style import GREY, Label
from experiments.results import Results, mixer_of
from experiments.tasks import Floor

ACCURACY = "accuracy (share of answers right)"
FLOOR_LINES = ("--", ":", "-.")


def by_seed(results: Results) -> Figure | None:
    """Every seed of every model: accuracy, whole rows or squared error, steps to the threshold."""
    models = results.models
    several_answers = any(
        main["answers"] > asked["rows"]
        for model in models
        for asked in results.asked(model)
        for main in [asked.get("with_source") or asked["without_source"]]
    )
    middle = "loss" if results.is_number else "rows" if several_answers else None
    count = 3 if middle else 2
    size = (3.1 * count + 1.6, 0.27 * len(models) + 1.5)
    figure, axes = style.pyplot.subplots(1, count, figsize=size, sharey=True)
    style.title(figure, f"{results.name}: every seed of every model, median barred")
    rows = range(len(models))
    _dots(axes[0], results, [results.scores(model, "accuracy") for model in models])
    axes[0].set(xlabel="accuracy", yticks=rows, yticklabels=models, ylim=(len(models) - 0.4, -0.6))
    style.percent_axis(axes[0].xaxis)
    for floor in results.floors.values():
        axes[0].axvline(floor.accuracy, color=GREY, linestyle="--", linewidth=1)
    if middle == "rows":
        whole = [[asked["rows_right"] for asked in results.asked(model)] for model in models]
        _dots(axes[1], results, whole)
        axes[1].set(xlabel="rows with every answer right")
        style.percent_axis(axes[1].xaxis)
    elif middle == "loss":
        _dots(axes[1], results, [results.scores(model, "loss") for model in models])
        axes[1].set(xlabel="mean squared error", xscale="log")
        for floor in results.floors.values():
            axes[1].axvline(floor.loss, color=GREY, linestyle="--", linewidth=1)
    for row, model in enumerate(models):
        colour = style.colour_of(model)
        for run in results.runs(model):
            reached = run["steps_to_threshold"]
            if reached is None:
                # Without an edge of their own, open markers of many seeds would fill up.
                axes[-1].plot(run["steps"], row, ">", color=colour, mfc="none", markersize=5)
            else:
                axes[-1].plot(reached, row, "o", color=colour, markersize=5, alpha=0.7)
    axes[-1].set(xlabel=f"steps to {results.threshold:.0%} (▷ not within)")
    axes[-1].set_xlim(0, results.config.train.steps * 1.05)
    return figure


def by_distance(results: Results) -> Figure | None:
    """Accuracy against the distance from question to source."""
    bins = results.bins()
    if len(bins) < 2:
        return None
    centres = [(low + high) / 2 for low, high in bins]
    panels = style.panels_of(results.models)
    figure, row = style.new_panels(len(panels))
    style.title(figure, f"{results.name}: accuracy by distance from question to source")
    for axes, (title, models) in zip(row, panels, strict=True):
        labels = seed_lines(
            axes, results, models, centres, lambda m: results.columns(m, "by_distance", "accuracy")
        )
        axes.set(title=title, xlabel="distance to the source (tokens)")
        axes.set_xlim(0, bins[-1][1] + 0.5)
        style.percent_axis(axes.yaxis)
        reach_lines(axes, results, models, bins[-1][1])
        style.label_ends(axes, [*labels, *floor_lines(axes, results.floors)])
    row[0].set_ylabel(ACCURACY)
    return figure


def by_position(results: Results) -> Figure | None:
    """Loss of the answer asked at each position, where some have no source."""
    asked = results.asked(results.models[0])[0]
    positions = asked["by_position"]["position"]
    if "without_source" not in asked or len(positions) < 2:
        return None
    panels = style.panels_of(results.models)
    figure, row = style.new_panels(len(panels), width=6.4)
    style.title(figure, f"{results.name}: loss by position")
    parts = getattr(results.config.task, "parts", {})
    for axes, (title, models) in zip(row, panels, strict=True):
        labels = seed_lines(
            axes, results, models, positions, lambda m: results.columns(m, "by_position", "loss")
        )
        axes.set(title=title, xlabel="position (tokens)", xlim=(positions[0], positions[-1]))
        axes.set_ylim(0, axes.get_ylim()[1] * 1.06)
        for line in axes.lines:
            line.set_marker("")
        for i, (text, (first, last)) in enumerate(parts.items()):
            if i % 2:
                axes.axvspan(first, last, color=GREY, alpha=0.09, linewidth=0)
            at = ((first + last) / 2, axes.get_ylim()[1] * 0.99)
            axes.annotate(text, at, ha="center", va="top", color=GREY)
        plain = [label._replace(line={**label.line, "marker": ""}) for label in labels]
        style.label_ends(axes, [*plain, *floor_lines(axes, results.floors, "loss")])
    row[0].set_ylabel(f"loss ({results.loss_unit})")
    return figure


def seed_lines(
    axes: Axes,
    results: Results,
    models: Sequence[str],
    x: Sequence[float],
    values: Callable[[str], Sequence[Sequence[float]]],
) -> list[Label]:
    """Draws a thin line a seed and a thick one of medians; returns the models' labels."""
    labels = []
    for model in models:
        line = style.line_of(model, results.models, results.settings(model).position)
        columns = values(model)
        for column in columns if len(columns) > 1 else ():
            axes.plot(x, column, color=line["color"], linewidth=0.6, alpha=0.35)
        middle = style.medians(columns)
        axes.plot(x, middle, **line)
        labels.append(Label(model, float(middle[-1]), line))
    return labels


def floor_lines(axes: Axes, floors: dict[str, Floor], metric: str = "accuracy") -> list[Label]:
    """Draws what trivial predictors reach; returns their labels."""
    labels = []
    for (name, floor), line in zip(floors.items(), FLOOR_LINES, strict=False):
        value = getattr(floor, metric)
        labels.append(Label(name, value, style.horizontal(axes, value, line)))
    return labels


def reach_lines(axes: Axes, results: Results, models: Sequence[str], farthest: float) -> None:
    """Draws where receptive fields end, once for all the models that share a mixer and an end."""
    ends = {(results.reach(m), mixer_of(m)) for m in models}
    for reach, mixer in sorted((r, m) for r, m in ends if r is not None and r < farthest):
        colour = style.colour_of(mixer)
        axes.axvline(reach, color=colour, linestyle=(0, (1, 2)), linewidth=1.2)
        box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
        side = "right" if reach > 0.1 * farthest else "left"
        text = {"rotation": 90, "ha": side, "va": "center", "fontsize": 7.5, "bbox": box}
        axes.text(reach, 0.5, f"{mixer} reaches {reach}", color=colour, **text)


def _dots(axes: Axes, results: Results, values: Sequence[Sequence[float]]) -> None:
    for row, (model, of_model) in enumerate(zip(results.models, values, strict=True)):
        colour = style.colour_of(model)
        axes.plot(of_model, [row] * len(of_model), "o", color=colour, alpha=0.55, mew=0)
        axes.plot(np.median(of_model), row, "|", color=colour, markersize=13, mew=2)
