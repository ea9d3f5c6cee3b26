"""Scores against plain NumPy and the literature; attention on the source where it is known."""

import dataclasses
import functools
import json
import math

import jax
import numpy as np
import pytest

from experiments import evaluate
from experiments.config import Config, EvaluateConfig, ModelConfig
from experiments.evaluate import Answers, distance_bins, score, summarise, wilson_interval
from experiments.models.decoder import build_decoder
from experiments.tasks import NO_SOURCE, NoisyDigits, Recall, RepeatedText
from experiments.train import initial_state


@pytest.mark.parametrize(
    ("successes", "trials", "interval"),
    [
        # 0 and n: [0, z^2 / (n + z^2)] and its mirror image.
        (0, 10, [0.0, 0.2775]),
        (10, 10, [0.7225, 1.0]),
        (5, 10, [0.2366, 0.7634]),
        (1, 10, [0.0179, 0.4042]),
        # Newcombe, Statistics in Medicine 1998, table I, method 3.
        (81, 263, [0.2553, 0.3662]),
        (15, 148, [0.0624, 0.1605]),
        (0, 20, [0.0, 0.1611]),
        (1, 29, [0.0061, 0.1718]),
    ],
)
def test_wilson_interval_is_that_of_the_literature(successes, trials, interval):
    np.testing.assert_allclose(wilson_interval(successes, trials), interval, atol=6e-5)


@pytest.mark.parametrize("trials", [1, 7, 400])
def test_wilson_interval_holds_what_the_score_test_does_not_reject(trials):
    z = 1.96
    for successes in {0, 1, trials // 3, trials}:
        low, high = wilson_interval(successes, trials, z)
        assert 0 <= low <= successes / trials <= high + 1e-12 <= 1 + 1e-12
        for bound in (low, high):
            if 1e-9 < bound < 1 - 1e-9:
                distance = abs(successes / trials - bound)
                assert distance == pytest.approx(z * math.sqrt(bound * (1 - bound) / trials))


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


def draw_answers(rows, asked):
    rng = np.random.default_rng(0)
    shape = (rows, asked)
    return Answers(
        correct=rng.integers(0, 2, shape).astype(np.float32),
        bits=rng.gamma(2, 1, shape).astype(np.float32),
        positions=rng.integers(0, 30, shape),
        distances=np.where(rng.random(shape) < 0.2, NO_SOURCE, rng.integers(1, 40, shape)),
    )


def expected_score(answers, group):
    """The same in loops, in float64."""
    correct, bits, rows = [], [], []
    for row, column in np.argwhere(group):
        correct.append(float(answers.correct[row, column]))
        bits.append(float(answers.bits[row, column]))
        rows.append(row)
    mean = sum(bits) / len(bits)
    # The variance of a mean over rows that are drawn, answers in a row being alike.
    variance = 0.0
    for row in set(rows):
        variance += sum(b - mean for b, r in zip(bits, rows, strict=True) if r == row) ** 2
    half = 1.96 * math.sqrt(variance) / len(bits)
    return {
        "answers": len(bits),
        "accuracy": sum(correct) / len(correct),
        "accuracy_interval": wilson_interval(sum(correct), len(correct)),
        "bits": mean,
        "bits_interval": [mean - half, mean + half],
    }


def assert_scores(actual, expected):
    assert set(actual) == set(expected)
    for name, value in expected.items():
        assert actual[name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize("asked", [1, 5])
def test_score_is_that_of_a_loop(asked):
    answers = draw_answers(40, asked)
    for group in (answers.distances > 0, answers.distances > 20, answers.positions < 9):
        assert_scores(score(answers, group), expected_score(answers, group))


def test_answers_alike_in_a_row_widen_the_interval():
    column = np.arange(20.0)[:, None]
    few = Answers(column % 2, bits=column, positions=column, distances=column)
    alike = Answers(*(np.repeat(column, 9, axis=1) for column in few))
    one, many = (score(a, np.ones(a.bits.shape, bool)) for a in (few, alike))
    assert many["answers"] == 9 * one["answers"]
    assert many["bits_interval"] == pytest.approx(one["bits_interval"])


def test_summary_of_two_rows_made_by_hand():
    answers = Answers(
        correct=np.array([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]]),
        bits=np.array([[0.5, 2.0, 1.0], [0.25, 0.25, 4.0]]),
        positions=np.array([[3, 5, 6], [3, 5, 9]]),
        distances=np.array([[1, NO_SOURCE, 2], [1, 4, NO_SOURCE]]),
    )
    summary = summarise(answers)
    assert summary["rows"] == 2
    assert summary["with_source"]["answers"] == 4
    assert summary["with_source"]["accuracy"] == 1.0
    assert summary["with_source"]["bits"] == 0.5
    assert summary["without_source"]["accuracy"] == 0.0
    assert summary["without_source"]["bits"] == 3.0
    by_distance = [(b["from"], b["to"], b["answers"], b["bits"]) for b in summary["by_distance"]]
    assert by_distance == [(1, 1, 2, 0.375), (2, 2, 1, 1.0), (4, 4, 1, 0.25)]
    by_position = [(p["position"], p["answers"], p["bits"]) for p in summary["by_position"]]
    assert by_position == [(3, 2, 0.375), (5, 2, 1.125), (6, 1, 1.0), (9, 1, 4.0)]
    assert json.loads(json.dumps(summary)) == summary


def test_summary_leaves_out_what_was_not_asked():
    everywhere = Answers(*(np.ones((3, 2)) for _ in range(4)))
    assert "without_source" not in summarise(everywhere)
    nowhere = everywhere._replace(distances=np.full((3, 2), NO_SOURCE))
    assert "with_source" not in summarise(nowhere)
    assert summarise(nowhere)["by_distance"] == []


def test_summary_scores_every_answer_once():
    answers = draw_answers(60, 4)
    summary = summarise(answers)
    with_source = summary["with_source"]["answers"]
    assert with_source + summary["without_source"]["answers"] == 240
    assert sum(b["answers"] for b in summary["by_distance"]) == with_source
    assert sum(p["answers"] for p in summary["by_position"]) == 240


RECALL = Config(
    task=Recall(vocab_size=16, length=16, num_pairs=2),
    model=ModelConfig(width=8, num_layers=1, num_heads=2, window=5, short_convolution=0),
    evaluate=EvaluateConfig(num_answers=50, batch_size=8, num_maps=8),
)


@functools.partial(jax.jit, static_argnums=0)
def draw_rows(config, index, data):
    batch_size = config.evaluate.batch_size
    return evaluate.test_batch(config.task, index, batch_size, data)


def draw_params(config, mixer, data=()):
    """Parameters of the config's model, drawn by NumPy."""
    rng = np.random.default_rng(1)
    state = jax.eval_shape(functools.partial(initial_state, config, mixer, data))
    return jax.tree.map(lambda x: rng.normal(0, 0.6, x.shape).astype(x.dtype), state.params)


def test_ask_scores_the_logits_of_the_fixed_test_rows():
    params = draw_params(RECALL, "attention")
    answers = evaluate.ask(RECALL, RECALL.task, "attention", params, ())
    assert answers.correct.shape == (32, 2), "4 batches of 8 rows with 2 answers: 50 at least"

    decoder = jax.jit(build_decoder(RECALL.task, RECALL.model, "attention").apply)
    for index in range(4):
        batch = jax.device_get(draw_rows(RECALL, index, ()))
        logits = np.float64(decoder({"params": params}, batch.inputs, batch.positions))
        rows = slice(8 * index, 8 * index + 8)
        total = np.log2(np.exp(logits).sum(-1))
        right = np.take_along_axis(logits, batch.targets[..., None], -1)[..., 0]
        np.testing.assert_allclose(answers.bits[rows], total - right / math.log(2), rtol=1e-4)
        np.testing.assert_array_equal(answers.correct[rows], logits.argmax(-1) == batch.targets)
        np.testing.assert_array_equal(answers.positions[rows], batch.positions)
        np.testing.assert_array_equal(answers.distances[rows], batch.positions - batch.sources)
    assert len(np.unique(answers.positions, axis=0)) > 8, "batches differ"


def test_no_run_trains_on_the_test_rows():
    with pytest.raises(ValueError, match="seed"):
        Config(seed=evaluate.TEST_SEED)


def without_queries(params):
    """The same parameters with all scores 0: every head looks at all it sees alike."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: np.zeros_like(x) if "query" in jax.tree_util.keystr(path) else x, params
    )


def span(config, position, source):
    """Where a source stands, and the positions after it that the convolution carries it to."""
    carried = max(config.model.short_convolution - 1, 0)
    first = source - config.task.source_width + 1
    return [p for p in range(first, source + carried + 1) if p <= position]


DIGITS = dataclasses.replace(
    RECALL,
    task=NoisyDigits(length=11),
    model=dataclasses.replace(RECALL.model, short_convolution=3),
)
TEXT = dataclasses.replace(
    RECALL,
    task=RepeatedText(num_characters=4),
    model=dataclasses.replace(RECALL.model, num_layers=2),
)


@pytest.mark.parametrize(
    ("config", "mixer"),
    [(RECALL, "attention"), (DIGITS, "window"), (TEXT, "attention")],
    ids=["recall", "digits", "text"],
)
def test_weight_on_the_source_where_all_is_seen_alike(config, mixer):
    data = np.arange(97, 120).astype(np.uint8) if config is TEXT else config.task.load("test")
    params = without_queries(draw_params(config, mixer, data))
    result = evaluate.attention_on_source(config, mixer, params, data)
    batch = jax.device_get(draw_rows(config, 0, data))

    mass, uniform = [], []
    for position, source in zip(batch.positions.flat, batch.sources.flat, strict=True):
        if source == NO_SOURCE:
            continue
        seen = range(position + 1)
        if mixer == "window":
            seen = seen[-config.model.window :]
        places = span(config, position, source)
        mass.append(sum(p in seen for p in places) / len(seen))
        uniform.append(len(places) / (position + 1))
    shape = (config.model.num_layers, config.model.num_heads)
    np.testing.assert_allclose(result["mass_on_source"], np.full(shape, np.mean(mass)), rtol=1e-5)
    assert result["uniform"] == pytest.approx(np.mean(uniform))
    assert (mixer == "attention") == (np.mean(mass) == pytest.approx(np.mean(uniform)))
    assert json.loads(json.dumps(result)) == result

    example = result["example"]
    assert example["positions"] == batch.positions[0].tolist()
    assert example["sources"] == batch.sources[0].tolist()
    distance = np.subtract.outer(np.arange(config.task.length), np.arange(config.task.length))
    sees = (distance >= 0) & ((distance < config.model.window) | (mixer == "attention"))
    np.testing.assert_allclose(example["map"], sees / sees.sum(1, keepdims=True), atol=6e-5)


def test_best_head_is_the_one_that_looks_at_sources_most():
    params = without_queries(draw_params(RECALL, "attention"))
    # The second head alone scores keys by their content, with a sign that finds sources.
    kernel = params["mixer_0"]["attention"]["query"]["kernel"]
    kernel[:, 1] = np.random.default_rng(9).normal(0, 2, kernel[:, 1].shape)
    result = evaluate.attention_on_source(RECALL, "attention", params, ())
    mass = np.array(result["mass_on_source"])
    assert mass[0, 1] > 1.5 * mass[0, 0]
    assert result["best"] == {"layer": 0, "head": 1, "mass": mass[0, 1]}
    uniform = 1 / np.arange(1, RECALL.task.length + 1)
    assert not np.allclose(np.array(result["example"]["map"])[:, 0], uniform, atol=0.01)
