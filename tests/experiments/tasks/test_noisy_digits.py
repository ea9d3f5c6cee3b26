"""Noise-padded digits: real images, their splits, and the noise."""

import itertools
import sys
from collections import Counter

import jax
import numpy as np
import pytest
from scipy import stats

from experiments.tasks import NoisyDigits, noisy_digits
from tests.experiments.tasks.cases import MIN_P, ROWS, Case, draw


def read_noisy_digits(task, row):
    data = task.load("train")
    (match,) = np.flatnonzero((data.images == np.asarray(row)[:8]).all(axis=(1, 2)))
    return [(task.length - 1, data.labels[match], 7)]


CASE = Case(
    NoisyDigits(length=11),
    read_noisy_digits,
    other_length=8,
    bad_length=7,
    guesses={
        "chance": lambda task, batch, data: np.bincount(data.labels) / len(data.labels),
    },
    answers_shown=False,
)


def test_digits_splits_are_disjoint_stratified_and_complete():
    from sklearn.datasets import load_digits

    splits = [NoisyDigits().load(split) for split in ("train", "valid", "test")]
    pixels, labels = load_digits(return_X_y=True)
    found = np.concatenate([split.labels for split in splits])
    train = splits[0].images.astype(np.float64)
    assert (train.mean(), train.std()) == pytest.approx((0, 1), abs=1e-5)
    images = np.concatenate([split.images for split in splits]).reshape(1797, 64)
    restored = np.round((images - images.min()) / (images.max() - images.min()) * 16)
    assert Counter(map(tuple, np.column_stack([restored, found]))) == Counter(
        map(tuple, np.column_stack([pixels, labels]))
    )
    for one, other in itertools.combinations(splits, 2):
        assert not set(map(bytes, one.images)) & set(map(bytes, other.images))
    for split, share in zip(splits, (0.6, 0.2, 0.2), strict=True):
        shares = np.bincount(split.labels) / np.bincount(found)
        np.testing.assert_allclose(shares, share, atol=0.012)


def test_every_digit_is_tested_in_one_fold_and_chosen_on_in_another():
    tasks = [NoisyDigits(fold=fold) for fold in range(5)]
    for split in ("test", "valid"):
        assert sum(len(task.load(split).labels) for task in tasks) == 1797
    # Each fold is standardised by what it is trained on, so images are compared by their digits.
    labels = [np.bincount(task.load("valid").labels) for task in tasks]
    tested = [np.bincount(task.load("test").labels) for task in tasks]
    np.testing.assert_array_equal(labels[:-1], tested[1:])
    with pytest.raises(ValueError, match=r"fold is 5, expected one in 0\.\.4"):
        NoisyDigits(fold=5)


def test_digits_are_drawn_evenly():
    task = CASE.task
    share = np.bincount(task.load("train").labels) / len(task.load("train").labels)
    assert stats.chisquare(np.bincount(draw(task).targets[:, 0]), ROWS * share).pvalue > MIN_P


def test_noise_is_standard_normal_and_independent_of_all_else():
    batch = draw(CASE.task)
    noise = batch.inputs[:, 8:].reshape(ROWS, 24)
    assert stats.kstest(noise.ravel(), "norm").pvalue > MIN_P
    everything = np.column_stack([noise, np.eye(10)[batch.targets[:, 0]]])
    correlation = np.asarray(np.corrcoef(everything, rowvar=False))[:24]
    correlation[:, :24] -= np.eye(24)
    assert np.abs(correlation).max() < 6 / np.sqrt(ROWS)


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    noisy_digits._read.cache_clear()
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        noisy_digits._read()


def test_digits_ask_for_their_data():
    with pytest.raises(ValueError, match="expected what load returns"):
        NoisyDigits().sample(jax.random.key(0), 1)


def test_digits_floor_is_that_of_the_data():
    labels = np.array([4, 4, 9, 0], np.int32)
    digits = noisy_digits.Digits(np.zeros((4, 8, 8), np.float32), labels)
    assert NoisyDigits().floors(digits)["chance"] == pytest.approx((0.5, 1.5))
