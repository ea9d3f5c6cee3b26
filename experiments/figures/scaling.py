"""What models reach as something grows: the row, the width of the model, its state."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import published
from experiments.figures import style
from experiments.figures.accuracy import ACCURACY, FLOOR_LINES, floor_lines, seed_lines
from experiments.figures.style import GREY, Label
from experiments.results import Results, changes, mixer_of
from experiments.tasks import Induction, Recall


def by_length(results: Results) -> Figure | None:
    """Accuracy against the length of the row, over the length of training."""
    if len(results.lengths) < 2:
        return None
    trained = results.config.task.length
    times = [length / trained for length in results.lengths]
    panels = style.panels_of(results.models)
    theirs = published.INDUCTION if isinstance(results.config.task, Induction) else ()
    count = len(panels) + bool(theirs)
    figure, row = style.new_panels(count)
    style.title(
        figure, f"{results.name}: accuracy beyond the length of training ({trained} tokens)"
    )
    for axes, (title, models) in zip(row, panels, strict=False):
        labels = seed_lines(
            axes,
            results,
            models,
            times,
            lambda m: [
                list(column)
                for column in zip(
                    *(results.scores(m, "accuracy", n) for n in results.lengths), strict=True
                )
            ],
        )
        axes.set_title(title)
        style.log2_axis(axes.xaxis, times, "x")
        axes.set(xlabel="length of the row over that of training")
        axes.axvline(1, color=GREY, linestyle=":", linewidth=1)
        style.percent_axis(axes.yaxis)
        style.label_ends(axes, [*labels, *_floors_by_length(axes, results, times)])
    if theirs:
        _published_lengths(row[-1], theirs)
    row[0].set_ylabel(ACCURACY)
    return figure


def by_width(results: Results) -> Figure | None:
    """Accuracy against the width of the model, a panel a length, published points in grey."""
    return _widths([results], f"{results.name}: accuracy") if _has_widths(results) else None


def by_width_of_all(runs: Sequence[Results]) -> Figure | None:
    """The panels of every run that has several widths, where several have."""
    several = [results for results in runs if _has_widths(results)]
    return _widths(several, "Accuracy") if len(several) > 1 else None


def _families(results: Results) -> dict[str, list[str]]:
    """Returns the models that differ in their width alone, from narrow to wide, by what is left."""
    families: dict[str, list[str]] = {}
    for model in sorted(results.models, key=lambda m: results.settings(m).width):
        rest = [f"{k}={v}" for k, v in changes(model).items() if k != "width"]
        families.setdefault(",".join([mixer_of(model), *rest]), []).append(model)
    return families


def _has_widths(results: Results) -> bool:
    return any(len(group) > 1 for group in _families(results).values())


def _widths(runs: Sequence[Results], title: str) -> Figure:
    panels = [(results, length) for results in runs for length in results.lengths]
    figure, row = style.new_panels(len(panels))
    style.title(figure, f"{title} by width of the model, each at the learning rate chosen for it")
    for axes, (results, length) in zip(row, panels, strict=True):
        labels = []
        families = _families(results)
        shown = {results.settings(m).width for m in results.models}
        for name, group in families.items():
            line = style.line_of(name, list(families), results.settings(group[0]).position)
            x = [results.settings(m).width for m in group]
            values = [results.scores(m, "accuracy", length) for m in group]
            for scores, at in zip(values, x, strict=True):
                axes.plot([at] * len(scores), scores, ".", color=line["color"], alpha=0.35)
            middle = [float(np.median(v)) for v in values]
            axes.plot(x, middle, **line)
            labels.append(Label(name, middle[-1], line))
        of_run = f"{results.name}, " if len(runs) > 1 else ""
        axes.set(title=f"{of_run}rows of {length} tokens", xlabel="width of the model")
        points = _published_recall(results, length)
        for i, (name, at, accuracy) in enumerate(points):
            marker = style.PUBLISHED_MARKERS[i % len(style.PUBLISHED_MARKERS)]
            line: dict[str, Any] = {"color": "#909090", "marker": marker, "linestyle": ":"}
            axes.plot(at, accuracy, **line, linewidth=1)
            labels.append(Label(f"{name} (published)", accuracy[-1], line))
            shown |= set(at)
        style.log2_axis(axes.xaxis, list(shown))
        style.percent_axis(axes.yaxis)
        floors = results.floors_by_length.get(length, {})
        style.label_ends(axes, [*labels, *floor_lines(axes, floors)])
    row[0].set_ylabel(ACCURACY)
    return figure


def by_state(results: Results) -> Figure | None:
    """Accuracy against the bytes that a model keeps of a row to go on reading it."""
    sizes = {model: results.evaluations[model]["state_bytes"] for model in results.models}
    if len(set(sizes.values())) < 2:
        return None
    panels = style.panels_of(results.models)
    figure, row = style.new_panels(len(panels))
    style.title(
        figure, f"{results.name}: accuracy by bytes kept of a row of {results.length} tokens"
    )
    for axes, (title, models) in zip(row, panels, strict=True):
        labels = []
        for model in models:
            line = style.line_of(model, results.models, results.settings(model).position)
            scores = results.scores(model, "accuracy")
            at = max(sizes[model], 1)
            axes.plot([at] * len(scores), scores, ".", color=line["color"], alpha=0.4)
            axes.plot(at, np.median(scores), **{**line, "markersize": 7}, markeredgecolor="white")
            label = f"{model}: {style.in_bytes(sizes[model])}"
            labels.append(Label(label, float(np.median(scores)), line))
        axes.set(title=title, xlabel="state kept of a row")
        style.bytes_axis(axes.xaxis, [max(sizes[model], 1) for model in results.models])
        style.percent_axis(axes.yaxis)
        style.label_ends(axes, [*labels, *floor_lines(axes, results.floors)])
    row[0].set_ylabel(ACCURACY)
    return figure


def _floors_by_length(axes: Axes, results: Results, times: list[float]) -> list[Label]:
    """Draws what trivial predictors reach at each length; returns their labels."""
    found = [results.floors_by_length.get(length, {}) for length in results.lengths]
    labels = []
    for name, look in zip(found[0], FLOOR_LINES, strict=False):
        values = [of_length[name].accuracy for of_length in found]
        line: dict[str, Any] = {"color": GREY, "linestyle": look, "marker": ""}
        axes.plot(times, values, **line, linewidth=1.1)
        labels.append(Label(name, values[-1], line))
    return labels


def _published_recall(results: Results, length: int) -> list[tuple[str, list[float], list[float]]]:
    task = results.config.task
    if not isinstance(task, Recall):
        return []
    rows = [r for r in published.RECALL if (r.length, r.pairs) == (length, task.num_pairs)]
    return [
        (
            name,
            [r.width for r in rows if r.model == name],
            [r.accuracy for r in rows if r.model == name],
        )
        for name in dict.fromkeys(row.model for row in rows)
    ]


def _published_lengths(axes: Axes, scores: Sequence[published.ExtrapolationScore]) -> None:
    labels, trained = [], scores[0].trained_length
    for i, name in enumerate(dict.fromkeys(score.model for score in scores)):
        x = [score.length / trained for score in scores if score.model == name]
        y = [score.accuracy for score in scores if score.model == name]
        line: dict[str, Any] = {
            "color": GREY,
            "marker": style.PUBLISHED_MARKERS[i],
            "linestyle": ":",
        }
        axes.plot(x, y, **line, linewidth=1)
        labels.append(Label(name, y[-1], line))
    axes.set_title(f"published: Mamba, table 11, trained at {trained}")
    style.log2_axis(axes.xaxis, [score.length / trained for score in scores], "x")
    axes.set(xlabel="length of the row over that of training")
    style.percent_axis(axes.yaxis)
    style.label_ends(axes, labels)
