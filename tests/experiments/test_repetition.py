"""``python -m experiments.repetition``: what falls inside, what does not, and what it refuses."""

import dataclasses

import pytest

from experiments import statistics
from experiments.config import TrainConfig
from experiments.repetition import compare, main
from experiments.results import Results
from tests.experiments.handmade import make_run, small_config

FIRST = {"attention": [0.98, 0.985, 1.0], "window": [0.30, 0.31, 0.32]}
LIKE = {"attention": [1.0, 0.98, 0.98], "window": [0.32, 0.30, 0.305]}
UNLIKE = {"attention": [1.0, 1.0, 1.0], "window": [0.9, 0.91, 0.9]}


def pair(tmp_path, accuracies, **changes):
    """The first run and one with other seeds."""
    first = make_run(tmp_path / "first", small_config(), FIRST)
    again = make_run(tmp_path / "again", small_config(seed=50, **changes), accuracies)
    return first, again


def test_every_figure_is_that_of_the_page(tmp_path):
    first, again = map(Results.load, pair(tmp_path, LIKE))
    every = list(compare(first, again))
    attention, window = ([x for x in every if x.model == model] for model in FIRST)
    assert all(x.run == "induction" and x.same_rate and x.is_inside for x in every)
    kinds = ["successes", *["accuracy", "loss"] * 2]
    assert [x.kind for x in attention] == kinds
    assert [x.kind for x in window] == [*kinds, "difference", "difference"]
    successes, short, _, long, _ = attention
    assert successes.interval == statistics.repeated_successes(1, 3)
    assert successes.found == 1
    assert short.interval == first.mean("attention")[1]
    assert long.interval == first.mean("attention", length=32)[1]
    assert long.found == again.mean("attention", length=32)[0]
    difference = window[-2]
    assert difference.interval == pytest.approx((-0.68848, -0.66819), abs=1e-4), "by hand"
    assert difference.found == pytest.approx(0.925 / 3 - 2.96 / 3, abs=0.005)


def test_wider_intervals_are_of_means_alone(tmp_path):
    first, again = map(Results.load, pair(tmp_path, UNLIKE))
    found = [list(compare(first, again, wider)) for wider in (1.0, 50.0)]
    ends = [[x.interval for x in every if x.kind == "loss"] for every in found]
    assert all(high < wide for (_, high), (_, wide) in zip(*ends, strict=True))
    others = [[x for x in every if x.kind in ("successes", "difference")] for every in found]
    assert others[0] == others[1]


def test_the_command_names_what_fell_elsewhere(tmp_path, capsys):
    first, again = pair(tmp_path, UNLIKE)
    assert main([str(first.path), str(again.path.parent)]) == 0
    *lines, header, one, every = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert all(line.startswith("induction: window: ") for line in lines)
    assert lines[0].startswith("induction: window: accuracy at 16 is 0.9033, expected in [0.2")
    assert "difference of accuracy from attention is -0.09" in lines[4]
    assert header.split() == ["run", "rate", "successes", "accuracy", "loss", "difference"]
    assert " ".join(one.split()) == "induction same 2 of 2 2 of 4 2 of 4 0 of 2"
    assert every.split() == ["all", *one.split()[1:]]


def test_a_model_at_another_rate_is_counted_apart(tmp_path, capsys):
    first, again = pair(tmp_path, UNLIKE)
    path = again.path / "window" / "evaluation.json"
    path.write_text(path.read_text().replace('"learning_rate": 0.01', '"learning_rate": 0.001'))
    assert main([str(first.path), str(again.path)]) == 0
    *lines, _, same, another, _, _ = capsys.readouterr().out.splitlines()
    assert all(line.endswith(", at another rate") for line in lines)
    assert " ".join(same.split()) == "induction same 1 of 1 2 of 2 2 of 2 0 of 0"
    assert " ".join(another.split()) == "induction another 1 of 1 0 of 2 0 of 2 0 of 2"


def test_a_difference_is_of_two_rates(tmp_path):
    first, again = pair(tmp_path, LIKE)
    path = again.path / "attention" / "evaluation.json"
    path.write_text(path.read_text().replace('"learning_rate": 0.01', '"learning_rate": 0.001'))
    for x in compare(*map(Results.load, (first, again))):
        assert x.same_rate == (x.model == "window" and x.kind != "difference")


def test_what_only_one_has_is_left_out(tmp_path, capsys):
    first, again = pair(tmp_path, {"window": LIKE["window"]}, models=("window",), claim="Other.")
    found = list(compare(*map(Results.load, (first, again))))
    assert {x.model for x in found} == {"window"}
    assert len(found) == 5, "what it is compared with is not there"
    other = make_run(tmp_path / "other", small_config(seed=50), LIKE, name="recall")
    assert main([str(first.path), str(other.path)]) == 1
    assert "has no model of a run of" in capsys.readouterr().err


def test_runs_of_other_settings_or_of_the_same_seeds_are_refused(tmp_path, capsys):
    train = dataclasses.replace(small_config().train, steps=80)
    assert isinstance(train, TrainConfig)
    first, longer = pair(tmp_path, LIKE, train=train)
    assert main([str(first.path), str(longer.path)]) == 1
    assert "train is {'steps': 80" in capsys.readouterr().err
    assert main([str(first.path), str(first.path)]) == 1
    assert "seeds [0, 1, 2] are those of the first run" in capsys.readouterr().err
    assert main([str(first.path), str(tmp_path / "none")]) == 1
    assert "is no run folder" in capsys.readouterr().err
