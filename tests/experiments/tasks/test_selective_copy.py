"""Selective copying: every set of places is as likely as any other."""

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from experiments.tasks import SelectiveCopy
from tests.experiments.tasks.cases import MIN_P, Case, draw, frequencies, uniform_over


def read_selective_copy(task, row):
    blank, signal = task.vocab_size - 2, task.vocab_size - 1
    end = row.index(signal)
    assert row[end + 1 :] == [blank] * task.num_tokens
    assert end == task.length - task.num_tokens - 1
    places = [t for t in range(end) if row[t] != blank]
    assert len(places) == task.num_tokens
    return [(end + 1 + i, row[place], place) for i, place in enumerate(places)]


CASE = Case(
    SelectiveCopy(vocab_size=7, length=17, num_tokens=3),
    read_selective_copy,
    other_length=7,
    bad_length=6,
    guesses={
        "chance": lambda task, batch, data: uniform_over(range(5), 7),
        "most frequent token of the row": lambda task, batch, data: frequencies(batch.targets, 7),
    },
)


def test_every_set_of_places_is_equally_likely():
    task = SelectiveCopy(vocab_size=7, length=10, num_tokens=3)
    counts = Counter(map(tuple, draw(task).sources.tolist()))
    observed = [counts[places] for places in itertools.combinations(range(6), 3)]
    assert stats.chisquare(observed).pvalue > MIN_P


def test_content_is_uniform_and_independent_of_its_place():
    batch = draw(CASE.task)
    assert stats.chisquare(np.bincount(batch.targets.ravel(), minlength=5)).pvalue > MIN_P
    table = stats.contingency.crosstab(batch.targets[:, 0], batch.sources[:, 0] > 2).count
    assert stats.chi2_contingency(table)[1] > MIN_P  # pyright: ignore


def test_the_tightest_row_has_no_blank_before_the_signal():
    task = SelectiveCopy(vocab_size=5, length=9, num_tokens=4)
    np.testing.assert_array_equal(draw(task).sources, np.tile(np.arange(4), (4000, 1)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab_size": 2}, "vocab_size is 2, expected at least 3"),
        ({"num_tokens": 0}, "num_tokens is 0, expected at least 1"),
        ({"length": 32}, "length is 32, expected at least 33"),
    ],
)
def test_selective_copy_refuses_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        SelectiveCopy(**settings)
