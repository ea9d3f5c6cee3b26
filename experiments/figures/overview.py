"""All runs in one figure."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.figures import style
from experiments.results import Results, mixer_of


def overview(runs: list[Results]) -> Figure | None:
    """Accuracy of every seed, a band a run, a line a mixer: what the search found best of it."""
    if len(runs) < 2:
        return None
    mixers = list(dict.fromkeys(mixer_of(model) for results in runs for model in results.models))
    size = (8.2, 0.62 * len(runs) + 1.3)
    figure, axes = style.pyplot.subplots(figsize=size)
    style.title(figure, "Accuracy at the length of training: every seed, and the median (bar)")
    for row, results in enumerate(runs):
        variants = results.variants()
        for i, mixer in enumerate(mixers):
            if mixer not in variants:
                continue
            y = row + 0.8 * ((i + 0.5) / len(mixers) - 0.5)
            scores = results.scores(variants[mixer][0], "accuracy")
            colour = style.colour_of(mixer)
            axes.plot(scores, [y] * len(scores), "o", color=colour, mew=0, ms=4, alpha=0.6)
            axes.plot(np.median(scores), y, "|", color=colour, ms=6, mew=2)
        for floor in list(results.floors.values())[:1]:
            line = {"color": style.GREY, "linestyle": "--", "linewidth": 1}
            axes.plot([floor.accuracy] * 2, [row - 0.44, row + 0.44], **line)
        if row % 2:
            axes.axhspan(row - 0.5, row + 0.5, color=style.GREY, alpha=0.07, linewidth=0)
    names = [results.name for results in runs]
    axes.set(yticks=range(len(runs)), yticklabels=names, ylim=(len(runs) - 0.5, -0.5))
    axes.grid(visible=False, axis="y")
    style.percent_axis(axes.xaxis)
    dots = [Line2D([], [], marker="o", linestyle="", color=style.colour_of(m)) for m in mixers]
    dots.append(Line2D([], [], color=style.GREY, linestyle="--", linewidth=1))
    figure.legend(dots, [*mixers, "chance"], loc="outside right center", fontsize=8)
    return figure
