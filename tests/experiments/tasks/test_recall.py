"""MQAR: pairs, slots and queries are drawn as they are defined."""

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from scipy import stats

from experiments.tasks import Recall
from tests.experiments.tasks.cases import MIN_P, ROWS, Case, draw, uniform_over


def read_recall(task, row):
    opening = 2 * task.num_pairs
    place = {row[i]: i for i in range(0, opening, 2)}
    value = {row[i]: row[i + 1] for i in range(0, opening, 2)}
    half = task.vocab_size // 2
    assert len(place) == len(set(value.values())) == task.num_pairs
    assert all(1 <= k < half for k in value)
    assert all(half <= v < task.vocab_size for v in value.values())
    answers = [(t, value[row[t]], place[row[t]] + 1) for t in range(opening, len(row)) if row[t]]
    assert len(answers) == len({row[t] for t, _, _ in answers}) == task.num_pairs
    assert all(t % 2 == 0 for t, _, _ in answers)
    return answers


def guess_value_not_in_reach(task, batch, data):
    """Uniform on the values that the other pairs do not use."""
    is_other = batch.targets[:, :, None] != batch.targets[:, None, :]
    taken = (batch.targets[:, None, :, None] == np.arange(23)) & is_other[..., None]
    left = ~taken.any(axis=2) & (np.arange(23) >= 11)
    return left / left.sum(axis=2, keepdims=True)


def guess_value_of_the_row(task, batch, data):
    return (batch.inputs[:, None, 1:10:2, None] == np.arange(23)).mean(axis=2)


CASE = Case(
    Recall(vocab_size=23, length=26, num_pairs=5),
    read_recall,
    other_length=20,
    bad_length=27,
    guesses={
        "chance": lambda task, batch, data: uniform_over(range(11, 23), 23),
        "any value not in reach": guess_value_not_in_reach,
        "any value of the row": guess_value_of_the_row,
    },
)


@pytest.mark.parametrize("slot_power", [1.0, 0.01])
def test_recall_draws_slots_one_after_another_without_replacement(slot_power):
    """Pair 0 has slot x with p ~ x^(a-1), pair 1 the same among those that are left."""
    task = Recall(vocab_size=8, length=14, num_pairs=2, slot_power=slot_power)
    slots = (draw(task).positions - 4) // 2
    assert (slots[:, 0] != slots[:, 1]).all()
    p = np.arange(1, 6) ** (slot_power - 1)
    p /= p.sum()
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    counts = Counter(map(tuple, slots.tolist()))
    observed = [counts[pair] for pair in pairs]
    expected = [ROWS * p[i] * p[j] / (1 - p[i]) for i, j in pairs]
    assert stats.chisquare(observed, expected).pvalue > MIN_P


def test_recall_draws_keys_and_values_uniformly():
    inputs = draw(CASE.task).inputs
    for pair in range(5):
        keys, values = inputs[:, 2 * pair], inputs[:, 2 * pair + 1]
        assert stats.chisquare(np.bincount(keys, minlength=11)[1:]).pvalue > MIN_P
        assert stats.chisquare(np.bincount(values, minlength=23)[11:]).pvalue > MIN_P


def test_recall_draws_keys_values_and_slots_independently():
    batch = draw(CASE.task)
    drawn = (batch.inputs[:, 0], batch.targets[:, 0], batch.positions[:, 0])
    for one, other in itertools.combinations(drawn, 2):
        table = stats.contingency.crosstab(one, other).count
        p_value: Any = stats.chi2_contingency(table)[1]
        assert p_value > MIN_P


def test_recall_may_use_every_key_and_every_slot():
    """The tightest row has all keys of the vocabulary and a query in every slot."""
    task = Recall(vocab_size=8, length=12, num_pairs=3)
    batch = draw(task)
    np.testing.assert_array_equal(np.sort(batch.positions), np.tile([6, 8, 10], (ROWS, 1)))
    np.testing.assert_array_equal(np.sort(batch.inputs[:, :6:2]), np.tile([1, 2, 3], (ROWS, 1)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_pairs": 0}, "num_pairs is 0, expected at least 1"),
        ({"vocab_size": 17}, "vocab_size is 17, expected at least 18"),
        ({"length": 65}, "length is 65, expected an even number of at least 32"),
        ({"length": 30}, "length is 30, expected an even number of at least 32"),
        ({"slot_power": 0.0}, "slot_power is 0.0, expected a positive number"),
        ({"slot_power": math.inf}, "slot_power is inf"),
        ({"slot_power": math.nan}, "slot_power is nan"),
    ],
)
def test_recall_refuses_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Recall(**settings)


def test_recall_slot_does_not_tell_its_pair():
    """With a = 1 the best guess of the pair by the slot is no better than any value of the row."""
    slots = (draw(CASE.task).positions - 10) // 2
    counts = np.stack([np.bincount(slots[:, pair], minlength=8) for pair in range(5)])
    assert stats.chi2_contingency(counts)[1] > MIN_P  # pyright: ignore
    assert CASE.task.floors()["any value of the row"] == pytest.approx((1 / 5, math.log2(5)))


def test_recall_floors_of_the_default_task():
    floors = Recall().floors()
    assert floors["chance"] == pytest.approx((1 / 128, 7.0))
    assert floors["any value not in reach"] == pytest.approx((1 / 121, math.log2(121)))
    assert floors["any value of the row"] == pytest.approx((1 / 8, 3.0))
