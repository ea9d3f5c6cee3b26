"""Prefix-key copy: the first occurrence counts; places are uniform where nothing repeats."""

import numpy as np
import pytest
from scipy import stats

from experiments.tasks import PrefixKeyCopy
from tests.experiments.tasks.cases import MIN_P, Case, draw, uniform_over


def read_prefix_key(task, row):
    width, asked = task.key_length, task.answer_length
    key = row[1 : width + 1]
    bars = [t for t, token in enumerate(row) if token == 27]
    assert row[0] == 26
    assert bars[0] == width + 1
    assert len(bars) == 2
    string = row[bars[0] + 1 : bars[1]]
    assert task.min_characters <= len(string) <= task.max_characters
    assert all(0 <= letter < 26 for letter in key + string)
    first = next(f for f in range(len(string)) if string[f : f + width] == key)
    answers = string[first + width : first + width + asked]
    padding = [29] * (task.max_characters - len(string))
    assert row[bars[1] + 1 :] == answers[:-1] + padding
    begin = bars[0] + 1 + first + width
    return [(bars[1] + j, answer, begin + j) for j, answer in enumerate(answers)]


def guess_by_letters(task, batch, data):
    bars = [np.nonzero(row == 27)[0] for row in batch.inputs]
    strings = [row[a + 1 : b] for row, (a, b) in zip(batch.inputs, bars, strict=True)]
    return np.array([np.bincount(x, minlength=30) / len(x) for x in strings])[:, None, :]


CASE = Case(
    PrefixKeyCopy(max_characters=31, min_characters=11, key_length=1, answer_length=3),
    read_prefix_key,
    other_length=10,
    bad_length=9,
    guesses={
        "chance": lambda task, batch, data: uniform_over(range(26), 30),
        "any letter of the string": guess_by_letters,
    },
    full=PrefixKeyCopy(max_characters=31, min_characters=31, key_length=1, answer_length=3),
)


def test_strings_have_every_length_equally_often():
    batch = draw(CASE.task)
    counts = np.bincount(batch.positions[:, 0] - 3, minlength=32)
    assert counts[:11].sum() == 0
    assert stats.chisquare(counts[11:]).pvalue > MIN_P


def test_keys_repeat_in_strings_and_may_stand_anywhere_that_leaves_room():
    """A key of one letter stands at place f first if 25/26 of the letters before it are others."""
    task = PrefixKeyCopy(max_characters=9, min_characters=9, key_length=1, answer_length=3)
    batch = draw(task)
    found = batch.sources[:, 0] - 4
    miss = 25 / 26
    # Drawn place d (uniform on 0..5): the first is f < d if f holds the letter by accident.
    law = [sum([miss**f, *([miss**f / 26] * (5 - f))]) / 6 for f in range(6)]
    counts = np.bincount(found, minlength=6)
    assert stats.chisquare(counts, len(found) * np.array(law)).pvalue > MIN_P


def test_letters_and_keys_are_uniform():
    inputs = draw(CASE.task).inputs
    for column in (1, 3, 4):
        assert stats.chisquare(np.bincount(inputs[:, column], minlength=26)).pvalue > MIN_P


def test_longer_keys_are_found_whole():
    task = PrefixKeyCopy(max_characters=12, min_characters=8, key_length=3, answer_length=5)
    inputs = draw(task).inputs[:200].tolist()
    batch = draw(task)
    for i, row in enumerate(inputs):
        found = zip(*(part[i].tolist() for part in batch[1:]), strict=True)
        assert list(found) == read_prefix_key(task, row)


def test_rows_of_another_length_hold_strings_that_fill_them():
    task = CASE.task.with_length(50)
    assert (task.min_characters, task.max_characters) == (44, 44)
    assert (draw(task).inputs != 29).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"key_length": 0}, "key_length is 0, expected at least 1"),
        ({"answer_length": 0}, "answer_length is 0, expected at least 1"),
        ({"min_characters": 6}, "min_characters is 6, expected at least 7"),
        ({"max_characters": 7}, "max_characters is 7, expected at least min_characters=8"),
    ],
)
def test_prefix_key_refuses_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        PrefixKeyCopy(**settings)
