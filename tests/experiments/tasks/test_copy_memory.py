"""Copy memory: symbols are uniform and the delay is what it says."""

import numpy as np
import pytest
from scipy import stats

from experiments.tasks import CopyMemory
from tests.experiments.tasks.cases import MIN_P, Case, draw, frequencies, uniform_over


def read_copy_memory(task, row):
    number, delay = task.num_symbols, task.delay
    symbols = row[:number]
    assert all(0 <= symbol < 8 for symbol in symbols)
    assert row == symbols + [8] * (delay - 1) + [9] + [8] * number
    signal = row.index(9)
    return [(signal + 1 + i, symbol, i) for i, symbol in enumerate(symbols)]


CASE = Case(
    CopyMemory(delay=7, num_symbols=5),
    read_copy_memory,
    other_length=11,
    bad_length=10,
    guesses={
        "chance": lambda task, batch, data: uniform_over(range(8), 10),
        "most frequent symbol of the row": lambda task, batch, data: frequencies(
            batch.inputs[:, :5], 10
        ),
    },
)


def test_symbols_are_uniform_and_independent():
    symbols = draw(CASE.task).inputs[:, :5]
    assert stats.chisquare(np.bincount(symbols.ravel())).pvalue > MIN_P
    pairs = stats.contingency.crosstab(symbols[:, 0], symbols[:, 1]).count
    assert stats.chi2_contingency(pairs)[1] > MIN_P  # pyright: ignore


def test_the_default_is_the_published_one():
    """Ten symbols, T + 20 tokens, all answers T + 10 back."""
    task = CopyMemory(delay=100)
    assert task.length == 120
    assert task.num_symbols == 10
    assert (draw(task).distances == 110).all()


@pytest.mark.parametrize("name", ["delay", "num_symbols"])
def test_copy_memory_refuses_empty_rows(name):
    with pytest.raises(ValueError, match=f"{name} is 0, expected at least 1"):
        CopyMemory(**{name: 0})
