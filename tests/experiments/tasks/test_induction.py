"""Induction heads: the places and the tokens are drawn as they are defined."""

import numpy as np
import pytest
from scipy import stats

from experiments.tasks import Induction
from tests.experiments.tasks.cases import (
    MIN_P,
    ROWS,
    Case,
    draw,
    frequencies,
    uniform_over,
)


def read_induction(task, row):
    first, last = [t for t, token in enumerate(row) if token == 16]
    assert last == task.length - 1
    return [(last, row[first + 1], first + 1)]


CASE = Case(
    Induction(length=13),
    read_induction,
    other_length=3,
    bad_length=2,
    guesses={
        "chance": lambda task, batch, data: uniform_over(range(16), 17),
        "most frequent token of the row": lambda task, batch, data: (
            frequencies(batch.inputs, 17) * (np.arange(17) < 16) * 13 / 11
        ),
    },
)


def test_induction_places_the_first_trigger_uniformly():
    sources = draw(CASE.task).sources[:, 0]
    counts = np.bincount(sources - 1, minlength=11)
    assert len(counts) == 11
    assert stats.chisquare(counts).pvalue > MIN_P


def test_induction_tokens_are_uniform_and_leave_the_trigger_out():
    batch = draw(CASE.task)
    counts = np.bincount(batch.inputs.ravel(), minlength=17)
    assert counts[16] == 2 * ROWS
    assert stats.chisquare(counts[:16]).pvalue > MIN_P
    assert stats.chisquare(np.bincount(batch.targets[:, 0], minlength=16)).pvalue > MIN_P


def test_induction_answer_is_told_by_no_token_but_its_source():
    batch = draw(CASE.task)
    for place in range(12):
        elsewhere = (batch.sources != place)[:, 0] & (batch.inputs[:, place] != 16)
        same = batch.inputs[elsewhere, place] == batch.targets[elsewhere, 0]
        assert stats.binomtest(int(same.sum()), same.size, 1 / 16).pvalue > MIN_P


def test_induction_refuses_rows_without_an_answer():
    with pytest.raises(ValueError, match="length is 2, expected at least 3"):
        Induction(length=2)
