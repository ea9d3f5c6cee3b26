"""Times of calls that take turns."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

MOST = 50
"""Calls in a turn, at most."""


def take_turns(
    calls: Mapping[str, Callable[[], Any]], repeats: int, turn_seconds: float = 0.0
) -> dict[str, float]:
    """Returns the median seconds of calls that take turns; the first turn only warms up.

    Args:
      calls: by name; what a call returns is waited for.
      repeats: turns that count.
      turn_seconds: where it is above 0, a turn is as many calls as take about so long, of which
        only the last is waited for: a device with a queue then hides how long a start takes.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    times = dict.fromkeys(calls, 1)
    for turn in range(repeats + 1):
        for name, call in calls.items():
            begun = time.perf_counter()
            for _ in range(times[name] - 1):
                call()
            jax.block_until_ready(call())
            each = (time.perf_counter() - begun) / times[name]
            if turn:
                seconds[name].append(each)
            else:
                times[name] = min(max(int(turn_seconds / each), 1), MOST)
    return {name: statistics.median(values) for name, values in seconds.items()}
