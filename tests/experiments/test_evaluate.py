"""Fixed rows, and answers of stacked runs against logits computed run by run."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.config import Config, EvaluateConfig, ModelConfig
from experiments.evaluate import (
    Answers,
    Questions,
    build_ask,
    summarise,
)
from experiments.models.decoder import build_decoder
from experiments.runs import places_for
from experiments.tasks import NO_SOURCE, UNASKED, Adding, Induction, Recall, StringCopy

pytestmark = pytest.mark.usefixtures("quick_to_compile", "quick_keys")


RECALL = Config(
    task=Recall(vocab_size=16, length=16, num_pairs=2),
    models=("attention", "gru"),
    model=ModelConfig(width=8, num_layers=1, num_heads=2, window=5, short_convolution=0),
    evaluate=EvaluateConfig(num_answers=50, batch_size=8, num_probe_rows=8),
)
COPY = dataclasses.replace(RECALL, task=StringCopy(max_characters=7))
INDUCTION = dataclasses.replace(RECALL, task=Induction(length=16))
ADDING = dataclasses.replace(RECALL, task=Adding(length=10, tolerance=0.3))
NO_DATA = {"train": (), "valid": (), "test": ()}


@functools.cache
def questions_of(config):
    """Made once for all tests here."""
    return Questions(config, NO_DATA)


@pytest.mark.parametrize(
    ("num_answers", "batches"), [(1, 1), (16, 1), (17, 2), (50, 4), (64, 4), (65, 5)]
)
def test_there_are_as_many_batches_as_the_answers_need(num_answers, batches, monkeypatch):
    monkeypatch.setattr(jax, "jit", lambda function: function)  # only shapes are wanted
    settings = dataclasses.replace(RECALL.evaluate, num_answers=num_answers)
    config = dataclasses.replace(RECALL, evaluate=settings)
    questions = Questions(config, NO_DATA)
    shapes = jax.eval_shape(lambda: questions.rows("test", 16))
    assert shapes.inputs.shape == (batches, 8, 16)
    assert shapes.targets.shape == (batches, 8, 2)


def test_rows_are_fixed_made_once_and_apart_by_split_and_length():
    questions = questions_of(INDUCTION)
    rows = questions.rows("test", 16)
    assert questions.rows("test", 16) is rows
    seeded = dataclasses.replace(INDUCTION, seed=5, models=("gru",))
    again = Questions(seeded, NO_DATA).rows("test", 16)
    for one, other in zip(rows, again, strict=True):
        np.testing.assert_array_equal(one, other)
    valid = questions.rows("valid", 16)
    assert valid.inputs.shape == rows.inputs.shape
    of_split = [
        {row.tobytes() for row in np.asarray(x.inputs).reshape(-1, 16)} for x in (rows, valid)
    ]
    assert not of_split[0] & of_split[1]
    assert len(of_split[0]) == 56, "batches differ, and rows in them"
    longer = questions.rows("test", 20)
    assert longer.inputs.shape == (7, 8, 20)
    for batch in (rows, longer):
        assert np.asarray(batch.positions).max() < batch.inputs.shape[-1]


def test_the_first_rows_are_the_first():
    questions = questions_of(RECALL)
    rows = questions.rows("test", 16)
    first = questions.first(16, 11)
    assert all(isinstance(x, np.ndarray) for x in first)
    for few, all_rows in zip(first, rows, strict=True):
        whole = np.asarray(all_rows).reshape(32, *all_rows.shape[2:])
        np.testing.assert_array_equal(few, whole[:11])
    assert len(questions.first(16, 1000).inputs) == 32, "there are no more"


def test_rows_are_drawn_from_the_data_of_their_split():
    class Shown(Induction):
        def sample(self, rng, batch_size, data=()):
            batch = super().sample(rng, batch_size)
            return batch._replace(inputs=jnp.full_like(batch.inputs, data))

    config = dataclasses.replace(RECALL, task=Shown(length=5))
    questions = Questions(config, {"train": 1, "valid": 2, "test": 3})
    assert np.unique(questions.rows("valid", 5).inputs) == [2]
    assert np.unique(questions.rows("test", 5).inputs) == [3]


def draw_params(config, model, runs):
    """Parameters of several runs, stacked, drawn by NumPy."""
    rng = np.random.default_rng(1)
    decoder = build_decoder(config.task, config.model_of(model))
    row = jax.eval_shape(lambda: config.task.sample(jax.random.key(0), 1, ()))
    shapes = jax.eval_shape(decoder.lazy_init, jax.random.key(0), row.inputs, row.positions)
    return jax.tree.map(
        lambda x: rng.normal(0, 0.6, (runs, *x.shape)).astype(x.dtype), shapes["params"]
    )


@functools.cache
def rows_of(config, length):
    """The test rows; where these are never of few answers, as many rows of training."""
    if config is not COPY:
        return questions_of(config).rows("test", length)
    rows = jax.jit(config.task.sample, static_argnums=1)(jax.random.key(3), 32)
    return jax.tree.map(lambda x: x.reshape(4, 8, *x.shape[1:]), rows)


@functools.cache
def ask_of(config, model, count, length):
    return build_ask(config, model, places_for(config.mesh, count), length)


@functools.cache
def asked(config, model, length, is_run):
    """Answers of the drawn runs, and what the decoder says to the same rows, run by run."""
    params, rows = draw_params(config, model, len(is_run)), rows_of(config, length)
    answers = ask_of(config, model, len(is_run), length)(params, np.array(is_run), rows)
    decoder = build_decoder(config.task, config.model_of(model))
    batch = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), rows)
    apply = jax.jit(lambda p: decoder.apply({"params": p}, batch.inputs, batch.positions))
    said = [apply(jax.tree.map(lambda x, i=i: x[i], params)) for i in range(len(is_run))]
    return answers, np.float64(said), batch


@pytest.mark.parametrize(("model", "length"), [("attention", 16), ("attention", 20), ("gru", 16)])
def test_answers_of_every_run_are_those_of_its_logits(model, length):
    answers, said, batch = asked(RECALL, model, length, (True, True, True))
    assert len(answers) == 3
    for of_run, logits in zip(answers, said, strict=True):
        assert of_run.right.shape == (32, 2), "4 batches of 8 rows with 2 answers: 50 at least"
        total = np.log2(np.exp(logits).sum(-1))
        right = np.take_along_axis(logits, batch.targets[..., None], -1)[..., 0]
        np.testing.assert_allclose(of_run.loss, total - right / math.log(2), rtol=1e-4)
        np.testing.assert_array_equal(of_run.right, logits.argmax(-1) == batch.targets)
        np.testing.assert_array_equal(of_run.positions, batch.positions)
        np.testing.assert_array_equal(of_run.distances, batch.positions - batch.sources)
        assert of_run.asked.all()
    assert len({of_run.loss.tobytes() for of_run in answers}) == 3, "runs differ"


def test_places_without_a_run_are_left_out():
    answers, _, _ = asked(RECALL, "attention", 16, (True, True, True))
    some, _, _ = asked(RECALL, "attention", 16, (True, False, True))
    assert len(some) == 2
    for left, right in zip(some, (answers[0], answers[2]), strict=True):
        np.testing.assert_array_equal(left.loss, right.loss)


def test_unasked_answers_are_counted_nowhere():
    answers, said, batch = asked(COPY, "attention", 16, (True, True))
    is_asked = batch.targets != UNASKED
    assert not is_asked.all()
    assert is_asked.any(axis=1).all()
    for of_run, logits in zip(answers, said, strict=True):
        np.testing.assert_array_equal(of_run.asked, is_asked)
        assert not of_run.right[~is_asked].any()
        assert not of_run.loss[~is_asked].any()
        right = logits.argmax(-1) == batch.targets
        np.testing.assert_array_equal(of_run.right[is_asked], right[is_asked])
        summary = summarise(of_run)
        groups = [summary[g]["answers"] for g in ("with_source", "without_source") if g in summary]
        assert sum(groups) == is_asked.sum()
        assert sum(summary["by_position"]["answers"]) == is_asked.sum()


def test_a_run_is_scored_by_the_answers_that_have_a_source_or_by_all():
    asked = np.array([[True, True, False], [True, False, True]])
    distances = np.array([[3, NO_SOURCE, NO_SOURCE], [NO_SOURCE, 5, 2]])
    answers = Answers(asked, np.zeros((2, 3)), asked, distances, distances)
    np.testing.assert_array_equal(answers.scored, [[True, False, False], [False, False, True]])
    nowhere = answers._replace(distances=np.full((2, 3), NO_SOURCE))
    np.testing.assert_array_equal(nowhere.scored, asked)


def test_answers_that_are_numbers_have_squared_errors_and_a_tolerance():
    answers, said, batch = asked(ADDING, "gru", 10, (True, True))
    for of_run, numbers in zip(answers, said, strict=True):
        error = numbers - batch.targets
        np.testing.assert_allclose(of_run.loss, error**2, rtol=1e-3, atol=1e-6)
        np.testing.assert_array_equal(of_run.right, np.abs(error) < 0.3)
        assert of_run.asked.all()
    shares = [of_run.right.mean() for of_run in answers]
    assert 0 < max(shares) < 1


def test_a_number_equal_to_unasked_is_asked_all_the_same():
    rows = rows_of(ADDING, 10)
    rows = rows._replace(targets=jnp.full_like(rows.targets, UNASKED))
    params = draw_params(ADDING, "gru", 2)
    for answers in ask_of(ADDING, "gru", 2, 10)(params, np.array([True, True]), rows):
        assert answers.asked.all()
