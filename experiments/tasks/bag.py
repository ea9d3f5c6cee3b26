"""The floor of a predictor that knows which tokens a row holds, and not where each stands."""

import functools
import math

import numpy as np

from experiments.tasks.task import Floor


@functools.lru_cache(maxsize=64)
def bag_of_tokens(num_draws: int, num_tokens: int) -> Floor:
    r"""Guessing one of the row's tokens by how often each occurs there.

    Let a row hold n independent uniform tokens out of V, and let each of the n be the answer
    equally often. With c the counts of the V tokens in the row, the most frequent token is right
    with probability ``max c / n``, and the answer has the entropy of ``c / n``::

        accuracy = E[max c] / n        loss = E[-sum (c / n) log2 (c / n)]

    Both expectations are exact up to rounding. Counts are binomial, which is all that the loss
    needs. For the maximum, independent Poisson counts of mean n / V have, given that their sum is
    n, the law of c; so ``P(max c <= m)`` is the n-th coefficient of the V-th power of a Poisson
    series cut off after m, over the uncut one, and ``E[max c] = sum over m of P(max c > m)``.
    Costs O(n log n) time for each of the O(sqrt n) values of m that matter.

    Args:
        num_draws: n, at least 1.
        num_tokens: V, at least 1.

    Example:
        Two coin flips are alike half the time: the better guess is right in 3 of 4 cases.

        >>> floor = bag_of_tokens(2, 2)
        >>> print(f"{floor.accuracy:.3f} {floor.loss:.3f}")
        0.750 0.500
    """
    n, mean = num_draws, num_draws / num_tokens
    log_factorial = np.array([math.lgamma(count + 1) for count in range(n + 1)])
    count = np.arange(n + 1)
    poisson = np.exp(count * math.log(mean) - mean - log_factorial)
    log_sum_is_n = n * math.log(n) - n - log_factorial[n]

    expected_maximum = float(math.ceil(mean))  # the maximum is at least the mean
    for m in range(math.ceil(mean), n):
        size = num_tokens * m + 1
        power = np.fft.irfft(np.fft.rfft(poisson[: m + 1], size) ** num_tokens, size)
        probability_above = 1 - power[n] / math.exp(log_sum_is_n)
        if probability_above < 1e-9:
            break
        expected_maximum += float(probability_above)

    if num_tokens == 1:
        return Floor(1.0, 0.0)
    share = 1 / num_tokens
    log_choose = log_factorial[n] - log_factorial - log_factorial[::-1]
    binomial = np.exp(log_choose + count * math.log(share) + (n - count) * math.log(1 - share))
    surprise = np.where(count > 0, -(count / n) * np.log2(np.maximum(count, 1) / n), 0.0)
    return Floor(expected_maximum / n, float(num_tokens * np.sum(binomial * surprise)))
