"""Figures are drawn from records alone: records made by hand give pictures with something in."""

import dataclasses
import io
import itertools

import matplotlib.image
import numpy as np
import pytest
from matplotlib import pyplot

from experiments import figures
from experiments.config import EvaluateConfig, ModelConfig, SweepConfig
from experiments.figures import accuracy, inside, scaling, style
from experiments.results import Results
from experiments.tasks import Adding, Recall
from tests.experiments.handmade import make_run, rewrite, small_config

ALL = {"attention": [1.0, 0.995, 0.9], "window": [0.25, 0.5, 0.3]}
MAX_BYTES = 150_000


def load(*arguments, **settings):
    return Results.load(make_run(*arguments, **settings))


def draw(results):
    drawn = figures.draw_all(results)
    assert not pyplot.get_fignums(), "figures were left open"
    for name, caption, png in drawn:
        pixels = matplotlib.image.imread(io.BytesIO(png))[..., :3]
        assert min(pixels.shape[:2]) > 200, name
        assert pixels.std() > 0.02, f"{name} is empty"
        # What is cut off at the edge of the picture leaves ink there.
        edges = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
        assert all(edge.min() > 0.97 for edge in edges), f"{name} is clipped"
        assert len(png) < MAX_BYTES, name
        assert caption.endswith((".", "baseline."))
    return {name for name, _, _ in drawn}


def test_every_figure_that_the_records_hold_something_for(tmp_path):
    drawn = draw(load(tmp_path, small_config(), ALL))
    assert drawn == set(figures.FIGURES) - {"accuracy_by_width", "loss_by_position"}


def test_a_run_of_fifteen_models_of_eight_mixers(tmp_path):
    mixers = list(style.COLOURS)
    models = (*mixers, *(f"{mixer},short_convolution=0" for mixer in mixers[:7]))
    config = small_config(models=models)
    drawn = draw(load(tmp_path, config, {m: [i / 15] * 3 for i, m in enumerate(models)}))
    assert "accuracy_by_distance" in drawn
    panels = style.panels_of(models)
    assert sorted(m for _, group in panels for m in group) == sorted(models)
    assert all(len(group) <= style.MAX_IN_PANEL for _, group in panels)


def test_widths_are_one_line_a_mixer_and_published_points_are_grey(tmp_path):
    models = tuple(f"{mixer},width={w}" for mixer in ("attention", "ssd") for w in (16, 64))
    task = Recall(vocab_size=64, length=64, num_pairs=4)
    config = small_config(
        task=task, models=models, model=ModelConfig(num_heads=1), evaluate=EvaluateConfig()
    )
    values = {model: [0.1 * i, 0.2, 0.3] for i, model in enumerate(models)}
    results = load(tmp_path, config, values, name="recall")
    with pyplot.rc_context(style.STYLE):
        figure = scaling.by_width(results)
    (axes,) = figure.axes
    words = [text.get_text() for text in axes.texts]
    assert {"attention", "ssd", "H3 (published)", "chance"} <= set(words)
    for text in axes.texts:
        is_grey = len(set(matplotlib.colors.to_rgb(text.get_color()))) == 1
        assert is_grey == ("published" in text.get_text() or text.get_text() in results.floors)
    ours = next(x for x in axes.lines if list(x.get_xdata()) == [16, 64] and len(x.get_ydata()) > 1)
    np.testing.assert_allclose(ours.get_ydata(), [0.2, 0.2], atol=0.003)
    pyplot.close(figure)
    longer = dataclasses.replace(config, task=Recall(vocab_size=64, length=128, num_pairs=8))
    runs = [results, load(tmp_path, longer, values, name="longer")]
    assert [drawn.name for drawn in figures.draw_overviews(runs)] == ["overview", "all_widths"]
    with pyplot.rc_context(style.STYLE):
        figure = scaling.by_width_of_all(runs)
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles == ["recall, rows of 64 tokens", "longer, rows of 128 tokens"]
    pyplot.close(figure)


def test_first_and_second_reading_are_drawn_where_some_answers_have_no_source(tmp_path):
    drawn = draw(load(tmp_path, small_config(), ALL, sources="half"))
    assert {"loss_by_position", "accuracy_by_distance"} <= drawn


BLIND = {"attention": None, "blocked": None, "gradient": None}


def test_answers_without_a_source_have_no_distance(tmp_path):
    folder = make_run(tmp_path, small_config(), ALL, sources="none")
    for model in ALL:
        rewrite(folder, model, lambda e: e.update(inside=[BLIND]))
    drawn = draw(Results.load(folder))
    assert "by_seed" in drawn
    assert not drawn & {"accuracy_by_distance", "attention_maps", "blocked_sources"}


def test_numbers_are_drawn_by_their_error(tmp_path):
    config = small_config(task=Adding(length=16), evaluate=EvaluateConfig())
    results = load(tmp_path, config, ALL)
    draw(results)
    with pyplot.rc_context(style.STYLE):
        figure = accuracy.by_seed(results)
    assert [axes.get_xlabel() for axes in figure.axes][1] == "mean squared error"
    pyplot.close(figure)


@pytest.mark.parametrize("finished", [True, False])
def test_one_seed_one_length_a_diverged_run_and_a_model_that_is_missing(tmp_path, finished):
    sweep = SweepConfig(learning_rates=(1e-3,), seeds=1)
    config = small_config(sweep=sweep, evaluate=EvaluateConfig())
    results = load(
        tmp_path,
        config,
        {"attention": [0.5]},
        statuses={"attention": ["diverged"]},
        finished=finished,
    )
    assert "accuracy_by_length" not in draw(results)


def test_nothing_is_drawn_of_a_run_without_an_evaluation(tmp_path):
    results = load(tmp_path, small_config(), {}, finished=False)
    assert figures.draw_all(results) == []
    assert figures.draw_headline([results]) is None
    assert figures.draw_overviews([results, results]) == []


def test_the_end_of_a_receptive_field_is_drawn_where_it_is(tmp_path):
    config = small_config(model=ModelConfig(window=2, num_layers=2, short_convolution=0))
    results = load(tmp_path, config, ALL)
    with pyplot.rc_context(style.STYLE):
        figure = accuracy.by_distance(results)
    (axes,) = figure.axes
    # Each of two layers sees one token back.
    assert "window reaches 2" in [text.get_text() for text in axes.texts]
    assert [2, 2] in [list(line.get_xdata()) for line in axes.lines]
    pyplot.close(figure)


def test_blocked_sources_are_of_all_seeds(tmp_path):
    folder = make_run(tmp_path, small_config(), ALL)

    def change(evaluation):
        for n, seen in enumerate(evaluation["inside"]):
            seen["blocked"]["hidden"] = (0.3, 0.1, 0.2)[n]

    rewrite(folder, "attention", change)
    figure = inside.blocked_sources(Results.load(folder))
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert widths == pytest.approx([0.9, 0.125, 0.2, 0.875, 0.9, 0.125, 0.0625, 0.875])


def test_boxes_stand_at_true_sources(tmp_path):
    results = load(tmp_path, small_config(), ALL)
    example = results.evaluations["attention"]["inside"][0]["examples"][0]
    figure, axes = pyplot.subplots()
    inside.draw_map(axes, np.eye(16), example, carried=2)
    (box,) = axes.patches  # of two answers one has a source
    x, y, width, height = box.get_x(), box.get_y(), box.get_width(), box.get_height()
    grown = 0.5
    assert (x, width) == (3 - 0.5 - grown, 3 + 2 * grown)  # source 3, carried to 5
    assert (y, height) == (15 - 0.5 - grown, 1 + 2 * grown)
    pyplot.close(figure)


def test_all_runs_in_one_figure_and_a_headline(tmp_path):
    runs = [load(tmp_path, small_config(seed=s), ALL, name=f"run{s}") for s in range(2)]
    assert figures.draw_overviews(runs[:1]) == []
    (over_all,) = figures.draw_overviews(runs)
    assert over_all.name == "overview"
    for png in (over_all.png, figures.draw_headline(runs)):
        assert matplotlib.image.imread(io.BytesIO(png)).std() > 0.02


def test_a_mixer_has_one_colour_and_its_variants_differ_in_line_or_marker():
    models = ["attention", "attention,position=rotary", "gru", "attention,short_convolution=0"]
    lines = [
        style.line_of(model, models, p)
        for model, p in zip(models, ("none", "rotary", "none", "none"), strict=True)
    ]
    assert len({line["color"] for line in lines}) == 2
    looks = {(line["color"], line["linestyle"], line["marker"]) for line in lines}
    assert len(looks) == len(models)
    assert style.line_of("gru", ["gru", "attention"], "none") == lines[2]
    assert len(set(style.COLOURS.values())) == len(style.COLOURS)


@pytest.mark.parametrize(
    "values", [[0.5], [0.0, 0.0, 0.0], [0.1, 0.11, 0.9, 1.0, 1.0], [1.0] * 5, list(np.zeros(30))]
)
def test_labels_stand_apart_in_order_and_near_their_ends(values):
    gap = 0.05
    places = style.spread(values, gap)
    assert all(b - a >= gap - 1e-9 for a, b in itertools.pairwise(places))
    assert places[0] >= -1e-9
    if len(values) * gap <= 1:
        assert places[-1] <= 1 + 1e-9
        # No other places that keep to the same bounds move less: compare with many of them.
        rng = np.random.default_rng(0)
        cost = np.sum(np.subtract(places, values) ** 2)
        for _ in range(200):
            other = np.sort(rng.random(len(values))) * (1 - gap * (len(values) - 1))
            other += gap * np.arange(len(values))
            assert np.sum((other - values) ** 2) >= cost - 1e-9


def test_names_without_a_style_get_one_each():
    mixers = ["mamba", "hyena", "rwkv"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "MIXERS", dict.fromkeys(mixers))
        assert len({style.colour_of(mixer) for mixer in mixers}) == 3
        patch.setattr(style, "POSITIONS", {"fire": None, "kerple": None})
        markers = [style.line_of("attention", ["attention"], x)["marker"] for x in style.POSITIONS]
        assert len({*markers, "o"}) == 3
    assert style.colour_of("not registered") in style.SPARE_COLOURS
