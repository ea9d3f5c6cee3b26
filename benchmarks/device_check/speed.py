"""Milliseconds of attention, forward and with its gradient, beside everyone who can run here."""

import concurrent.futures
import itertools
import statistics
import time
from typing import Any

import jax

from attn.testing.subject import summary
from benchmarks.device_check.check import Check
from benchmarks.device_check.device import peak
from benchmarks.device_check.peers import (
    BOTH,
    CAUSAL,
    DISTANCES,
    FORWARD,
    FULL,
    MASK,
    SCORE,
    SINGLE,
    WINDOW,
    Calls,
    Peer,
    Work,
    jax_peers,
)
from benchmarks.device_check.sizes import Sizes
from benchmarks.device_check.torch_peers import torch_peers
from benchmarks.machine import machine
from benchmarks.timing import take_turns


def speed(check: Check) -> None:
    """Says a row for all work that there is time for; the most telling comes first."""
    rows = check.found["rows"] = []
    failures = check.found["failures"] = {}
    of_jax, of_torch = jax_peers(), {}
    try:
        of_torch = torch_peers()
    except Exception as error:
        failures["torch"] = summary(error)
    skipped = check.found["skipped"] = []
    compile_seconds: dict[str, list[float]] = {name: [] for name in of_jax | of_torch}
    best = peak(check)
    check.say(
        f"ms, TFLOP/s{'' if best is None else f', % of {best / 1e12:.3g} TFLOP/s'} in "
        f"{check.sizes.dtype}; operations of empty tiles are not counted."
    )
    row = check.table("T", "H", "B", "N", "pairs", "passes", *compile_seconds)
    for work in all_work(check.sizes):
        label = f"T = {work.length}, H = {work.width}, {work.kind}"
        if check.is_late():
            skipped.append(label)
            continue
        calls: dict[str, Calls] = {}
        for name, (found, seconds) in prepared(work, of_jax, of_torch).items():
            if isinstance(found, Exception):
                failures[f"{name}, {label}"] = summary(found)
            elif found is not None:
                calls[name] = found
                compile_seconds[name].append(seconds)
        try:
            timed = times_of(work, calls)
        except Exception as error:
            failures[label] = summary(error)
            continue
        rows += timed
        for found in timed:
            cells = [_cell(found["seconds"].get(n), found["flops"], best) for n in compile_seconds]
            row(*(str(found[axis]) for axis in ("T", "H", "B", "N", "kind", "passes")), *cells)
    check.found["compile_seconds"] = compile_seconds
    medians = {name: statistics.median(found) for name, found in compile_seconds.items() if found}
    if medians:
        check.say("", "Seconds to trace and compile both passes, medians:", "")
        check.say(*(f"- {name}: {seconds:.1f}" for name, seconds in medians.items()))
    if failures:
        check.say("", "Failed:", "", *(f"- {name}: {why}" for name, why in failures.items()))
    if skipped:
        check.say("", "No time was left for:", "", *(f"- {label}" for label in skipped))
    check.found["summary"] = (
        f"{len(rows)} rows of {', '.join(medians) or 'nobody'}; {len(failures)} failures, "
        f"{len(skipped)} cases skipped for lack of time"
    )


def all_work(sizes: Sizes) -> list[Work]:
    """Returns all lengths, widths and kinds; first those that differ least from the first of them.

    So a run that is cut short has a line along every axis.
    """
    kinds = (
        (CAUSAL, MASK, SCORE, FULL, DISTANCES, SINGLE, WINDOW)
        if sizes.kinds is None
        else sizes.kinds
    )
    every = list(itertools.product(sizes.lengths, sizes.widths, kinds))
    first = every[0]
    every.sort(key=lambda work: sum(a != b for a, b in zip(work, first, strict=True)))
    return [Work(*work, sizes) for work in every]


def prepared(
    work: Work, of_jax: dict[str, Peer], of_torch: dict[str, Peer]
) -> dict[str, tuple[Calls | Exception | None, float]]:
    """Returns the calls of each peer or what it raised, and the seconds that this took.

    Those of JAX are compiled side by side where there are cores for it; each is then run once,
    alone.
    """

    def attempt(peer: Peer) -> tuple[Any, float]:
        begun = time.perf_counter()
        try:
            return peer(work), time.perf_counter() - begun
        except Exception as error:
            return error, 0.0

    with concurrent.futures.ThreadPoolExecutor(max(machine()["cores"] // 2, 1)) as pool:
        found = dict(zip(of_jax, pool.map(attempt, of_jax.values()), strict=True))
    found |= {name: attempt(peer) for name, peer in of_torch.items()}
    for name, (calls, _) in found.items():
        try:
            for call in calls.values() if isinstance(calls, dict) else ():
                jax.block_until_ready(call())
        except Exception as error:
            found[name] = error, 0.0
    return found


def times_of(work: Work, calls: dict[str, Calls]) -> list[dict[str, Any]]:
    """Returns a row for each of the passes: what was done, and the seconds of each peer."""
    rows = []
    for passes in (FORWARD, BOTH):
        turns = {name: of_peer[passes] for name, of_peer in calls.items()}
        seconds = take_turns(turns, work.sizes.repeats, work.sizes.turn_seconds)
        row = dict(zip("BTNH", work.shape, strict=True)) | {"kind": work.kind, "passes": passes}
        rows.append(row | {"flops": work.flops(passes), "seconds": seconds})
    return rows


def _cell(seconds: float | None, flops: float, best: float | None) -> str:
    if seconds is None:
        return "-"
    rate = flops / seconds
    share = "" if best is None else f", {rate / best:.0%}"
    return f"{1e3 * seconds:.3g}, {rate / 1e12:.3g}{share}"
