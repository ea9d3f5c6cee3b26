"""Scores against plain loops, and a summary made by hand."""

import json
import math

import numpy as np
import pytest

from experiments import evaluate
from experiments.evaluate import (
    Answers,
    columns,
    distance_bins,
    rounded,
    score,
    summarise,
)
from experiments.tasks import NO_SOURCE


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
    share, variance = sum(right) / len(right), 0.0
    for row in set(rows):
        variance += sum(x - share for x, r in zip(right, rows, strict=True) if r == row) ** 2
    wide = 1.96 * math.sqrt(variance) / len(right)
    return {
        "answers": len(losses),
        "accuracy": share,
        "accuracy_interval": [share - wide, share + wide],
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
    for name in ("accuracy_interval", "loss_interval"):
        assert many[name] == pytest.approx(one[name])


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
