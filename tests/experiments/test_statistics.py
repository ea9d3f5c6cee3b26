"""Statistics of few runs against cases worked by hand and against SciPy."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from experiments.statistics import (
    kaplan_meier,
    mean_interval,
    median,
    paired_differences,
    repeated_mean_interval,
    repeated_successes,
    success_rate,
    wilson_interval,
)

Z95 = float(stats.norm.ppf(0.975))


@pytest.mark.parametrize(
    ("successes", "trials", "interval"),
    [
        # 0 and n: [0, z^2 / (n + z^2)] and its mirror image.
        (0, 10, (0.0, 0.2775)),
        (10, 10, (0.7225, 1.0)),
        (5, 10, (0.2366, 0.7634)),
        # Newcombe, Statistics in Medicine 1998, table I, method 3.
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilson_interval_is_that_of_the_literature(successes, trials, interval):
    np.testing.assert_allclose(wilson_interval(successes, trials), interval, atol=6e-5)


@pytest.mark.parametrize("trials", [1, 3, 5, 31])
def test_wilson_interval_is_that_of_scipy(trials):
    for successes in range(trials + 1):
        expected = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
        actual = wilson_interval(successes, trials, Z95)
        np.testing.assert_allclose(actual, (expected.low, expected.high), atol=1e-12)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (-1, 3), (4, 3)])
def test_impossible_counts_are_refused(successes, trials):
    with pytest.raises(ValueError, match=f"{successes} successes in {trials} trials"):
        wilson_interval(successes, trials)


def test_success_counts_the_threshold_itself_and_not_nan():
    rate = success_rate([0.99, 1.0, 0.98999, math.nan], 0.99)
    assert (rate.successes, rate.trials, rate.rate) == (2, 4, 0.5)
    assert rate.interval == wilson_interval(2, 4)


def test_results_can_be_written_as_json():
    values = np.array([0.5, 1.0, 0.25], np.float32)
    results = (
        success_rate(values.tolist(), 0.9),
        mean_interval(values.tolist()),
        kaplan_meier([3, 4], [True, False]),
        paired_differences(values.tolist(), [0.0, 0.0, 0.0]),
    )
    assert json.loads(json.dumps(results))[0][:2] == [1, 3]


def test_median_of_odd_and_even_samples():
    assert median([3, 1, 2]) == 2
    assert median([4, 1, 3, 2]) == 2.5


@pytest.mark.parametrize("n", [2, 3, 9])
def test_mean_interval_is_that_of_scipy(n):
    values = np.random.default_rng(n).normal(0.3, 1, n)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose(mean_interval(values.tolist()), (expected.low, expected.high))


def test_the_mean_of_one_value_has_no_interval():
    assert mean_interval([0.5]) == (-math.inf, math.inf)
    assert mean_interval([1.0, 1.0, 1.0]) == (1.0, 1.0)


@pytest.mark.parametrize("n", [3, 10])
def test_the_mean_of_as_many_other_values_falls_into_its_interval(n):
    first, second = np.random.default_rng(n).normal(0.3, 2, (2, 4000, n))
    ends = np.array([repeated_mean_interval(values.tolist()) for values in first])
    means = second.mean(axis=1)
    inside = int(((ends[:, 0] <= means) & (means <= ends[:, 1])).sum())
    assert stats.binomtest(inside, 4000, 0.95).pvalue > 1e-3
    assert repeated_mean_interval([0.5]) == (-math.inf, math.inf)


def test_an_interval_is_made_wider_about_its_middle():
    low, high = repeated_mean_interval([1.0, 2.0, 4.0])
    ends = repeated_mean_interval([1.0, 2.0, 4.0], wider=3.0)
    np.testing.assert_allclose(ends, (2 * low - high, 2 * high - low))


@pytest.mark.parametrize(
    ("successes", "trials", "ends"),
    [
        # By hand for one trial: a further one succeeds with probability (1 + 1/2) / 2 = 3/4.
        (1, 1, (0, 1)),
        (0, 4, (0, 2)),
        (4, 4, (2, 4)),
        (2, 4, (0, 4)),
        (10, 10, (7, 10)),
    ],
)
def test_successes_of_as_many_others(successes, trials, ends):
    assert repeated_successes(successes, trials) == ends
    # The integral of binomial laws over Jeffreys' posterior, by sums over a fine grid.
    rates = (np.arange(20_000) + 0.5) / 20_000
    posterior = stats.beta(successes + 0.5, trials - successes + 0.5).pdf(rates)
    law = stats.binom.pmf(np.arange(trials + 1)[:, None], trials, rates) @ posterior
    below = np.cumsum(law / law.sum())
    assert ends == (int(np.sum(below < 0.025)), int(np.sum(below < 0.975)))


def test_successes_are_no_more_than_trials():
    for successes, trials in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match=f"{successes} successes in {trials} trials"):
            repeated_successes(successes, trials)


def test_kaplan_meier_worked_by_hand():
    # 5 followed: 1 event at 2 -> 4/5. One leaves at 3. 3 followed: 2 events at 5 -> 4/5 * 1/3.
    estimate = kaplan_meier([5, 2, 3, 5, 8], [True, True, False, True, False])
    assert estimate.times == (2, 5)
    assert estimate.shares == pytest.approx((4 / 5, 4 / 15))
    assert estimate.median == 5


def test_a_run_censored_at_the_time_of_an_event_was_still_followed():
    assert kaplan_meier([4, 4], [True, False]).shares == (0.5,)


@pytest.mark.parametrize("seed", range(5))
def test_kaplan_meier_is_that_of_scipy(seed):
    rng = np.random.default_rng(seed)
    times, observed = rng.integers(1, 9, 17), rng.random(17) < 0.6
    data = stats.CensoredData.right_censored(times, ~observed)
    expected = stats.ecdf(data).sf
    estimate = kaplan_meier(times.tolist(), observed.tolist())
    np.testing.assert_allclose(estimate.shares, expected.evaluate(np.array(estimate.times)))


def test_median_does_not_hang_on_rounding():
    # In floating point 1 - 1/n over and over misses one half for many n.
    for n in range(2, 200, 2):
        assert kaplan_meier(list(range(1, n + 1)), [True] * n).median == n // 2


@pytest.mark.parametrize("seed", range(3))
def test_paired_differences_are_those_of_scipy(seed):
    rng = np.random.default_rng(seed)
    ours, theirs = rng.normal(0.3, 1, 9), rng.normal(0, 1, 9)
    result = paired_differences(ours.tolist(), theirs.tolist())
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    half = np.sqrt(2) * (expected.high - expected.low) / 2
    np.testing.assert_allclose(result.interval, (result.mean - half, result.mean + half))
    assert result.mean == pytest.approx(np.mean(ours - theirs))
    assert result.sign_test == stats.binomtest(int(np.sum(ours > theirs)), 9).pvalue


def test_sign_test_leaves_ties_out():
    # 5 of 5 that differ: 2 / 2^5.
    result = paired_differences([1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 6])
    assert result.sign_test == pytest.approx(1 / 16)
    assert result.pairs == 6
    assert paired_differences([1, 1], [1, 1]).sign_test == 1


def test_one_pair_says_nothing_of_the_spread():
    assert paired_differences([3], [1]) == (2, (-math.inf, math.inf), 1, 1)


@pytest.mark.parametrize("function", [median, mean_interval, repeated_mean_interval])
@pytest.mark.parametrize("values", [[], [1.0, math.nan]])
def test_nothing_and_nan_have_no_middle(function, values):
    with pytest.raises(ValueError, match="one or more numbers"):
        function(values)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 times, but 1"):
        kaplan_meier([1, 2], [True])
    with pytest.raises(ValueError, match="2 values of ours, but 1"):
        paired_differences([1, 2], [1])
