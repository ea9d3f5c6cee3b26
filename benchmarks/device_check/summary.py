"""The last lines: how every part ended, and ratios to peers beside those that are asked for."""

import statistics
from typing import Any, NamedTuple

from benchmarks.device_check.check import FAILED, MEASURED, PASSED, RAISED, SKIPPED, Check
from benchmarks.device_check.peers import BOTH, CAUSAL, FORWARD, FULL, MASK, SCORE, WINDOW

WORDS = {PASSED: "PASS", MEASURED: "DONE", FAILED: "FAIL", RAISED: "FAIL", SKIPPED: "SKIP"}

IN_PART = "PART"
"""Nothing failed of what there was time for."""


class Bar(NamedTuple):
    """How fast attn should be at least, as a multiple of a peer's speed."""

    platform: str
    peer: str
    kinds: tuple[str, ...]
    passes: tuple[str, ...]
    least: float
    lengths: tuple[int, ...] | None = None
    """All if None."""


BARS = (
    Bar("gpu", "jax.nn cudnn", (CAUSAL, FULL, WINDOW), (FORWARD, BOTH), 0.98),
    Bar("gpu", "torch FlexAttention", (MASK, SCORE), (FORWARD,), 0.7),
    Bar("gpu", "torch FlexAttention", (MASK, SCORE), (BOTH,), 0.6),
    Bar("gpu", "jax.nn xla", (CAUSAL, FULL), (BOTH,), 5.0, (8192,)),
    Bar("cpu", "jax.nn xla", (CAUSAL,), (BOTH,), 4.0, (4096,)),
)


def summarise(check: Check) -> None:
    """Says a line for every part, and one for every ratio."""
    parts = check.record["parts"]
    rows = parts.get("speed", {}).get("rows", [])
    bars = [bar for bar in BARS if bar.platform == check.record["platform"]]
    check.record["ratios"] = [ratio for bar in bars if (ratio := ratio_of(bar, rows))]
    check.say("", "## Summary", "")
    check.say(*(f"- {_word(part)} {n}: {part['summary']}" for n, part in parts.items()))
    for ratio in check.record["ratios"]:
        verdict = "reached" if ratio["mean"] >= ratio["least"] else "missed"
        check.say(
            f"- {ratio['name']}: {ratio['mean']:.2f} times as fast, the mean of {ratio['rows']} "
            f"from {ratio['lowest']:.2f} on; {ratio['least']} is asked for: {verdict}"
        )


def _word(part: dict[str, Any]) -> str:
    is_cut_short = part["status"] == PASSED and part.get("left", 0) > 0
    return IN_PART if is_cut_short else WORDS[part["status"]]


def ratio_of(bar: Bar, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Returns how many times as fast as the peer attn is; None if no row says."""
    ratios = [
        row["seconds"][bar.peer] / row["seconds"]["attn"]
        for row in rows
        if {bar.peer, "attn"} <= set(row["seconds"])
        and row["kind"] in bar.kinds
        and row["passes"] in bar.passes
        and (bar.lengths is None or row["T"] in bar.lengths)
    ]
    if not ratios:
        return None
    lengths = "" if bar.lengths is None else f", T = {', '.join(map(str, bar.lengths))}"
    what = f"{', '.join(bar.kinds)}, {' and '.join(bar.passes)}{lengths}"
    mean = statistics.geometric_mean(ratios)
    found = {"name": f"attn / {bar.peer}, {what}", "mean": mean, "lowest": min(ratios)}
    return found | {"least": bar.least, "rows": len(ratios)}
