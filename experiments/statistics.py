"""What a handful of training runs says: rates, medians, steps to a threshold, paired differences.

The unit is a training seed, so the samples are small (3 to 20) and often stop before they succeed.
Every interval here is exact or of known behaviour at that size, and says what it covers where a
small sample cannot give what was asked for. Plain Python numbers in and out: the results are
written as JSON.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from scipy import stats


class SuccessRate(NamedTuple):
    """How many of the runs reached a threshold; ``interval`` is Wilson's."""

    successes: int
    trials: int
    rate: float
    interval: tuple[float, float]


class Survival(NamedTuple):
    """The estimated share of runs that are *not yet* there just after each time of an event."""

    times: tuple[float, ...]
    shares: tuple[float, ...]

    @property
    def median(self) -> float | None:
        """Returns the first time by which half of the runs are there; None if it is not seen."""
        return next((t for t, s in zip(self.times, self.shares, strict=True) if s <= 0.5), None)


class PairedDifferences(NamedTuple):
    """Ours minus theirs over pairs that share a seed."""

    mean: float
    interval: tuple[float, float]
    sign_test: float
    pairs: int


def wilson_interval(successes: float, trials: int, z: float = 1.96) -> tuple[float, float]:
    r"""Returns the interval of a proportion that keeps its coverage also near 0 and 1.

    The proportions p that a score test does not reject, :math:`|\hat p - p| \le z
    \sqrt{p (1 - p) / n}`, that is

    .. math:: \frac{\hat p + z^2 / 2n \pm z \sqrt{\hat p (1 - \hat p) / n + z^2 / 4 n^2}}
              {1 + z^2 / n}.

    Args:
      successes: 0 to ``trials``; may be fractional.
      trials: at least 1, taken as independent.
      z: standard normal quantile, 1.96 for 95 %.

    Raises:
      ValueError: if there is no trial, or there are more successes than trials.

    References:
      Wilson, "Probable inference", JASA 1927, eq. 5; Agresti & Coull, The American Statistician
      1998.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials")
    rate = successes / trials
    centre = (rate + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z * math.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2)) / (1 + z**2 / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def success_rate(values: Sequence[float], threshold: float) -> SuccessRate:
    """Returns the share of runs whose value is at least ``threshold``, with Wilson's interval.

    A run that ended in NaN is a run that did not succeed: it stays in the denominator.

    Raises:
      ValueError: if there are no values.
    """
    successes = sum(value >= threshold for value in values)
    interval = wilson_interval(successes, len(values))
    return SuccessRate(successes, len(values), successes / len(values), interval)


def repeated_successes(successes: int, trials: int, confidence: float = 0.95) -> tuple[int, int]:
    """Returns the least and the greatest number of successes that as many further trials may have.

    The ends of the central interval of the beta-binomial distribution, what Jeffreys' prior makes
    of these trials: Wilson's interval is of the rate, and a count of few trials strays beyond it.

    Raises:
      ValueError: if there is no trial, or there are more successes than trials.

    References:
      Hamada et al., "Bayesian prediction intervals and their relationship to tolerance intervals",
      Technometrics 2004; Brown, Cai & DasGupta, Statistical Science 2001, section 3.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials")
    further = stats.betabinom(trials, successes + 0.5, trials - successes + 0.5)
    tail = (1 - confidence) / 2
    return int(further.ppf(tail)), int(further.ppf(1 - tail))


def median(values: Sequence[float]) -> float:
    """Returns the middle value, or the mean of the two middle ones.

    Raises:
      ValueError: if there are no values, or one is NaN: a run without a value has no rank.
    """
    return float(np.median(_ranked(values)))


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    r"""Returns Student's interval of the mean, :math:`\bar x \pm t_{n - 1} s / \sqrt n`.

    It takes the values as normal, which a mixture of solved and unsolved runs is not: over those
    it is wide, and may pass the ends of what a value can be. One value gives an infinite one.

    Raises:
      ValueError: if there are no values, or one is NaN.

    References:
      Student, "The probable error of a mean", Biometrika 1908.
    """
    ranked = _ranked(values)
    n, mean = len(ranked), float(ranked.mean())
    if n == 1:
        return -math.inf, math.inf
    quantile = float(stats.t.ppf((1 + confidence) / 2, n - 1))
    half = quantile * float(ranked.std(ddof=1)) / math.sqrt(n)
    return mean - half, mean + half


def repeated_mean_interval(
    values: Sequence[float], confidence: float = 0.95, wider: float = 1.0
) -> tuple[float, float]:
    r"""Returns where the mean of as many further values falls.

    .. math:: \bar x \pm w t_{n - 1} s \sqrt{2 / n}

    Student's interval of the mean says where the mean of all possible values is, and misses that
    of a repetition in one of ten to six; both means err here. As there, values are taken as normal,
    and ``wider``, w, is for those that are not.

    Raises:
      ValueError: if there are no values, or one is NaN.

    References:
      Hahn & Meeker, Statistical Intervals, 1991, section 4.7.
    """
    low, high = mean_interval(values, confidence)
    middle, half = (low + high) / 2, (high - low) / 2
    if math.isinf(half):
        return low, high
    half *= math.sqrt(2) * wider
    return middle - half, middle + half


def kaplan_meier(times: Sequence[float], observed: Sequence[bool]) -> Survival:
    r"""Returns the product-limit estimate of the share of runs that are not there yet.

    .. math:: S(t) = \prod_{t_i \le t} (1 - d_i / n_i),

    with :math:`d_i` events at :math:`t_i` among the :math:`n_i` runs still followed just before. A
    run whose time is censored counts among those followed up to and including its time.

    Args:
      times: of the event, or until when the run was followed without one.
      observed: whether the time is that of an event; False is right-censored.

    Raises:
      ValueError: if the lengths differ, there are no runs, or a time is NaN.

    References:
      Kaplan & Meier, "Nonparametric estimation from incomplete observations", JASA 1958, eq. 2b.
    """
    if len(times) != len(observed):
        raise ValueError(f"{len(times)} times, but {len(observed)} marks of what was observed")
    ranked = _ranked(times)
    events = [time for time, seen in zip(times, observed, strict=True) if seen]
    # Exact: a product of rounded ratios can miss one half by an ulp, and with it the median.
    share = Fraction(1)
    moments, shares = [], []
    for moment in sorted(set(events)):
        followed = int(np.sum(ranked >= moment))
        share *= Fraction(followed - events.count(moment), followed)
        moments.append(float(moment))
        shares.append(float(share))
    return Survival(tuple(moments), tuple(shares))


def paired_differences(
    ours: Sequence[float], theirs: Sequence[float], confidence: float = 0.95
) -> PairedDifferences:
    r"""Returns the mean of ours minus theirs, its interval, and an exact test that needs no shape.

    The interval is ``repeated_mean_interval``, where the mean of as many further pairs falls.
    ``sign_test`` is the two-sided binomial p value of the number of positive differences, ties left
    out; with n pairs it cannot be under :math:`2^{1 - n}`, so 5 seeds never reach .05.

    Args:
      ours: one value a seed.
      theirs: the values of the same seeds in the same order.
      confidence: of the interval. One pair gives an infinite one.

    Raises:
      ValueError: if the lengths differ, there are no pairs, or a value is NaN.

    References:
      Conover, Practical Nonparametric Statistics, 3rd ed. 1999, section 3.4.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} values of ours, but {len(theirs)} of theirs")
    differences = _ranked(np.subtract(ours, theirs).tolist())
    positive, negative = int(np.sum(differences > 0)), int(np.sum(differences < 0))
    untied = positive + negative
    p_value = float(stats.binomtest(positive, untied).pvalue) if untied else 1.0
    interval = repeated_mean_interval(differences.tolist(), confidence)
    return PairedDifferences(float(differences.mean()), interval, p_value, len(differences))


def _ranked(values: Sequence[float]) -> np.ndarray:
    """Returns the values in ascending order, float64."""
    array = np.sort(np.asarray(values, np.float64))
    if not array.size or np.isnan(array).any():
        raise ValueError(f"expected one or more numbers and no NaN, got {list(values)}")
    return array
