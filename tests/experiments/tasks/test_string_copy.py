"""String copy: lengths and letters are uniform; rows of another length are filled."""

import numpy as np
import pytest
from scipy import stats

from experiments.tasks import NO_SOURCE, UNASKED, StringCopy
from tests.experiments.tasks.cases import MIN_P, ROWS, Case, draw, uniform_over


def read_string_copy(task, row):
    bar = row.index(27)
    string = row[1:bar]
    n = len(string)
    assert task.min_characters <= n <= task.max_characters
    assert row == [26, *string, 27, *string] + [29] * 2 * (task.max_characters - n)
    assert all(0 <= letter < 26 for letter in string)
    answers = [(bar + i, letter, row.index(26) + 1 + i) for i, letter in enumerate(string)]
    return [*answers, (2 * n + 1, 28, bar)]


def guess_by_frequency(task, batch, data):
    """Strings of 2 to 5 letters: 14 letters for 4 ends."""
    return np.array([14 / 26] * 26 + [0, 0, 4, 0]) / 18


def guess_by_length(task, batch, data):
    is_end = (batch.targets == 28)[:, :, None]
    return np.where(is_end, uniform_over([28], 30), uniform_over(range(26), 30))


def guess_by_letters(task, batch, data):
    strings = [row[1 : row.tolist().index(27)] for row in batch.inputs]
    shares = np.array([np.bincount(x, minlength=30) / len(x) for x in strings])
    is_end = (batch.targets == 28)[:, :, None]
    return np.where(is_end, uniform_over([28], 30), shares[:, None, :])


CASE = Case(
    StringCopy(max_characters=5, min_characters=2),
    read_string_copy,
    other_length=4,
    bad_length=13,
    guesses={
        "chance": guess_by_frequency,
        "length alone": guess_by_length,
        "any letter of the string": guess_by_letters,
    },
    answers_shown=False,
    full=StringCopy(max_characters=5, min_characters=5),
)


def test_strings_have_every_length_equally_often():
    lengths = (draw(CASE.task).inputs == 27).argmax(axis=1) - 1
    counts = np.bincount(lengths, minlength=6)
    assert counts[:2].sum() == 0
    assert stats.chisquare(counts[2:]).pvalue > MIN_P


def test_letters_are_uniform_and_independent_of_their_neighbours():
    inputs = draw(CASE.task).inputs
    assert stats.chisquare(np.bincount(inputs[:, 1], minlength=26)).pvalue > MIN_P
    same = int((inputs[:, 1] == inputs[:, 2]).sum())
    assert stats.binomtest(same, ROWS, 1 / 26).pvalue > MIN_P


def test_sources_of_letters_show_them_and_the_end_is_read_at_the_bar():
    batch = draw(CASE.task)
    asked = batch.targets != UNASKED
    shown = np.take_along_axis(batch.inputs, np.maximum(batch.sources, 0), axis=1)
    expected = np.where(batch.targets == 28, 27, batch.targets)
    np.testing.assert_array_equal(shown[asked], expected[asked])
    assert (batch.sources[~asked] == NO_SOURCE).all()
    assert (batch.positions[~asked] == CASE.task.length - 1).all()


def test_rows_of_another_length_hold_strings_that_fill_them():
    task = StringCopy(max_characters=3).with_length(26)
    assert (task.min_characters, task.max_characters) == (12, 12)
    batch = draw(task)
    assert (batch.targets != UNASKED).all()
    assert (batch.inputs != 29).all()
    assert (batch.distances == 12).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_characters": 0}, "min_characters is 0, expected at least 1"),
        ({"max_characters": 3, "min_characters": 4}, "max_characters is 3, expected at least min"),
    ],
)
def test_string_copy_refuses_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        StringCopy(**settings)
