"""Scores against plain loops; answers of stacked runs against logits computed run by run."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import evaluate
from experiments.config import Config, EvaluateConfig, ModelConfig
from experiments.evaluate import (
    Answers,
    Questions,
    build_ask,
    columns,
    distance_bins,
    rounded,
    score,
    summarise,
)
from experiments.models.decoder import build_decoder
from experiments.tasks import NO_SOURCE, UNASKED, Adding, Induction, Recall, StringCopy
from tests.attn import cases


@pytest.fixture(autouse=True, scope="module")
def quick_to_compile():
    """What is compiled here is run once; keys, too, are of a kind that is quick to compile."""
    with pytest.MonkeyPatch.context() as patch:
        options = cases.quick_to_compile()
        patch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=options))
        jax.config.update("jax_default_prng_impl", "unsafe_rbg")
        yield
        jax.config.update("jax_default_prng_impl", "threefry2x32")


@pytest.mark.parametrize("low", [0, 1, 30])
@pytest.mark.parametrize("extent", [1, 2, 11, 12, 13, 24, 25, 100, 1023])
def test_distance_bins_cover_every_distance_once(low, extent):
    distances = np.array([low + extent - 1, low])
    bins = distance_bins(distances)
    assert len(bins) <= evaluate.MAX_BINS
    covered = [d for first, last in bins for d in range(first, last + 1)]
    assert covered == list(range(low, low + extent))
    widths = {last - first + 1 for first, last in bins[:-1]}
    assert len(widths) <= 1


def test_no_distances_have_no_bins():
    assert distance_bins(np.array([], int)) == []


def draw_answers(rows, places, asked=0.9):
    rng = np.random.default_rng(0)
    shape = (rows, places)
    positions = rng.integers(0, 30, shape)
    return Answers(
        right=rng.random(shape) < 0.6,
        loss=rng.gamma(2, 1, shape).astype(np.float32),
        asked=rng.random(shape) < asked,
        positions=positions,
        distances=np.where(rng.random(shape) < 0.2, NO_SOURCE, rng.integers(1, 40, shape)),
    )


def expected_score(answers, group):
    """The same in loops, in float64."""
    right, losses, rows = [], [], []
    for row, column in np.argwhere(group):
        right.append(bool(answers.right[row, column]))
        losses.append(float(answers.loss[row, column]))
        rows.append(row)
    mean = sum(losses) / len(losses)
    # The variance of a mean over rows that are drawn, answers in a row being alike.
    variance = 0.0
    for row in set(rows):
        variance += sum(x - mean for x, r in zip(losses, rows, strict=True) if r == row) ** 2
    half = 1.96 * math.sqrt(variance) / len(losses)
    return {
        "answers": len(losses),
        "accuracy": sum(right) / len(right),
        "loss": mean,
        "loss_interval": [mean - half, mean + half],
    }


def assert_scores(actual, expected):
    assert set(actual) == set(expected)
    for name, value in expected.items():
        assert actual[name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize("places", [1, 5])
def test_score_is_that_of_a_loop(places):
    answers = draw_answers(40, places)
    for group in (answers.asked, answers.distances > 20, answers.positions < 9):
        assert_scores(score(answers, group), expected_score(answers, group))


@pytest.mark.parametrize("places", [1, 5])
def test_columns_are_scores_without_their_intervals(places):
    answers = draw_answers(40, places)
    groups = [answers.asked, answers.distances > 20, answers.positions < 9]
    found = columns(answers, groups)
    assert set(found) == {"answers", "accuracy", "loss"}
    for name, column in found.items():
        expected = [expected_score(answers, group)[name] for group in groups]
        assert column == pytest.approx(expected, rel=1e-4)
    assert columns(answers, []) == {"answers": [], "accuracy": [], "loss": []}


def test_answers_alike_in_a_row_leave_the_interval_as_it_is():
    column = np.arange(20.0)[:, None]
    few = Answers(column % 2 == 0, column, column > -1, column, column)
    alike = Answers(*(np.repeat(x, 9, axis=1) for x in few))
    one, many = (score(a, a.asked) for a in (few, alike))
    assert many["answers"] == 9 * one["answers"]
    assert many["loss_interval"] == pytest.approx(one["loss_interval"])


def test_numbers_are_rounded_to_six_digits():
    assert rounded(np.float32(1 / 3)) == 0.333333
    assert rounded(123456789) == 123457000.0
    assert rounded(1e-9 / 3) == 3.33333e-10


def test_summary_of_two_rows_made_by_hand():
    answers = Answers(
        right=np.array([[True, False, True, True], [True, True, False, True]]),
        loss=np.array([[0.5, 2.0, 1.0, 9.0], [0.25, 0.25, 4.0, 0.0]]),
        asked=np.array([[True, True, True, False], [True, True, True, False]]),
        positions=np.array([[3, 5, 6, 11], [3, 5, 9, 11]]),
        distances=np.array([[1, NO_SOURCE, 2, 7], [1, 4, NO_SOURCE, NO_SOURCE]]),
    )
    summary = summarise(answers)
    assert summary["rows"] == 2
    assert summary["rows_right"] == 0.0
    assert summary["with_source"]["answers"] == 4
    assert summary["with_source"]["accuracy"] == 1.0
    assert summary["with_source"]["loss"] == 0.5
    assert summary["without_source"]["answers"] == 2
    assert summary["without_source"]["accuracy"] == 0.0
    assert summary["without_source"]["loss"] == 3.0
    assert summary["by_distance"] == {
        "from": [1, 2, 4],
        "to": [1, 2, 4],
        "answers": [2, 1, 1],
        "accuracy": [1.0, 1.0, 1.0],
        "loss": [0.375, 1.0, 0.25],
    }
    assert summary["by_position"] == {
        "position": [3, 5, 6, 9],
        "answers": [2, 2, 1, 1],
        "accuracy": [1.0, 0.5, 1.0, 0.0],
        "loss": [0.375, 1.125, 1.0, 4.0],
    }
    assert json.loads(json.dumps(summary)) == summary


def test_summary_is_that_of_loops():
    answers = draw_answers(60, 4)
    summary = summarise(answers)
    where = [tuple(place) for place in np.argwhere(answers.asked)]
    for name, has_source in (("with_source", True), ("without_source", False)):
        group = np.zeros(answers.asked.shape, bool)
        for place in where:
            group[place] = (answers.distances[place] != NO_SOURCE) == has_source
        assert_scores(summary[name], expected_score(answers, group))
    bins = summary["by_distance"]
    for low, high, number, accuracy in zip(
        bins["from"], bins["to"], bins["answers"], bins["accuracy"], strict=True
    ):
        right = [answers.right[p] for p in where if low <= answers.distances[p] <= high]
        assert number == len(right) > 0
        assert accuracy == pytest.approx(np.mean(right), rel=1e-5)
    assert sum(bins["answers"]) == summary["with_source"]["answers"]
    assert sum(summary["by_position"]["answers"]) == len(where)


def test_a_row_is_right_if_all_that_was_asked_of_it_is():
    answers = draw_answers(200, 3)
    right = 0
    for row in range(200):
        right += all(answers.right[row, i] for i in range(3) if answers.asked[row, i])
    assert 0 < right < 200
    assert summarise(answers)["rows_right"] == right / 200


def test_what_was_not_asked_changes_nothing():
    answers = draw_answers(60, 4, asked=0.5)
    other = answers._replace(
        right=np.where(answers.asked, answers.right, ~answers.right),
        loss=np.where(answers.asked, answers.loss, 99.0),
        positions=np.where(answers.asked, answers.positions, 1000),
        distances=np.where(answers.asked, answers.distances, 1000),
    )
    assert summarise(other) == summarise(answers)


def test_summary_leaves_out_what_there_is_none_of():
    everywhere = draw_answers(9, 2, asked=1.0)._replace(distances=np.ones((9, 2), int))
    assert "without_source" not in summarise(everywhere)
    nowhere = everywhere._replace(distances=np.full((9, 2), NO_SOURCE))
    summary = summarise(nowhere)
    assert "with_source" not in summary
    assert all(column == [] for column in summary["by_distance"].values())


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


ask_of = functools.cache(build_ask)


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
