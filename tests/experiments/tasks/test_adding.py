"""Adding: uniform numbers, one mark in each half, their sum."""

import numpy as np
import pytest
from scipy import stats

from experiments.tasks import Adding
from tests.experiments.tasks.cases import MIN_P, Case, draw


def read_adding(task, row):
    earlier, later = [t for t, (_, mark) in enumerate(row) if mark]
    assert all(mark in (0, 1) for _, mark in row)
    assert earlier < task.length // 2 <= later
    total = np.float32(row[earlier][0]) + np.float32(row[later][0])
    return [(task.length - 1, total, earlier)]


def later_number(batch):
    later = batch.inputs.shape[1] - 1 - batch.inputs[:, ::-1, 1].argmax(axis=1)
    return np.take_along_axis(batch.inputs[:, :, 0], later[:, None], axis=1)


CASE = Case(
    Adding(length=11, tolerance=0.1),
    read_adding,
    other_length=2,
    bad_length=1,
    guesses={
        "chance": lambda task, batch, data: 1.0,
        "later number alone": lambda task, batch, data: later_number(batch) + 0.5,
    },
    answers_shown=False,
)


def test_numbers_are_uniform_and_independent_of_the_marks():
    batch = draw(CASE.task)
    numbers, marks = batch.inputs[..., 0], batch.inputs[..., 1]
    assert stats.kstest(numbers.ravel(), "uniform").pvalue > MIN_P
    assert stats.kstest(numbers[marks == 1], "uniform").pvalue > MIN_P


def test_marks_are_uniform_in_their_halves_and_independent():
    marks = draw(CASE.task).inputs[..., 1]
    earlier, later = marks.argmax(axis=1), 10 - marks[:, ::-1].argmax(axis=1)
    table = stats.contingency.crosstab(earlier, later).count
    assert table.shape == (5, 6)
    assert stats.chisquare(table.ravel()).pvalue > MIN_P


def test_floors_of_the_default_task():
    floors = Adding().floors()
    assert floors["chance"] == pytest.approx((2 * 0.04 - 0.04**2, 1 / 6))
    assert floors["later number alone"] == pytest.approx((0.08, 1 / 12))


@pytest.mark.parametrize("tolerance", [0.0, 0.6, float("nan")])
def test_adding_refuses_impossible_settings(tolerance):
    with pytest.raises(ValueError, match=f"tolerance is {tolerance}, expected"):
        Adding(tolerance=tolerance)
