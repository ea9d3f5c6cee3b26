"""What a run folder survives: kills between any two writes, and within one."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import experiments.records
import experiments.tasks.corpus
from experiments.config import Config, ModelConfig, SweepConfig, to_dict
from experiments.mesh import MeshConfig, of_states
from experiments.records import (
    ModelRecord,
    RunFolder,
    StageRecord,
    read_json,
    write_json,
    write_text,
)
from experiments.runs import Run, Status, places_for
from experiments.tasks import Induction, RepeatedText
from experiments.train import StepMetrics, TrainState

RUNS = (Run(3, 0.1), Run(4, 0.1), Run(3, 0.2))


def make_state(*steps: int, status: int = Status.RUNNING, num_slots: int = 4, seed: int = 0):
    """States of three runs that have done these steps (one number for all of them)."""
    steps = (steps * len(RUNS))[: len(RUNS)]
    places = [*steps, *[0] * (num_slots - len(steps))]

    def stack(*shape):
        rngs = [np.random.default_rng([seed, step, place]) for place, step in enumerate(places)]
        return np.stack([rng.normal(size=shape).astype(np.float32) for rng in rngs])

    state = TrainState(
        np.array(places, np.int32),
        np.full(num_slots, status, np.int32),
        {"layer": {"kernel": stack(3, 2)}},
        (stack(6), (), np.array(places, np.int32)),
    )
    mesh = places_for(MeshConfig(), num_slots).mesh
    return jax.device_put(state, of_states(mesh, state))


def make_metrics(*steps: int, num_slots: int = 4) -> StepMetrics:
    """Metrics of a dispatch that ends at these steps."""
    steps = (steps * len(RUNS))[: len(RUNS)]
    rng = np.random.default_rng(steps)
    columns = rng.normal(size=(3, num_slots)).astype(np.float32)
    places = np.array([*steps, *[0] * (num_slots - len(steps))], np.int32)
    return StepMetrics(places, np.full(num_slots, Status.RUNNING, np.int32), *columns)


def assert_same(left: TrainState, right: TrainState, num_runs: int = len(RUNS)):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a[:num_runs], b[:num_runs])
        assert a.dtype == b.dtype


@pytest.fixture
def record(tmp_path):
    return ModelRecord(tmp_path).stage("fresh", list(RUNS))


@pytest.fixture
def stopped(record):
    """A record with checkpoints at 2 and 4 and metrics of dispatches that end at 2, 4 and 6."""
    for step in (2, 4, 6):
        record.append(make_metrics(step))
        if step < 6:
            record.save(make_state(step))
    return record


def recorded_steps(record):
    return [line["step"] for line in record.metrics()]


def test_a_new_record_starts_blank(record):
    blank = make_state(0, seed=1)
    assert record.resume(blank) is blank
    assert record.metrics() == []
    assert record.steps_to(0.0, 0) is None


def test_resuming_restores_the_last_checkpoint_bitwise(stopped):
    blank = make_state(0, seed=1)
    state = stopped.resume(blank)
    assert_same(state, make_state(4))
    for new, old in zip(jax.tree.leaves(state), jax.tree.leaves(blank), strict=True):
        assert new.shape == old.shape
        assert new.sharding == old.sharding
        np.testing.assert_array_equal(new[3:], old[3:])


@pytest.mark.parametrize("num_slots", [3, 5, 8])
def test_states_are_restored_onto_another_number_of_places(stopped, num_slots):
    blank = make_state(0, num_slots=num_slots, seed=1)
    state = stopped.resume(blank)
    assert_same(state, make_state(4))
    assert_same(jax.tree.map(lambda x: x[3:], state), jax.tree.map(lambda x: x[3:], blank), 8)
    assert all(x.shape[0] == num_slots for x in jax.tree.leaves(state))
    stopped.save(make_state(6, num_slots=num_slots))
    assert_same(stopped.resume(make_state(0)), make_state(6))


def test_metrics_are_as_they_were_measured(record):
    metrics = make_metrics(4, 3, 4)
    record.append(metrics)
    record.append(make_metrics(6))
    line, _ = record.metrics()
    assert line["step"] == [4, 3, 4]
    assert line["status"] == [Status.RUNNING] * 3
    for name, column in metrics._asdict().items():
        np.testing.assert_allclose(line[name], column[:3], rtol=1e-5)


def test_what_is_not_a_number_is_none(record):
    metrics = make_metrics(4, 2, 4)
    loss = np.array([1.5, np.nan, np.inf, 7.0], np.float32)
    status = np.array([Status.RUNNING, Status.REACHED, Status.DIVERGED, 0], np.int32)
    record.append(metrics._replace(loss=loss, status=status))
    (line,) = record.metrics()
    assert line["loss"] == [1.5, None, None]
    assert line["status"] == [0, 2, 3]
    assert "NaN" not in (record.path / "metrics.jsonl").read_text()


def test_steps_to_an_accuracy_are_of_one_run_and_the_first(record):
    columns = {2: [0.1, 0.2, np.nan], 4: [0.5, 0.2, np.nan], 6: [np.nan, 0.9, 0.4], 8: [0.7, 0, 0]}
    for step, accuracy in columns.items():
        metrics = make_metrics(step, step - 1, step)
        record.append(metrics._replace(accuracy=np.float32([*accuracy, 1.0])))
    assert [record.steps_to(0.1, run) for run in range(3)] == [2, 1, 6]
    assert [record.steps_to(0.5, run) for run in range(3)] == [4, 5, None]
    assert [record.steps_to(0.6, run) for run in range(3)] == [8, 5, None]
    assert record.steps_to(0.95, 0) is None, "places without a run do not count"


def test_resuming_cuts_the_metrics_back_to_the_checkpoint(stopped):
    kept = (stopped.path / "metrics.jsonl").read_text().splitlines(keepends=True)[:2]
    stopped.resume(make_state(0))
    assert (stopped.path / "metrics.jsonl").read_text() == "".join(kept)


def test_metrics_before_the_first_checkpoint_are_measured_again(record):
    record.append(make_metrics(2))
    record.resume(make_state(0))
    assert record.metrics() == []


def test_runs_that_have_stopped_keep_their_step(record):
    """The second run stops after 3 steps, the last after 5, the first goes on."""
    steps = {2: (2, 2, 2), 4: (4, 3, 4), 6: (6, 3, 5), 8: (8, 3, 5)}
    for step, of_runs in steps.items():
        record.append(make_metrics(*of_runs))
        if step < 8:
            record.save(make_state(*of_runs))
    assert sorted(int(p.name) for p in (record.path / "checkpoints").iterdir()) == [4, 6]
    assert_same(record.resume(make_state(0)), make_state(6, 3, 5))
    assert recorded_steps(record) == [[2, 2, 2], [4, 3, 4], [6, 3, 5]]
    shutil.rmtree(record.path / "checkpoints" / "6")
    assert_same(record.resume(make_state(0)), make_state(4, 3, 4))
    assert recorded_steps(record) == [[2, 2, 2], [4, 3, 4]]


def test_a_run_that_does_a_part_of_a_dispatch_is_cut_back_too(record):
    record.append(make_metrics(4))
    record.save(make_state(4))
    record.append(make_metrics(4, 4, 5))
    record.resume(make_state(0))
    assert recorded_steps(record) == [[4, 4, 4]]


LINE = '{"step": [8, 8, 8], "status": [0, 0, 0], "loss": [1.0, 1.0, 1.0]}'


@pytest.mark.parametrize("end", [LINE[:12], LINE[:-1], "{", LINE], ids=len)
def test_a_line_that_a_kill_cut_short_is_dropped(stopped, end):
    path = stopped.path / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + end)
    assert recorded_steps(stopped)[:3] == [[2, 2, 2], [4, 4, 4], [6, 6, 6]]
    stopped.resume(make_state(0))
    stopped.append(make_metrics(6))
    assert path.read_text() == whole


def test_the_rest_of_a_write_that_was_killed_is_no_obstacle(stopped):
    model = ModelRecord(stopped.path.parent)
    whole = (stopped.path / "metrics.jsonl").read_text()
    parts = [stopped.path / "metrics.jsonl.part", model.path / "evaluation.json.part"]
    for part in parts:
        part.write_text('{"step": 1, "lo')
    assert not model.is_evaluated
    assert_same(stopped.resume(make_state(0)), make_state(4))
    stopped.append(make_metrics(6))
    model.write_evaluation({"model": "attention"}, {"seconds": 1.5})
    assert (stopped.path / "metrics.jsonl").read_text() == whole
    assert model.evaluation == {"model": "attention", "seconds": 1.5}
    assert not any(part.exists() for part in parts)


def test_a_lost_checkpoint_leaves_the_one_before_it(stopped):
    shutil.rmtree(stopped.path / "checkpoints" / "4")
    assert_same(stopped.resume(make_state(0)), make_state(2))
    assert recorded_steps(stopped) == [[2, 2, 2]]


def test_a_checkpoint_that_a_kill_cut_short_is_not_taken(stopped):
    # Orbax writes beside and renames; a kill leaves a folder of this name.
    unfinished = stopped.path / "checkpoints" / "6.orbax-checkpoint-tmp"
    unfinished.mkdir()
    (unfinished / "default").write_text("half")
    assert_same(stopped.resume(make_state(0)), make_state(4))
    stopped.save(make_state(6))
    assert_same(stopped.resume(make_state(0)), make_state(6))


def test_saving_a_step_again_keeps_what_is_there(stopped):
    stopped.save(make_state(4, seed=1))
    assert_same(stopped.resume(make_state(0)), make_state(4))


def test_stages_are_those_that_have_begun(tmp_path):
    model = ModelRecord(tmp_path)
    assert model.stages() == {}
    search = model.stage("search", list(RUNS[:2]))
    assert (
        model.stages()
        == {"search": StageRecord(tmp_path / "search", RUNS[:2])}
        == {"search": search}
    )
    fresh = model.stage("fresh", list(RUNS))
    assert list(model.stages().items()) == [("search", search), ("fresh", fresh)]
    fresh.append(make_metrics(2))
    assert model.stage("fresh", list(RUNS)).metrics() == fresh.metrics(), "begun again"
    assert search.metrics() == []


def test_a_search_is_there_once_it_is_written(tmp_path):
    model = ModelRecord(tmp_path)
    assert model.search is None
    model.write_search({"chosen": 0.1})
    assert ModelRecord(tmp_path).search == {"chosen": 0.1}


def test_an_evaluation_stands_apart_from_its_cost(tmp_path, monkeypatch):
    model = ModelRecord(tmp_path)
    assert not model.is_evaluated
    write = experiments.records.write_json

    def killed_after_the_first(path, value):
        write(path, value)
        raise KeyboardInterrupt

    monkeypatch.setattr(experiments.records, "write_json", killed_after_the_first)
    with pytest.raises(KeyboardInterrupt):
        model.write_evaluation({"runs": [1]}, {"seconds": 2.0})
    assert not model.is_evaluated, "killed between the two"
    monkeypatch.setattr(experiments.records, "write_json", write)
    model.write_evaluation({"runs": [1]}, {"seconds": 3.0})
    assert model.is_evaluated
    assert read_json(tmp_path / "evaluation.json") == {"runs": [1]}
    assert read_json(tmp_path / "cost.json") == {"seconds": 3.0}
    assert model.evaluation == {"runs": [1], "seconds": 3.0}


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "value.json"
    assert read_json(path) is None
    write_json(path, {"a": 1})

    def fail(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiments.records.os, "fsync", fail)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "{")
    assert read_json(path) == {"a": 1}


def test_another_config_has_another_folder(tmp_path):
    config = Config()
    folder = RunFolder.of(config, "name", tmp_path)
    again = RunFolder.of(dataclasses.replace(config), "name", tmp_path)
    assert again.path == folder.path
    assert folder.figures.is_dir()
    others = [
        dataclasses.replace(config, seed=1),
        dataclasses.replace(config, task=Induction(length=32)),
        dataclasses.replace(config, model=ModelConfig(width=32)),
        dataclasses.replace(config, sweep=SweepConfig(seeds=4)),
    ]
    paths = {RunFolder.of(other, "name", tmp_path).path for other in others}
    assert len(paths | {folder.path}) == 5
    assert RunFolder.of(config, "other", tmp_path).path not in paths | {folder.path}


def test_what_a_model_is_compared_with_is_no_other_folder(tmp_path):
    config = Config()
    folder = RunFolder.of(config, "name", tmp_path)
    others = [
        dataclasses.replace(config, models=("window", "attention")),
        dataclasses.replace(config, models=("attention", "window,width=32")),
        dataclasses.replace(config, claim="Another."),
    ]
    for other in (config, *others):
        again = RunFolder.of(other, "name", tmp_path)
        assert again.path == folder.path
        again.write_config(other)
        assert RunFolder(folder.path).config == other


def test_other_data_has_another_folder(tmp_path):
    text = tmp_path / "text.txt"
    config = Config(task=RepeatedText(num_characters=4, path=str(text)))
    folders, described = [], []
    for words in ("one text, read twice", "another text, read twice"):
        text.write_text(words * 20)
        experiments.tasks.corpus.read.cache_clear()
        folders.append(RunFolder.of(config, "text", tmp_path))
        folders[-1].write_config(config)
        described.append(config.task.describe())
    assert folders[0].path != folders[1].path
    assert [folder.data for folder in folders] == described
    assert json.loads((folders[0].path / "config.json").read_text())["config"] == json.loads(
        json.dumps(to_dict(config))
    )


def test_every_start_is_noted(tmp_path):
    folder = RunFolder.of(Config(), "name", tmp_path)
    assert folder.environments == []
    assert folder.begin({"start": 1}) == [{"start": 1}]
    assert folder.begin({"start": 2}) == [{"start": 1}, {"start": 2}]
    assert RunFolder(folder.path).environments == [{"start": 1}, {"start": 2}]


def test_models_have_folders_of_their_own(tmp_path):
    folder = RunFolder.of(Config(), "name", tmp_path)
    names = ("attention", "attention,position=rotary")
    for name in names:
        assert folder.model(name).path == folder.path / name
        folder.model(name).write_search({"model": name})
    assert [folder.model(name).search for name in names] == [{"model": name} for name in names]


def test_finished_is_what_finish_was_told(tmp_path):
    folder = RunFolder.of(Config(), "name", tmp_path)
    assert folder.finished is None
    folder.finish({"seconds": 1.0})
    assert RunFolder(folder.path).finished == {"seconds": 1.0}
    folder.begin({})
    assert folder.finished is None
