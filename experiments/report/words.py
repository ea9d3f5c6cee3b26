"""Numbers as they are printed."""

import math
import statistics
from collections.abc import Sequence


def share(value: float) -> str:
    """Returns a share in 0..1; what is not quite 1 is never rounded to it."""
    return f"{value:.3f}" if value in (0, 1) or 0.0005 <= value < 0.9995 else f"{value:.5f}"


def loss(value: float) -> str:
    """Returns a loss, to three digits."""
    return f"{value:.3g}" if value < 1000 else f"{value:.3e}"


def count(value: float) -> str:
    """Returns a whole number."""
    return f"{value:,.0f}"


def size(value: float) -> str:
    """Returns a number of bytes."""
    if value < 1024:
        return f"{value:.0f} B"
    return f"{value / 1024:.1f} kB" if value < 1024**2 else f"{value / 1024**2:.1f} MB"


def interval(ends: tuple[float, float]) -> str:
    """Returns an interval in brackets, with two digits that tell its ends apart.

    An infinite one says that one value has none.
    """
    if math.isinf(ends[0]) or math.isinf(ends[1]):
        return "[none of one]"
    width = ends[1] - ends[0]
    digits = max(2, min(6, 1 - math.floor(math.log10(width)))) if width > 0 else 2
    return f"[{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]"


def mean(found: tuple[float, tuple[float, float]], metric: str) -> str:
    """Returns a mean accuracy or loss, and its interval in brackets."""
    value, ends = found
    show = share if metric == "accuracy" else loss
    return f"{show(value)} [{', '.join(map(show, ends))}]"


def spread(values: Sequence[float]) -> str:
    """Returns the median of shares, and the least and the greatest of them where they differ."""
    ends = [share(x) for x in (min(values), max(values))]
    middle = share(statistics.median(values))
    return middle if ends[0] == ends[1] else f"{middle} ({ends[0]}-{ends[1]})"


def successes(rate: tuple[int, int, float, tuple[float, float]]) -> str:
    """Returns ``k/n [low, high]``."""
    reached, trials, _, ends = rate
    return f"{reached}/{trials} {interval(ends)}"


def signed(value: float) -> str:
    """Returns a difference, to three digits."""
    return f"{value:+.3g}"


def percent(value: float) -> str:
    """Returns a share in percent, without digits that say nothing."""
    return f"{100 * value:.4g}%"
