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


def test_a_turn_is_as_many_calls_as_fill_its_time():
    seen = {"long": 0, "short": 0}

    def call(name, seconds):
        seen[name] += 1
        time.sleep(seconds)

    calls = {"long": lambda: call("long", 0.03), "short": lambda: call("short", 0.0)}
    times = take_turns(calls, repeats=1, turn_seconds=0.02)
    assert seen == {"long": 2, "short": 1 + MOST}
    assert times["short"] < 0.01 < times["long"]


def test_what_a_call_returns_is_waited_for():
    class Pending:
        def block_until_ready(self):
            time.sleep(0.05)

    assert take_turns({"call": Pending}, repeats=1)["call"] > 0.04
    assert jax.block_until_ready(None) is None
