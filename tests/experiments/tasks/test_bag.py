"""The bag of tokens: exact where all rows can be listed, close where they can be drawn."""

import itertools

import numpy as np
import pytest

from experiments.tasks.bag import bag_of_tokens


def score(counts):
    """Mean accuracy and entropy of rows with these counts."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    surprise = np.where(shares > 0, -shares * np.log2(np.where(shares > 0, shares, 1)), 0)
    return shares.max(axis=1).mean(), surprise.sum(axis=1).mean()


@pytest.mark.parametrize(("num_draws", "num_tokens"), [(1, 4), (5, 1), (4, 3), (6, 3), (3, 7)])
def test_bag_is_the_mean_over_all_rows(num_draws, num_tokens):
    rows = np.array(list(itertools.product(range(num_tokens), repeat=num_draws)))
    counts = (rows[:, :, None] == np.arange(num_tokens)).sum(axis=1)
    assert bag_of_tokens(num_draws, num_tokens) == pytest.approx(score(counts), abs=1e-9)


@pytest.mark.parametrize("num_draws", [62, 4094])
def test_bag_of_long_rows_is_what_drawing_them_gives(num_draws):
    counts = np.random.default_rng(0).multinomial(num_draws, [1 / 16] * 16, 20_000)
    assert bag_of_tokens(num_draws, 16) == pytest.approx(score(counts), rel=2e-3)
