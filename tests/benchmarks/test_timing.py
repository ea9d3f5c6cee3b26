"""How calls take turns."""

import time

import jax

from benchmarks.timing import MOST, take_turns


def test_calls_take_turns_and_the_first_is_not_counted():
    seen, slow = [], iter([0.5, 0.0, 0.0])

    def call(name):
        seen.append(name)
        if name == "b":
            time.sleep(next(slow))

    times = take_turns({name: lambda name=name: call(name) for name in "ab"}, repeats=2)
    assert "".join(seen) == "ababab"
    assert times["b"] < 0.1


def test_a_turn_is_as_many_calls_as_fill_its_time(monkeypatch):
    seen, now = {"long": 0, "short": 0, "shortest": 0}, [0.0]
    monkeypatch.setattr("benchmarks.timing.time.perf_counter", lambda: now[0])

    def call(name, seconds):
        seen[name] += 1
        now[0] += seconds

    lengths = {"long": 32.0, "short": 4.0, "shortest": 0.25}
    calls = {name: lambda name=name: call(name, lengths[name]) for name in seen}
    assert take_turns(calls, repeats=1, turn_seconds=20.0) == lengths
    assert seen == {"long": 2, "short": 1 + 5, "shortest": 1 + MOST}


def test_what_a_call_returns_is_waited_for():
    class Pending:
        def block_until_ready(self):
            time.sleep(0.05)

    assert take_turns({"call": Pending}, repeats=1)["call"] > 0.04
    assert jax.block_until_ready(None) is None
