"""What is seen inside a trained model: attention maps, blocked sources, reach of gradients."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from experiments.figures import style
from experiments.figures.accuracy import floor_lines, reach_lines
from experiments.figures.style import GREY, Label
from experiments.results import Results

BOX = "#D55E00"
MAX_MAPS = 12
"""Maps in one figure; models beyond are left to the viewer of the page."""
MANY_ANSWERS = 12
"""Answers a row from which sources are drawn as a band, not each in a box."""


def attention_maps(results: Results) -> Figure | None:
    """One row's attention weights in every layer and head, the true sources marked."""
    shown, count = [], 0
    for model, seen in _inside(results).items():
        for example in (seen.get("examples") or [])[:1]:
            maps = unpacked_maps(example)
            count += maps.shape[0] * maps.shape[1]
            if not shown or count <= MAX_MAPS:
                shown.append((model, example, maps, seen))
    if not shown:
        return None
    heads = max(maps.shape[0] * maps.shape[1] for _, _, maps, _ in shown)
    beside = 2 if len(shown) > 2 and heads <= 2 else 1
    rows = -(-len(shown) // beside)
    size = (2.5 * heads * beside + 1.1, 2.5 * rows + 0.7)
    figure, grid = style.pyplot.subplots(rows, heads * beside, figsize=size, squeeze=False)
    style.title(figure, f"{results.name}: attention of one test row, true sources marked")
    panels = grid.reshape(rows * beside, heads)
    for row, (model, example, maps, seen) in zip(panels, shown, strict=False):
        mass = (seen.get("attention") or {}).get("mass_on_source")
        carried = max(results.settings(model).short_convolution - 1, 0)
        for axes, (layer, head) in zip(row, np.ndindex(maps.shape[:2]), strict=False):
            draw_map(axes, maps[layer, head], example, carried)
            title = f"layer {layer + 1}, head {head + 1}"
            if mass is not None:
                title += f": {mass[layer][head]:.2f} on sources"
            axes.set_title(title, fontsize=8.5)
        row[0].set_ylabel(f"{model}\nasking position")
    for axes in grid.flat:
        if not axes.images:
            axes.remove()
    figure.supxlabel("attended position", fontsize=9)
    return figure


def draw_map(axes: Axes, weights: Any, example: dict[str, Any], carried: int) -> None:
    """Draws one map, on a scale of square roots, and marks where its answers can be read."""
    axes.grid(False)
    # Square roots: a look everywhere alike over 64 tokens is .016, invisible on a linear scale.
    axes.imshow(np.sqrt(weights), cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
    pairs = [(x["source"], x["position"]) for x in example["answers"] if x["source"] >= 0]
    before, length = example["source_width"] - 1, len(weights)
    if len(pairs) < MANY_ANSWERS:
        grown = max(length / 90, 0.5)
        for source, position in pairs:
            corner = (source - before - 0.5 - grown, position - 0.5 - grown)
            size = (before + carried + 1 + 2 * grown, 1 + 2 * grown)
            axes.add_patch(
                Rectangle(corner, *size, fill=False, edgecolor=BOX, linewidth=1.1, clip_on=False)
            )
    else:
        x, y = np.array(pairs).T
        for edge in (x - before - 1.0, x + carried + 1.0):
            axes.plot(edge, y, color=BOX, linewidth=0.8)
    axes.set_xlim(-0.5, length - 0.5)
    axes.set_ylim(length - 0.5, -0.5)


def blocked_sources(results: Results) -> Figure | None:
    """Accuracy with all open, the source blocked, hidden from all, as much blocked elsewhere."""
    cases = {m: x for m in results.models if (x := results.blocked(m))}
    if not cases:
        return None
    looks: dict[str, dict[str, Any]] = {
        "open": {},
        "source": {"fill": False, "hatch": "////", "linewidth": 0.8},
        "hidden": {"fill": False, "linewidth": 0.8},
        "elsewhere": {"alpha": 0.4},
    }
    figure, axes = style.pyplot.subplots(figsize=(6.1, 0.8 * len(cases) + 1.8))
    style.title(figure, f"{results.name}: accuracy when a source may not be attended to")
    for row, (model, blocked) in enumerate(cases.items()):
        for i, (case, look) in enumerate(looks.items()):
            y = row + 0.21 * (i - 1.5)
            axes.barh(y, blocked[case], 0.18, color=style.colour_of(model), **look)
            if "fill" in look:
                axes.patches[-1].set_edgecolor(style.colour_of(model))
            axes.text(blocked[case] + 0.008, y, f"{blocked[case]:.0%}", va="center", fontsize=7.5)
    axes.set(yticks=range(len(cases)), yticklabels=list(cases), xlabel="accuracy on probed rows")
    axes.set_ylim(len(cases) - 0.45, -0.55)
    axes.grid(visible=False, axis="y")
    style.percent_axis(axes.xaxis)
    axes.set_xlim(0, 1.08)
    for floor in list(results.floors.values())[:1]:
        axes.axvline(floor.accuracy, color=GREY, linestyle="--", linewidth=1, zorder=0)
    names = (
        "nothing blocked",
        "blocked for its question",
        "for all that comes later",
        "as many other keys, for the question",
    )
    handles = [
        Patch(facecolor=GREY),
        Patch(facecolor="none", edgecolor=GREY, hatch="////"),
        Patch(facecolor="none", edgecolor=GREY),
        Patch(facecolor=GREY, alpha=0.4),
    ]
    figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize=8)
    return figure


def gradient_reach(results: Results) -> Figure | None:
    """How strongly an answer depends on what stands at each distance, before and after training."""
    reaches = {m: s["gradient"] for m, s in _inside(results).items() if s.get("gradient")}
    if not reaches:
        return None
    figure, axes = style.new_grid(len(reaches))
    style.title(
        figure,
        f"{results.name}: share of the answer's gradient by distance, trained and before (grey)",
    )
    lowest = 1.0
    for panel, (model, reach) in zip(axes, reaches.items(), strict=True):
        before, after = (np.array(reach[k]["by_distance"]) for k in ("initial", "trained"))
        for values, colour, width in ((before, GREY, 1.0), (after, style.colour_of(model), 1.8)):
            # What is exactly zero has no logarithm: the line ends there.
            panel.plot(np.where(values > 0, values, np.nan), color=colour, linewidth=width)
            lowest = min(lowest, *values[values > 1e-6], 1.0)
        end = results.reach(model)
        if end is not None and end < len(after):
            panel.axvline(end, color=style.colour_of(model), linestyle=(0, (1, 2)), linewidth=1)
        share = reach["trained"]["share_at_source"]
        panel.set_title(f"{model}\non the source {share:.2f}", fontsize=8)
        panel.set_yscale("log")
    axes[0].set_ylim(max(lowest, 1e-6) / 1.5, 1.0)
    style.outer_labels(figure, "distance before the question (tokens)", "share of gradient norm")
    return figure


def headline(results: Results) -> Figure | None:
    """Accuracy by distance beside the attention of the head that looks at sources most."""
    bins = results.bins()
    models = [model for model, seen in _inside(results).items() if seen.get("attention")]
    if len(bins) < 2 or not models or not _inside(results)[models[0]].get("examples"):
        return None
    figure, (left, right) = style.pyplot.subplots(1, 2, figsize=(10.4, 4.0), width_ratios=(1.5, 1))
    _, shown = style.panels_of(results.models)[0]
    labels = []
    for model in shown:
        line = style.line_of(model, results.models, results.settings(model).position)
        middle = style.medians(results.columns(model, "by_distance", "accuracy"))
        left.plot([(low + high) / 2 for low, high in bins], middle, **line)
        labels.append(Label(model, float(middle[-1]), line))
    left.set(xlabel="distance from question to source (tokens)", ylabel="accuracy")
    left.set_title(f"{results.name}: median of {results.seeds} seeds")
    left.set_xlim(0, bins[-1][1] + 0.5)
    style.percent_axis(left.yaxis)
    reach_lines(left, results, shown, bins[-1][1])
    style.label_ends(left, [*labels, *floor_lines(left, results.floors)])
    seen = _inside(results)[models[0]]
    best, example = seen["attention"]["best"], seen["examples"][0]
    carried = max(results.settings(models[0]).short_convolution - 1, 0)
    draw_map(right, unpacked_maps(example)[best["layer"], best["head"]], example, carried)
    right.set_title(
        f"{models[0]}, layer {best['layer'] + 1}, head {best['head'] + 1}: "
        f"{best['mass']:.2f} of its\nweight on the true sources (boxed)",
        fontsize=8.5,
    )
    right.set(xlabel="attended position (tokens)", ylabel="asking position (tokens)")
    return figure


def unpacked_maps(example: dict[str, Any]) -> Any:
    """Returns the maps of an example, ``[layers, heads, L, L]``."""
    from experiments.probes import unpacked

    return unpacked(example["maps"])


def _inside(results: Results) -> dict[str, dict[str, Any]]:
    """Returns what is seen of each model in the first of its runs."""
    return {m: e["inside"][0] for m, e in results.evaluations.items() if e["inside"]}
