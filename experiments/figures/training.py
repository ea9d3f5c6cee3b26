"""How models learn, and what a step of it costs."""

from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from experiments.figures import style
from experiments.figures.style import GREY, Label
from experiments.results import Results


def learning_curves(results: Results) -> Figure | None:
    """Training accuracy of every run, or its error; those of the search in grey."""
    metrics = {model: stages for model, stages in results.metrics.items() if stages.get("fresh")}
    if not metrics:
        return None
    metric = "loss" if results.is_number else "accuracy"
    figure, axes = style.new_grid(len(metrics))
    searched = any(stages.get("search") for stages in metrics.values())
    grey = " (grey: search for the rate)" if searched else ""
    style.title(figure, f"{results.name}: learning curves, a line a seed{grey}")
    for panel, (model, stages) in zip(axes, metrics.items(), strict=True):
        for stage in ("search", "fresh"):
            columns = _curves(stages.get(stage) or [], metric)
            for i, (steps, values) in enumerate(columns):
                if stage == "search":
                    panel.plot(steps, values, color="#b8b8b8", linewidth=0.7, zorder=1)
                    continue
                panel.plot(steps, values, color=style.colour_of(model), linewidth=1.1, alpha=0.85)
                lost = results.runs(model)[i]["status"] == "diverged"
                if lost and steps:
                    panel.plot(steps[-1], values[-1], "X", color="black", markersize=6)
        panel.set_title(model, fontsize=8)
        if results.is_number:
            panel.set_yscale("log")
            panel.yaxis.set_minor_formatter(NullFormatter())
        else:
            style.percent_axis(panel.yaxis)
            panel.axhline(results.threshold, color=GREY, linestyle=":", linewidth=1)
        for floor in list(results.floors.values())[:1]:
            style.horizontal(panel, getattr(floor, metric))
        panel.set_xlim(0, results.config.train.steps)
    unit = "training squared error" if results.is_number else "training accuracy"
    style.outer_labels(figure, "optimiser step", unit)
    return figure


def cost(results: Results) -> Figure | None:
    """Time and temporary memory of a training step on one row, against its length."""
    costs = {m: e["cost"] for m, e in results.evaluations.items() if e["cost"]}
    if not costs or any(len(points) < 2 for points in costs.values()):
        return None
    panels = style.panels_of(list(costs))
    figure, grid = style.pyplot.subplots(
        len(panels), 2, figsize=(10.6, 3.5 * len(panels) + 0.2), sharex=True, squeeze=False
    )
    device = results.folder.environments[-1]["device"] if results.folder.environments else ""
    style.title(figure, f"{results.name}: cost of a training step, per row ({device})")
    for row, (title, models) in zip(grid, panels, strict=True):
        for axes, key, unit, scale in (
            (row[0], "milliseconds", "time (ms / row)", 1.0),
            (row[1], "temporary_bytes", "temporary memory (MB / row)", 1e-6),
        ):
            labels, lengths = [], []
            for model in models:
                line = style.line_of(model, results.models, results.settings(model).position)
                lengths = [point["length"] for point in costs[model]]
                values = [scale * point[key] for point in costs[model]]
                axes.plot(lengths, values, **line)
                labels.append(Label(model, values[-1], line))
            style.log2_axis(axes.xaxis, lengths)
            axes.set(yscale="log", ylabel=unit, title=title)
            style.label_ends(axes, labels, size=7.5)
    for axes in grid[-1]:
        axes.set_xlabel("length of the row (tokens)")
    return figure


def _curves(lines: list[dict[str, Any]], metric: str) -> list[tuple[list[int], list[float]]]:
    """Returns step and value of each run, of the dispatches in which it did something."""
    if not lines:
        return []
    return [
        (
            [line["step"][run] for line in lines if line[metric][run] is not None],
            [line[metric][run] for line in lines if line[metric][run] is not None],
        )
        for run in range(len(lines[0]["step"]))
    ]
