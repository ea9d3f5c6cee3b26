"""The choice of a learning rate, and what a sweep leaves behind and takes up again."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from experiments import sweep
from experiments.config import (
    Config,
    EvaluateConfig,
    ModelConfig,
    OptimizerConfig,
    SweepConfig,
    TrainConfig,
)
from experiments.evaluate import Questions
from experiments.records import RunFolder
from experiments.runs import Status
from experiments.sweep import Diverged, choose
from experiments.tasks import Induction

pytestmark = pytest.mark.usefixtures("quick_to_compile")
CONFIG = Config(
    task=Induction(length=8),
    models=("attention", "none"),
    model=ModelConfig(width=8, num_layers=1, num_heads=1),
    optimizer=OptimizerConfig(warmup_steps=2),
    sweep=SweepConfig(learning_rates=(1e-3, 1e-2), tuning_seeds=2, seeds=3),
    train=TrainConfig(steps=8, batch_size=4, steps_per_dispatch=4, checkpoint_every=4),
    evaluate=EvaluateConfig(num_answers=20, batch_size=10, num_probe_rows=4, lengths=(8, 12)),
)


def score(rate, status="finished", steps=100, loss=1.0):
    reached = steps if status == "reached" else None
    return {"learning_rate": rate, "status": status, "reached": reached, "loss": loss}


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ([score(1.0)], 1.0),
        ([score(1.0, loss=2.0), score(2.0, loss=1.0)], 2.0),
        # The median of the losses, not their mean.
        ([score(1.0, loss=x) for x in (1, 1, 9)] + [score(2.0, loss=x) for x in (2, 2, 2)], 1.0),
        # A run that diverges has the greatest loss, whatever was measured on its last good state.
        ([score(1.0, "diverged", loss=0.1), score(2.0, loss=5.0)], 2.0),
        # Runs that reach the aim count before the loss, the more of them the better.
        ([score(1.0, loss=0.1), score(2.0, "reached", loss=0.5)], 2.0),
        (
            [score(1.0, "reached", 10), score(1.0), *2 * [score(2.0, "reached", 90)]],
            2.0,
        ),
        # Of as many, the one that takes far fewer steps; of near ones, the lower.
        ([score(1.0, "reached", 50, 0.1), score(2.0, "reached", 25, 0.2)], 2.0),
        ([score(1.0, "reached", 37, 0.2), score(2.0, "reached", 25, 0.1)], 1.0),
        # Near to the soonest of those by which most have reached it.
        ([score(1.0, "reached", 90), score(1.0), *2 * [score(2.0, "reached", 90)]], 2.0),
        # Alike in all, the lower rate.
        ([score(1.0), score(2.0)], 1.0),
    ],
)
def test_choice_of_a_rate(scores, chosen):
    assert choose(scores) == chosen


@pytest.mark.parametrize(
    ("stop", "status", "right", "first", "expected"),
    [
        (0.999, Status.REACHED, 0.5, 30, 80),  # where it stopped
        (0.999, Status.FINISHED, 1.0, 30, None),
        (None, Status.FINISHED, 1.0, 30, 30),  # it never stops: where training was right
        (None, Status.FINISHED, 0.98, 30, None),  # but is not, on the valid split
        (None, Status.FINISHED, 1.0, None, 80),  # later than was seen in training
        (None, Status.DIVERGED, 1.0, 30, None),
    ],
)
def test_where_a_run_of_a_search_was_where_it_was_to_be(stop, status, right, first, expected):
    class Stage:
        def steps_to(self, accuracy, run):
            assert (accuracy, run) == (0.99, 1)
            return first

    given = types.SimpleNamespace(right=np.arange(100) < 100 * right, scored=np.ones(100, bool))
    config = dataclasses.replace(
        CONFIG, train=dataclasses.replace(CONFIG.train, stop_accuracy=stop)
    )
    assert sweep.reached_after(config, Stage(), 1, status, 80, given) == expected


def watch(*_):
    return lambda _: None


def go(config, parent):
    """The folder of a run with all its models swept."""
    folder = RunFolder.of(config, "run", parent)
    questions = Questions(config, {"train": (), "valid": (), "test": ()})
    for model in config.models:
        sweep.sweep(config, model, folder.model(model), questions, watch)
    return folder


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    return go(CONFIG, tmp_path_factory.mktemp("swept"))


def test_the_search_tries_every_rate_on_seeds_that_are_not_reported(swept):
    for model in CONFIG.models:
        search = swept.model(model).search
        tried = [(run["learning_rate"], run["seed"]) for run in search["runs"]]
        assert sorted(tried) == sorted((r, s) for r in (1e-3, 1e-2) for s in CONFIG.tuning_seeds)
        assert search["chosen"] == choose(search["runs"])
        reported = [run["seed"] for run in swept.model(model).evaluation["runs"]]
        assert reported == [0, 1, 2]
        assert not set(reported) & set(CONFIG.tuning_seeds)


def test_the_reported_runs_have_the_chosen_rate(swept):
    for model in CONFIG.models:
        record = swept.model(model)
        fresh = record.stages()["fresh"]
        assert {run.learning_rate for run in fresh.runs} == {record.search["chosen"]}
        assert record.evaluation["learning_rate"] == record.search["chosen"]


def test_an_evaluation_holds_every_run_at_every_length(swept):
    evaluation = swept.model("attention").evaluation
    assert json.loads(json.dumps(evaluation, allow_nan=False)) == evaluation
    for run in evaluation["runs"]:
        assert run["status"] == "finished"
        assert run["steps"] == 8
        assert list(run["lengths"]) == ["8", "12"]
        for scores in run["lengths"].values():
            assert scores["with_source"]["answers"] == 20
            assert sum(scores["by_distance"]["answers"]) == 20
    assert evaluation["reach"] is None
    assert evaluation["state_bytes"] > 0
    assert evaluation["inside"][0]["attention"] is not None
    assert swept.model("none").evaluation["inside"][0]["attention"] is None
    assert swept.model("none").evaluation["reach"] == 0
    accuracies = [run["lengths"]["8"]["with_source"]["accuracy"] for run in evaluation["runs"]]
    losses = [run["lengths"]["8"]["with_source"]["loss"] for run in evaluation["runs"]]
    assert len(set(losses)) == 3
    assert all(0 <= x <= 1 for x in accuracies)


def test_what_is_done_is_not_done_again(swept, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("worked on")

    for name in ("build_program", "train", "evaluate", "validate"):
        monkeypatch.setattr(sweep, name, fail)
    go(CONFIG, swept.path.parent)


def test_a_search_that_is_done_is_taken_up(swept, monkeypatch, tmp_path):
    """Without its last files, a sweep ends as it was, and without a second search."""
    before = swept.model("attention").evaluation["runs"]
    (swept.path / "attention" / "evaluation.json").unlink()
    # As when it is killed after a checkpoint that it had worked 1,000 seconds for.
    swept.model("attention").write_cost({"seconds": {"train": 1000.0}})
    (swept.path / "attention" / "fresh" / "metrics.jsonl").unlink()
    for checkpoint in (swept.path / "attention" / "fresh" / "checkpoints").iterdir():
        checkpoint.rename(tmp_path / checkpoint.name)
    monkeypatch.setattr(sweep, "validate", None)
    go(dataclasses.replace(CONFIG), swept.path.parent)
    found = swept.model("attention").evaluation
    assert found["runs"] == before
    assert 1000 < found["seconds"]["train"] < 2000


def test_one_rate_is_not_searched_for(tmp_path):
    config = dataclasses.replace(
        CONFIG,
        models=("none",),
        sweep=SweepConfig(learning_rates=(1e-2,), seeds=1),
    )
    folder = go(config, tmp_path)
    assert folder.model("none").search is None
    assert list(folder.model("none").stages()) == ["fresh"]
    assert folder.model("none").evaluation["learning_rate"] == 1e-2


def test_a_stage_without_a_good_run_stops_the_sweep(tmp_path):
    config = dataclasses.replace(
        CONFIG,
        models=("attention",),
        sweep=SweepConfig(learning_rates=(1e30,), seeds=2),
    )
    with pytest.raises(Diverged, match=r"seed 0, rate 1e\+30: step \d.*seed 1, rate 1e\+30: step"):
        go(config, tmp_path)
    (folder,) = tmp_path.iterdir()
    record = RunFolder(folder).model("attention")
    assert not record.is_evaluated
    assert (record.path / "fresh" / "checkpoints").exists()


def test_a_rate_that_diverges_in_the_search_is_not_chosen(tmp_path):
    config = dataclasses.replace(
        CONFIG,
        models=("attention",),
        sweep=SweepConfig(learning_rates=(1e-2, 1e30), tuning_seeds=1, seeds=1),
    )
    record = go(config, tmp_path).model("attention")
    assert [run["status"] for run in record.search["runs"]] == ["finished", "diverged"]
    assert record.search["chosen"] == 1e-2


def test_all_models_read_the_same_rows(swept):
    """The untrained loss of models of one shape, on the first dispatch, is of the same rows."""
    config = dataclasses.replace(CONFIG, models=("attention", "window,window=8"))
    programs = [
        sweep.build_program(config, model, sweep.places_for(config.mesh, 1), ())
        for model in config.models
    ]
    losses = [
        jax.device_get(
            program.dispatch(
                sweep.initial_state(program, [sweep.Run(0, 1e-2)]),
                np.array([0]),
                np.array([1e-2], np.float32),
                (),
            )[1].loss
        )
        for program in programs
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
