"""Tables and facts say what the records say, computed here a second time."""

import json
import math
import os
import re

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from experiments import report
from experiments.config import EvaluateConfig, ModelConfig, SweepConfig
from experiments.report import words
from experiments.report.facts import noted
from experiments.results import WIDER, Results
from experiments.tasks import Adding, Induction, Recall, StringCopy
from tests.experiments.handmade import make_run, rewrite, small_config
from tests.experiments.report.reading import (
    ALL,
    Page,
    facts,
    markdown_tables,
    row_of,
    wilson,
    write,
)


def test_the_table_of_models_says_what_the_records_say(tmp_path):
    folder = make_run(tmp_path, small_config(), ALL)
    text, markdown = write(tmp_path, folder)
    table = Page(text).tables[0]
    for model, accuracies in ALL.items():
        row = row_of(table, model)
        low, high = wilson(sum(a >= 0.99 for a in accuracies), 3)
        successes = f"{sum(a >= 0.99 for a in accuracies)}/3 [{low:.2f}, {high:.2f}]"
        assert row["runs at 99% [Wilson 95 %]"] == successes.replace("-0.00", "0.00")
        others = {2: "0 to 3", 0: "0 to 2"}
        assert row["of as many others"] == others[sum(a >= 0.99 for a in accuracies)]
        assert row["every seed"] == " ".join(f"{a:.3f}" for a in accuracies)
        assert row["median accuracy"] == f"{sorted(accuracies)[1]:.3f}"
        low, high = of_other_seeds(accuracies, WIDER)
        answers = 3 * asked(folder, model)["answers"]
        least, most = wilson(np.mean(accuracies) * answers, answers)
        ends = (words.share(x) for x in (max(min(low, least), 0), min(max(high, most), 1)))
        mean = f"{np.mean(accuracies):.3f} [{', '.join(ends)}]"
        assert row["mean accuracy [of other seeds, 95 %]"] == mean
        # A right answer costs .1 bits and a wrong one 3: see handmade.answers.
        losses = sorted(0.1 * a + 3.0 * (1 - a) for a in accuracies)
        assert row["median bits / answer"] == f"{losses[1]:.3g}"
        low, high = of_other_seeds(losses, WIDER)
        mean = f"{np.mean(losses):.3g} [{max(low, 0):.3g}, {high:.3g}]"
        assert row["mean loss [of other seeds, 95 %]"] == mean
        assert row["rate"] == "0.01 (edge)"
        assert row["parameters"] == "1,234"
    # Curves rise in a line to the accuracy after 40 steps, seen every 10.
    assert row_of(table, "attention")["steps to 99% in training"] == "40"
    assert row_of(table, "window")["steps to 99% in training"] == "> 40"
    chance = row_of(table, "floor: chance")
    assert chance["median accuracy"] == f"{1 / 16:.3f}"
    assert chance["median bits / answer"] == f"{math.log2(16):.3g}"
    first = markdown_tables(markdown)[0]
    plain = [[cell.replace("&lt;", "<") for cell in row] for row in first]
    assert [plain[0], *plain[2:]] == table


def of_other_seeds(values, wider=1.0):
    half = wider * stats.t.ppf(0.975, 2) * np.std(values, ddof=1) * np.sqrt(2 / 3)
    return np.mean(values) - half, np.mean(values) + half


def asked(folder, model):
    return Results.load(folder).asked(model)[0]["with_source"]


def test_seeds_that_agree_leave_an_interval(tmp_path):
    values = {"attention": [1.0] * 3, "window": [0.5] * 3}
    folder = make_run(tmp_path, small_config(), values)
    results = Results.load(folder)
    answers = 3 * asked(folder, "attention")["answers"]
    assert results.mean("attention") == (1.0, pytest.approx(wilson(answers, answers)))
    mean, (low, high) = results.mean("window")
    assert (mean, low, high) == (0.5, *map(pytest.approx, wilson(answers / 2, answers)))
    # Of what no answers are counted for, seeds alone speak.
    assert results.mean("window", "loss")[1] == pytest.approx((1.55, 1.55))


def test_differences_are_paired_by_seed(tmp_path):
    folder = make_run(tmp_path, small_config(), ALL)
    table = next(t for t in Page(write(tmp_path, folder)[0]).tables if t[0][0] == "difference")
    row = row_of(table, "window minus attention")
    differences = np.subtract(ALL["window"], ALL["attention"])
    low, high = of_other_seeds(differences)
    assert row["accuracy [95 %]"] == f"{differences.mean():+.3g} [{low:.2f}, {high:.2f}]"
    assert row["sign test p"] == "0.25"  # three of three: 2 / 2^3
    assert row["pairs"] == "3"


def test_differences_are_of_models_of_one_width(tmp_path):
    models = ("attention", "attention,width=16", "window", "window,width=16", "gru,width=8")
    values = {model: [0.9 - 0.1 * i] * 3 for i, model in enumerate(models)}
    config = small_config(models=models, model=ModelConfig(width=32))
    folder = make_run(tmp_path, config, values)
    table = next(t for t in Page(write(tmp_path, folder)[0]).tables if t[0][0] == "difference")
    assert [row[0] for row in table[1:]] == [
        "window minus attention",
        "window,width=16 minus attention,width=16",
        "gru,width=8 minus attention",
    ]


def test_tables_by_length_and_distance(tmp_path):
    folder = make_run(tmp_path, small_config(), ALL)
    tables = Page(write(tmp_path, folder)[0]).tables
    by_length = next(t for t in tables if t[0] == ["model", "16", "32"])
    results = Results.load(folder)
    of_lengths = [results.mean("attention", "accuracy", n) for n in (16, 32)]
    assert by_length[1][1:] == [words.mean(x, "accuracy") for x in of_lengths]
    assert by_length[1][2].startswith("0.965 [0.5"), "the mean of .900, .995 and 1, and its spread"
    header = ["model", *(f"{a}-{b}" if b > a else str(a) for a, b in results.bins())]
    by_distance = next(t for t in tables if t[0] == header)
    seeds = [a["by_distance"]["accuracy"] for a in results.asked("attention")]
    expected = [f"{sorted(column)[1]:.3f}" for column in zip(*seeds, strict=True)]
    assert row_of(by_distance, "attention") == dict(
        zip(header, ["attention", *expected], strict=True)
    )


def test_whole_rows_by_length(tmp_path):
    folder = make_run(tmp_path, small_config(), ALL)
    tables = Page(write(tmp_path, folder)[0]).tables
    table = [t for t in tables if t[0] == ["model", "16", "32"]][1]
    results = Results.load(folder)
    for model in ALL:
        for n in (16, 32):
            whole = sorted(asked["rows_right"] for asked in results.asked(model, n))
            least, middle, most = map(words.share, whole)
            ends = "" if least == most else f" ({least}-{most})"
            assert row_of(table, model)[str(n)] == middle + ends


def test_the_budget_is_of_all_starts_and_of_all_models(tmp_path):
    config = small_config()
    first, second = (make_run(tmp_path, config, ALL, name=x) for x in ("first", "second"))
    text, _ = write(tmp_path, first, second)
    # Two rates on each tuning seed and three fresh seeds, of 40 steps each: see handmade.
    runs = 2 * config.sweep.tuning_seeds + 3
    tokens = runs * 40 * config.train.batch_size * config.task.length
    table = next(t for t in Page(text).tables if "seconds to train" in t[0])
    assert [row[0] for row in table[1:]] == [*ALL, "all"]
    for row, times in zip(table[1:], (1, 1, 2), strict=True):
        assert row[1:4] == [f"{times * x:,}" for x in (runs, runs * 40, tokens)]
        assert row[4:] == [f"{times * x:.0f}" for x in (12.3, 4.5)]
    # 4 x (12.3 + 4.5) seconds.
    assert "0 h 1 min of training and evaluation" in text


def test_what_is_seen_inside_is_of_all_seeds(tmp_path):
    folder = make_run(tmp_path, small_config(), ALL)

    def change(evaluation):
        for n, seen in enumerate(evaluation["inside"]):
            seen["blocked"]["source"] = (0.3, 0.1, 0.2)[n]
            seen["gradient"]["trained"]["norm"] = (4.0, 9.0, 5.0)[n]

    rewrite(folder, "attention", change)
    table = next(t for t in Page(write(tmp_path, folder)[0]).tables if "weight on source" in t[0])
    row = row_of(table, "attention")
    assert row["seeds"] == "3"
    assert row["source blocked"] == "0.200 (0.100-0.300)"
    assert row["accuracy, open"] == "0.900"
    assert row["trained"] == "0.450, uniform 0.062"
    assert row["gradient norm, initial and trained"] == "0.5, 5"


def test_what_lies_beyond_the_reach_is_marked(tmp_path):
    config = small_config(model=small_config().model.__class__(window=2, short_convolution=0))
    folder = make_run(tmp_path, config, ALL)
    tables = Page(write(tmp_path, folder)[0]).tables
    by_distance = next(t for t in tables if t[0][1] == "1")
    window = row_of(by_distance, "window")
    assert all((value[0] == "(") == (int(low) > 2) for low, value in list(window.items())[1:])
    assert all(value[0] != "(" for value in row_of(by_distance, "attention").values())
    assert "Beyond its reach of 2 tokens window answers" in facts(folder)


def test_what_contradicts_or_fails_is_noted(tmp_path):
    worse = {"attention": [0.9, 0.8, 0.91], "window": [1.0, 0.93, 0.9]}
    statuses = {"window": ["finished", "diverged", "finished"]}
    folder = make_run(tmp_path, small_config(), worse, statuses=statuses)
    sentences = facts(folder)
    for sentence in (
        "window has the higher median accuracy (0.930 against 0.900) and the lower median loss "
        "(0.303 against 0.39 bits / answer) than attention.",
        "No run of these reached 99%: attention.",
        "The seeds of window disagree: 1 of 3 reached 99%; accuracy 0.900 to 1.000.",
        "1 of 3 fresh runs of window diverged (seed 1).",
        "The chosen learning rate is at the edge of those tried: attention (0.01); window (0.01).",
        "At 32 tokens these have the higher median accuracy than attention (0.900): window 0.930.",
        "3 seeds a model",
    ):
        assert sentence in sentences
    text, markdown = write(tmp_path, folder)
    visible = re.sub(r"<details.*?</details>", "", text, flags=re.DOTALL)
    assert "1 of 3 fresh runs of window diverged" in visible
    assert "1 of 3 fresh runs of window diverged" in markdown
    assert "0.930 (diverged)" in row_of(Page(text).tables[0], "window")["every seed"]


def test_a_diverged_run_is_no_success_however_well_it_did_before(tmp_path):
    values = {"attention": [1.0, 1.0, 1.0], "window": [1.0, 1.0, 1.0]}
    statuses = {"window": ["diverged", "finished", "diverged"]}
    results = Results.load(make_run(tmp_path, small_config(), values, statuses=statuses))
    assert results.success("attention").successes == 3
    assert results.success("window").successes == 1
    assert results.success("window").trials == 3


def test_what_the_search_had_and_fresh_seeds_have_not_is_noted(tmp_path):
    folder = make_run(tmp_path, small_config(), {"attention": [1.0] * 3, "window": [0.3] * 3})
    assert "the search had" not in facts(folder)
    path = folder.model("window").path / "search.json"
    found = json.loads(path.read_text())
    for run in found["runs"]:
        run["accuracy"] = 0.85
    path.write_text(json.dumps(found))
    assert (
        "At the rate that was chosen for window the search had accuracy 0.850, 0.850 on valid "
        "rows, its fresh seeds 0.300 to 0.300 on test rows."
    ) in facts(folder)


def test_what_is_known_without_the_source_is_noted(tmp_path):
    folder = make_run(tmp_path, small_config(), ALL)
    assert "third position" not in facts(folder)
    assert "hidden" not in facts(folder)

    def change(evaluation):
        for seen in evaluation["inside"]:
            seen["blocked"].update(source=source, hidden=hidden, answers=100)

    source, hidden = 0.8, 0.4
    rewrite(folder, "attention", change)
    assert "is left: attention (0.800). There it goes through a third position." in facts(folder)
    assert "above the highest floor: attention (0.400)." in facts(folder)
    source, hidden = 0.8, 0.75  # of what does not use its source anyhow
    rewrite(folder, "attention", change)
    assert "third position" not in facts(folder)
    assert "above the highest floor: attention (0.750)." in facts(folder)


def test_few_answers_are_noted(tmp_path):
    few = EvaluateConfig(num_answers=2_000)
    folder = make_run(tmp_path, small_config(evaluate=few), ALL)
    assert "asked 2,000 answers of a length, fewer than 10,000." in facts(folder)


def test_a_row_cannot_be_right_whose_answers_have_no_source(tmp_path):
    folder = make_run(tmp_path, small_config(), ALL, sources="half")
    tables = Page(write(tmp_path, folder)[0]).tables
    assert row_of(tables[0], "attention")["whole rows"] == "-"
    assert len([t for t in tables if t[0] == ["model", "16", "32"]]) == 1, "accuracy alone"


def test_rows_that_are_asked_otherwise_than_trained_are_described(tmp_path):
    config = small_config(task=StringCopy(max_characters=8), evaluate=EvaluateConfig())
    text, _ = write(tmp_path, make_run(tmp_path, config, ALL))
    assert "The test rows are those of string copy: 8 to 8 letters of 26" in text
    assert "The test rows are" not in write(tmp_path, make_run(tmp_path, small_config(), ALL))[0]


def test_nothing_is_noted_that_is_not_so(tmp_path):
    values = {"attention": [1.0] * 6, "window": [0.05] * 6}
    sweep = SweepConfig(learning_rates=(1e-4, 1e-3, 1e-2), tuning_seeds=2, seeds=6)
    folder = make_run(tmp_path, small_config(sweep=sweep), values)
    for model in values:
        rewrite(folder, model, lambda e: e.update(learning_rate=1e-3))
    assert noted(Results.load(folder)) == ["No run of these reached 99%: window."]


@pytest.mark.parametrize("status", ["finished", "diverged"])
def test_steps_to_the_threshold_are_censored(tmp_path, status):
    """A run that diverged early would not have got there either."""
    statuses = {"attention": ["finished", status, status]}
    folder = make_run(tmp_path, small_config(), {"attention": [1.0, 0.5, 0.5]}, statuses=statuses)
    steps = Results.load(folder).steps_to_threshold("attention")
    assert steps.median is None
    assert steps.shares == pytest.approx((2 / 3,))
    assert "&gt; 40" in write(tmp_path, folder)[0]


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (Recall(vocab_size=64, length=64, num_pairs=4), "H3 (published), L 64, P 4"),
        (Induction(length=16), "MHA-RoPE (published)"),
        (Adding(length=16), "LSTM (published)"),
        (StringCopy(max_characters=8), "100 times fewer samples"),
    ],
)
def test_published_numbers_stand_beside_ours_and_are_marked(tmp_path, task, expected):
    config = small_config(task=task, evaluate=EvaluateConfig())
    _, markdown = write(tmp_path, make_run(tmp_path, config, ALL))
    assert expected in markdown
    assert "Published" in markdown


def test_numbers_are_squared_errors(tmp_path):
    config = small_config(task=Adding(length=16), evaluate=EvaluateConfig())
    text, _ = write(tmp_path, make_run(tmp_path, config, ALL))
    assert "median squared error" in Page(text).tables[0][0]
    assert "off by less than 0.04" in text


def test_one_seed_has_no_interval_but_over_rows(tmp_path):
    sweep = SweepConfig(learning_rates=(1e-3,), seeds=1)
    folder = make_run(tmp_path, small_config(sweep=sweep), {"attention": [1.0], "window": [0.5]})
    text, _ = write(tmp_path, folder)
    row = row_of(Page(text).tables[0], "window")
    low, high = asked(folder, "window")["accuracy_interval"]
    assert low < 0.5 < high
    assert row["mean accuracy [of other rows, 95 %]"] == f"0.500 [{low:.3f}, {high:.3f}]"
    assert "[none of one]" in text, "of differences between seeds"
    assert "nan" not in text.lower().split("<script")[0].split("base64")[0]
    assert "One learning rate, 0.001, was used for every model" in facts(folder)


def test_the_summary_of_several_runs(tmp_path):
    variants = ("attention", "attention,position=rotary", "window")
    values = {"attention": [0.5] * 3, "attention,position=rotary": [1.0] * 3, "window": [0.3] * 3}
    first = make_run(tmp_path, small_config(models=variants), values, name="first")
    # The search, not what is reported, says which variant a summary shows.
    path = first.model("attention,position=rotary").path / "search.json"
    path.write_text(path.read_text().replace('"accuracy": 1.0', '"accuracy": 0.4'))
    second = make_run(tmp_path, small_config(), ALL, name="second")
    table = Page(write(tmp_path, first, second)[0]).tables[0]
    assert table[0] == ["task", "attention", "window", "chance"]
    none, two = (words.interval(wilson(n, 3)) for n in (0, 2))
    of_window = f"0/3 {none} 0.300"
    assert table[1] == ["first", f"0/3 {none} 0.500 (of 2)", of_window, "0.062"]
    assert table[2] == ["second", f"2/3 {two} 0.995", of_window, "0.062"]


def test_the_summary_compares_mixers_of_one_width(tmp_path):
    models = ("attention", "attention,width=16", "window,width=16")
    values = {"attention": [0.5] * 3, "attention,width=16": [0.9] * 3, "window,width=16": [0.3] * 3}
    config = small_config(models=models, model=ModelConfig(width=32))
    first = make_run(tmp_path, config, values, name="first")
    second = make_run(tmp_path, small_config(), ALL, name="second")
    _, row, _ = Page(write(tmp_path, first, second)[0]).tables[0]
    assert row[1].endswith(" 0.500")
    assert row[2].endswith(" 0.300 (width=16)")


def test_a_terminal_table_fits_in_a_hundred_columns(tmp_path):
    models = ("attention,position=rotary", "long_convolution,short_convolution=0")
    values = {model: [0.99951, 0.5, 0.3] for model in models}
    config = small_config(models=models)
    folder = make_run(tmp_path, config, values, statuses={models[1]: ["diverged"] * 3})
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(report.terminal_table(folder))
    console.file.close()
    text = console.export_text()
    for words_ in ("attention,position=rotary", "1/3", "0.01!", "floor: chance"):
        assert words_ in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("ends", "printed"),
    [
        ((0.5, 1.0), "[0.50, 1.00]"),
        ((-0.013, -0.009), "[-0.0130, -0.0090]"),
        ((0.99912, 0.99937), "[0.99912, 0.99937]"),
        ((1.0, 1.0), "[1.00, 1.00]"),
        ((-math.inf, math.inf), "[none of one]"),
    ],
)
def test_an_interval_is_printed_so_that_its_ends_differ(ends, printed):
    assert words.interval(ends) == printed


@pytest.mark.parametrize(
    ("value", "printed"),
    [(1.0, "1.000"), (0.0, "0.000"), (0.99951, "0.99951"), (0.0004, "0.00040"), (0.5, "0.500")],
)
def test_what_is_not_quite_one_is_not_printed_as_one(value, printed):
    assert words.share(value) == printed
