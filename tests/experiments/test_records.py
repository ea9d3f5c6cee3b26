"""What a run folder survives: kills between any two writes, and within one."""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

import experiments.records
from experiments.config import Config, ModelConfig
from experiments.records import MixerRecord, RunFolder, read_json, write_json, write_text
from experiments.tasks import Induction, RepeatedText
from experiments.train import StepMetrics, TrainState


def make_state(step: int, seed: int = 0) -> TrainState:
    rng = np.random.default_rng([seed, step])
    params = {"layer": {"kernel": jnp.asarray(rng.normal(size=(3, 2)).astype(np.float32))}}
    moments = jnp.asarray(rng.normal(size=(3, 2)).astype(np.float32))
    return TrainState(jnp.asarray(step, jnp.int32), params, (moments, (), jnp.asarray(step)))


def make_metrics(first: int, count: int) -> StepMetrics:
    columns = np.random.default_rng(first).normal(size=(3, count)).astype(np.float32)
    return StepMetrics(*columns)


def assert_same(left: TrainState, right: TrainState):
    assert int(left.step) == int(right.step)
    kernels = (np.asarray(s.params["layer"]["kernel"]) for s in (left, right))
    np.testing.assert_array_equal(*kernels)
    for a, b in zip(left.opt_state[::2], right.opt_state[::2], strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


@pytest.fixture
def record(tmp_path):
    return MixerRecord(tmp_path)


@pytest.fixture
def stopped(record):
    """A record with checkpoints at 2 and 4 and metrics of 6 steps."""
    for first in (0, 2, 4):
        record.append(first, make_metrics(first, 2))
        if first < 4:
            record.save(make_state(first + 2))
    return record


def test_a_new_record_starts_blank(record):
    blank = make_state(0, seed=1)
    assert_same(record.resume(blank), blank)
    assert record.metrics() == []
    assert not record.is_evaluated


def test_resuming_restores_the_last_checkpoint_bitwise(stopped):
    assert_same(stopped.resume(make_state(0, seed=1)), make_state(4))


def test_metrics_are_as_they_were_measured(record):
    metrics = make_metrics(3, 4)
    record.append(3, metrics)
    lines = record.metrics()
    assert [line["step"] for line in lines] == [4, 5, 6, 7]
    for name, column in metrics._asdict().items():
        np.testing.assert_array_equal(np.float32([line[name] for line in lines]), column)


def test_resuming_cuts_the_metrics_back_to_the_checkpoint(stopped):
    kept = (stopped.path / "metrics.jsonl").read_text().splitlines(keepends=True)[:4]
    stopped.resume(make_state(0))
    assert (stopped.path / "metrics.jsonl").read_text() == "".join(kept)


@pytest.mark.parametrize("end", ['{"step": 7, "lo', '{"step": 7', "{", '{"step": 7, "loss": 1.0}'])
def test_a_line_that_a_kill_cut_short_is_dropped(stopped, end):
    path = stopped.path / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + end)
    stopped.resume(make_state(0))
    stopped.append(4, make_metrics(4, 2))
    assert path.read_text() == whole


def test_the_rest_of_a_write_that_was_killed_is_no_obstacle(stopped):
    whole = (stopped.path / "metrics.jsonl").read_text()
    for name in ("metrics.jsonl.part", "evaluation.json.part"):
        (stopped.path / name).write_text('{"step": 1, "lo')
    assert not stopped.is_evaluated
    assert_same(stopped.resume(make_state(0)), make_state(4))
    stopped.append(4, make_metrics(4, 2))
    stopped.write_evaluation({"mixer": "attention"})
    assert (stopped.path / "metrics.jsonl").read_text() == whole
    assert stopped.evaluation == {"mixer": "attention"}
    assert not list(stopped.path.glob("*.part"))


def test_a_lost_checkpoint_leaves_the_one_before_it(stopped):
    shutil.rmtree(stopped.path / "checkpoints" / "4")
    assert_same(stopped.resume(make_state(0)), make_state(2))
    assert [line["step"] for line in stopped.metrics()] == [1, 2]


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
    others = [
        dataclasses.replace(config, seed=1),
        dataclasses.replace(config, task=Induction(length=32)),
        dataclasses.replace(config, model=ModelConfig(width=32)),
        dataclasses.replace(config, mixers=("window", "attention")),
    ]
    paths = {RunFolder.of(other, "name", tmp_path).path for other in others}
    assert len(paths | {folder.path}) == 5
    assert RunFolder.of(config, "other", tmp_path).path not in paths | {folder.path}
    assert folder.config["seed"] == 0
    assert folder.config["task"] == {"name": "induction", "length": 64}


def test_other_data_has_another_folder(tmp_path):
    text = tmp_path / "text.txt"
    config = Config(task=RepeatedText(num_characters=4, path=str(text)))
    folders = []
    for words in ("one text, read twice", "another text, read twice"):
        text.write_text(words * 20)
        experiments.tasks.repeated_text._read.cache_clear()
        folders.append(RunFolder.of(config, "text", tmp_path))
        assert folders[-1].config["data"] == config.task.describe()
    assert folders[0].path != folders[1].path


def test_every_start_is_noted(tmp_path):
    folder = RunFolder.of(Config(), "name", tmp_path)
    assert folder.begin({"start": 1}) == [{"start": 1}]
    assert folder.begin({"start": 2}) == [{"start": 1}, {"start": 2}]
    assert json.loads((folder.path / "environment.json").read_text()) == [
        {"start": 1},
        {"start": 2},
    ]


def test_finished_is_what_finish_was_told(tmp_path):
    folder = RunFolder.of(Config(), "name", tmp_path)
    assert folder.finished is None
    folder.finish({"seconds": {}})
    assert RunFolder(folder.path).finished == {"seconds": {}}
