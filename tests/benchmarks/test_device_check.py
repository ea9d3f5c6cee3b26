"""The check of a device: that it ends, that it finds what is wrong, that it needs little."""

import dataclasses
import functools
import json
import math
import multiprocessing
import os
import pathlib
import re
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import attn
from benchmarks.device_check import __main__ as command
from benchmarks.device_check import (
    laws,
    memory,
    peers,
    rounding,
    speed,
    torch_peers,
    training,
    workers,
)
from benchmarks.device_check.check import Check
from benchmarks.device_check.sizes import Sizes
from benchmarks.device_check.summary import Bar, ratio_of

pytestmark = pytest.mark.usefixtures("quick_to_compile")
ROOT = pathlib.Path(__file__).parent.parent.parent
TINY = Sizes(
    dtype="float32",
    matrix_side=64,
    copied_bytes=2**12,
    laws=("plain call",),
    calls=("NaN in padding",),
    ragged_length=31,
    memory_length=1024,
    derivatives=("gradient",),
    lengths=(64, 32),
    widths=(8,),
    kinds=(peers.CAUSAL, peers.MASK),
    tokens=64,
    model_width=16,
    window=4,
    repeats=1,
    turn_seconds=0.0,
    steps=25,
)


def records(folder):
    """The record and the text of the one check there."""
    (record,) = folder.glob("device_check-*.json")
    return json.loads(record.read_text()), record.with_suffix(".md").read_text()


@pytest.fixture
def check(tmp_path):
    return Check(tmp_path, TINY)


def done(check, part):
    """Whether a part, with all the time it wants, passes; and what it found."""
    check.do("part", part, math.inf)
    return check.found["status"], check.found


def test_all_parts_but_training(tmp_path, capsys):
    parts = [name for name in command.PARTS if name != "training"]
    arguments = ["--out", str(tmp_path), "--minutes", "600", "--parts", *parts]
    assert command.main(arguments, TINY) == 0
    record, text = records(tmp_path)
    assert capsys.readouterr().out == text
    assert re.match(r"# .+, jax \S+, commit ([0-9a-f]{12}\+?|unknown)\n", text)
    assert record["packages"]["jaxlib"]
    found = record["parts"]
    assert {name: part["status"] for name, part in found.items()} == {
        "device": "measured",
        "laws": "passed",
        "bfloat16": "passed",
        "float32": "passed",
        "memory": "passed",
        "speed": "measured",
    }
    assert found["laws"]["counts"]["passed"] == 2  # by default, and by the reference
    assert set(found["bfloat16"]["errors"]) == {"default", "reference"}
    assert list(found["float32"]["errors"]["default"]) == ["default", "highest"]
    assert [x["of"] for x in found["memory"]["programs"]] == ["gradient"]
    rows, names = found["speed"]["rows"], {"attn", "jax.nn xla"}
    assert len(rows) == 2 * 2 * 2
    assert not found["speed"]["failures"]
    assert all(names <= set(row["seconds"]) and min(row["seconds"].values()) > 0 for row in rows)
    last = text[text.index("## Summary") :].splitlines()
    assert len(last) < 16
    for name in ("laws", "bfloat16", "float32", "memory"):
        assert any(line.startswith(f"- PASS {name}: ") for line in last)


@pytest.mark.slow
@pytest.mark.parametrize(("least", "expected"), [(0.0, "passed"), (1.1, "failed")])
def test_training_passes_if_every_seed_learns(tmp_path, least, expected):
    check = Check(tmp_path, dataclasses.replace(TINY, least_accuracy=least))
    status, found = done(check, training.training)
    assert status == expected
    assert found["steps"] == [TINY.steps] * 2
    assert len(found["accuracy"]) == 2


def test_a_part_that_raises_does_not_stop_the_others(tmp_path, monkeypatch):
    def broken(check):
        check.say("so far")
        raise RuntimeError("no such kernel\nand more")

    parts = {
        "device": (lambda check: None, 1),
        "memory": (broken, 1),
        "training": (lambda check: check.found.update(summary="well") or True, 1),
    }
    monkeypatch.setattr(command, "PARTS", parts)
    assert command.main(["--out", str(tmp_path)], TINY) == 1
    record, text = records(tmp_path)
    ends = {name: part["status"] for name, part in record["parts"].items()}
    assert ends == {"device": "measured", "memory": "raised", "training": "passed"}
    assert "no such kernel" in record["parts"]["memory"]["traceback"]
    assert "so far" in text
    assert "- FAIL memory: RuntimeError: no such kernel\n- PASS training: well\n" in text


@pytest.mark.parametrize(("outcome", "status"), [(True, 0), (False, 1), (None, 0)])
def test_exit_status(tmp_path, monkeypatch, outcome, status):
    monkeypatch.setattr(command, "PARTS", {"laws": (lambda check: outcome, 1)})
    assert command.main(["--out", str(tmp_path)], TINY) == status


def test_a_part_that_was_cut_short_is_said_to_be(tmp_path, monkeypatch):
    parts = {"laws": lambda check: check.found.update(summary="of 3: 2 passed", left=1) or True}
    monkeypatch.setattr(command, "PARTS", {name: (part, 1) for name, part in parts.items()})
    assert command.main(["--out", str(tmp_path)], TINY) == 0
    assert "- PART laws: of 3: 2 passed\n" in records(tmp_path)[1]


def test_without_time_nothing_begins(tmp_path, monkeypatch):
    def never(check):
        pytest.fail("it has begun")

    parts = {name: (never, share) for name, (_, share) in command.PARTS.items()}
    monkeypatch.setattr(command, "PARTS", parts)
    assert command.main(["--out", str(tmp_path), "--minutes", "0"], TINY) == 0
    record, text = records(tmp_path)
    assert {part["status"] for part in record["parts"].values()} == {"skipped"}
    assert "- SKIP speed: no time was left" in text


def test_time_left_over_is_for_later_parts(tmp_path, monkeypatch):
    until = {}
    begun = time.monotonic()
    for name in command.PARTS:
        part = lambda check, name=name: until.__setitem__(name, check.until)  # noqa: E731
        monkeypatch.setitem(command.PARTS, name, (part, command.PARTS[name][1]))
    command.main(["--out", str(tmp_path), "--minutes", "10"], TINY)
    assert list(until.values()) == sorted(until.values())
    assert until["speed"] < begun + 600


@pytest.mark.parametrize("part", [laws.laws, rounding.bfloat16, memory.memory, speed.speed])
def test_a_part_whose_time_is_over_begins_nothing_more(check, part):
    def late(check):
        check.until = -math.inf
        return part(check)

    status, found = done(check, late)
    if part is laws.laws:
        assert found["counts"] == {"passed": 0, "failed": 0, "not offered": 0, "no time": 2}
    if part is not speed.speed:
        assert (status, found["summary"]) == ("skipped", "no time was left")
    else:
        assert len(found["skipped"]) == 4
        assert not found["rows"]


def test_workers_may_be_processes(check, monkeypatch):
    """As on a GPU."""
    monkeypatch.setattr(workers, "are_processes", lambda: True)
    status, found = done(check, laws.laws)
    assert (status, found["counts"]["passed"]) == ("passed", 2)
    status, found = done(check, rounding.bfloat16)
    assert status == "passed"
    assert list(found["errors"]) == ["default", "reference"]


def spoils(n, bad, how):
    """Ends its process, as XLA does where a check of its own fails; or raises."""
    if n == bad:
        how()
    return n


def kill_workers():
    """Those that wait for something to do."""
    for process in multiprocessing.active_children():
        process.kill()
        process.join()


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (functools.partial(os._exit, 6), workers.ENDED),
        (functools.partial(math.sqrt, -1), "ValueError: math domain error"),
    ],
)
def test_an_item_that_ends_its_process_is_lost_alone(monkeypatch, how, why):
    monkeypatch.setattr(workers, "are_processes", lambda: True)
    items = [(n, 2, how) for n in range(4)]
    found = workers.side_by_side(spoils, items, math.inf, lambda *x: f"lost {x[0]}: {x[-1]}")
    assert list(found) == [0, 1, f"lost 2: {why}", 3]
    assert list(workers.side_by_side(spoils, items, -math.inf, spoils)) == [None] * 4
    assert not multiprocessing.active_children()


def test_a_worker_that_ends_while_it_waits_is_replaced(monkeypatch):
    first = workers._Process()
    assert first.alive() is first
    kill_workers()
    second = first.alive()
    try:
        assert second.done(functools.partial(spoils, 3, -1, None), math.inf) == (3, None)
    finally:
        second.kill()
    alive, asked = workers._Process.alive, []
    monkeypatch.setattr(workers._Process, "alive", lambda x: asked.append(x) or alive(x))
    monkeypatch.setattr(workers, "are_processes", lambda: True)
    monkeypatch.setattr(workers, "MOST_PROCESSES", 1)
    items = [(n, -1, None) for n in range(3)]
    assert list(workers.side_by_side(spoils, items, math.inf, spoils)) == [0, 1, 2]
    assert len(asked) == 3
    assert not multiprocessing.active_children()


def test_an_item_that_does_not_end_is_given_up(monkeypatch):
    monkeypatch.setattr(workers, "are_processes", lambda: True)
    monkeypatch.setattr(workers, "PATIENCE", 0.5)
    items, until = [(1e6,), (0.0,)], time.monotonic() + 1
    found = list(workers.side_by_side(time.sleep, items, until, lambda *item: item))
    assert found[0] == (1e6, workers.NOT_ENDED)
    assert not multiprocessing.active_children()


def quadratic_and_wrong(dtype="float32"):
    """Attention that forgets scale and, of masks, all but causality; in any dtype."""

    def attend(query, key, value, is_causal=False, mask=None, **_):
        return jax.nn.dot_product_attention(query, key, value, scale=1.0, is_causal=is_causal)

    return {"default": attend}


def test_wrong_attention_is_found(check, monkeypatch):
    for module in (laws, rounding):
        monkeypatch.setattr(module, "implementations", quadratic_and_wrong)
    status, found = done(check, laws.laws)
    assert status == "failed"
    assert list(found["failing"]) == ["default: plain call"]
    for part in (rounding.bfloat16, rounding.float32):
        status, found = done(check, part)
        assert status == "failed"
        assert "default: NaN in padding" in found["summary"]
        assert "inf of what is allowed" in found["summary"]


def test_quadratic_memory_is_found(check, monkeypatch):
    monkeypatch.setattr(memory, "in_linear_memory", quadratic_and_wrong)
    status, found = done(check, memory.memory)
    assert status == "failed"
    assert found["programs"][0]["ratio"] > 3


def test_a_peer_that_cannot_run_is_listed(check, monkeypatch):
    def broken(work):
        raise NotImplementedError("head width 8")

    def breaks_later(work):
        return {peers.FORWARD: lambda: 1, peers.BOTH: lambda: 1 / 0}

    found = {"attn": peers.ours(attn.dot_product_attention)}
    monkeypatch.setattr(speed, "jax_peers", lambda: found | {"broken": broken})
    monkeypatch.setattr(speed, "torch_peers", lambda: {"later": breaks_later})
    status, found = done(check, speed.speed)
    assert status == "measured"
    assert found["failures"]["broken, T = 64, H = 8, causal"] == "NotImplementedError: head width 8"
    assert found["failures"]["later, T = 32, H = 8, causal"].startswith("ZeroDivisionError")
    assert all(list(row["seconds"]) == ["attn"] for row in found["rows"])


KINDS = peers.FULL, peers.CAUSAL, peers.WINDOW, peers.MASK, peers.SCORE
KINDS += peers.DISTANCES, peers.SINGLE


@pytest.mark.parametrize("kind", KINDS)
def test_peers_compute_the_same(kind):
    """And the operations are those of the pairs that a mask of intervals leaves."""
    work = peers.Work(16, 8, kind, TINY)
    found = {name: prepare(work) for name, prepare in peers.jax_peers().items()}
    calls = {name: x for name, x in found.items() if x is not None}
    assert ("jax.nn xla" in calls) == (kind not in (peers.SCORE, peers.DISTANCES))
    for passes in (peers.FORWARD, peers.BOTH):
        values = [jax.tree.leaves(x[passes]()) for x in calls.values()]
        for other in values[1:]:
            for x, y in zip(values[0], other, strict=True):
                np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
    i, j = np.arange(16)[:, None], np.arange(16)
    seen = {peers.FULL: i == i, peers.WINDOW: (j <= i) & (i - j < TINY.window)}
    pairs = np.sum(np.broadcast_to(seen.get(kind, j <= i), (16, 16)))
    rows, _, heads, width = work.shape
    assert work.flops(peers.FORWARD) == 4 * rows * heads * width * pairs
    assert work.flops(peers.BOTH) == 3.5 * work.flops(peers.FORWARD)


def test_work_begins_with_a_line_along_every_axis():
    sizes = Sizes()
    every = speed.all_work(sizes)
    assert len(every) == len(set(every)) == len(sizes.lengths) * len(sizes.widths) * 7
    first, few = every[0], every[: 1 + 6 + 1 + 4]
    assert (first.length, first.width, first.kind) == (8192, 128, peers.CAUSAL)
    assert {work.length for work in few} == set(sizes.lengths)
    assert {work.width for work in few} == set(sizes.widths)
    assert len({work.kind for work in few}) == 7


@pytest.mark.parametrize(("dtype", "names"), [("bfloat16", None), ("float32", rounding.SINGLE)])
def test_calls_say_the_same_as_the_dense_formula(dtype, names):
    """All that a check of a device asks: so what fails there is the device's, or the kernels'."""
    every = rounding.calls(31)
    assert set(rounding.SINGLE) <= set(every)
    for name, call in every.items():
        if names is None or name in names:
            inputs = rounding.numbers(call, 31, dtype)
            for precision, kinds in rounding.EXAMINED[dtype].items():
                formula = rounding.expected(call, 31, dtype, precision)
                ours = rounding.our_derivatives(
                    call, attn.dot_product_attention, *inputs, dtype, precision
                )
                errors = rounding.excess(ours, *formula, rounding.ROUNDINGS[dtype])
                assert set(errors) == set(kinds)
                assert max(errors.values()) <= 1, (name, precision)


def test_a_ratio_is_of_the_rows_that_it_is_about():
    def row(kind, length, **seconds):
        return {"kind": kind, "passes": peers.BOTH, "T": length, "seconds": seconds}

    rows = [
        row(peers.CAUSAL, 8, attn=1.0, other=2.0),
        row(peers.CAUSAL, 8, attn=1.0, other=8.0),
        row(peers.CAUSAL, 8, attn=1.0),
        row(peers.CAUSAL, 4, attn=1.0, other=100.0),
        row(peers.FULL, 8, attn=1.0, other=100.0),
    ]
    bar = Bar("cpu", "other", (peers.CAUSAL,), (peers.BOTH,), 3.0, (8,))
    found = ratio_of(bar, rows)
    assert found is not None
    assert found["mean"] == pytest.approx(4.0)
    assert (found["lowest"], found["rows"]) == (2.0, 2)
    assert ratio_of(bar, rows[2:]) is None


def test_torch_without_a_gpu_is_no_peer():
    assert torch_peers.torch_peers() == {}


ABSENT = ("tyro", "sklearn", "scipy", "beartype", "torch", "matplotlib", "orbax", "pytest")


@pytest.mark.parametrize(
    ("absent", "code"),
    [
        ((*ABSENT, "rich", "flax"), "from benchmarks.device_check import __main__"),
        (ABSENT, "import experiments.config, experiments.train"),  # flax needs rich.
    ],
)
def test_it_needs_little(absent, code):
    code = f"import sys; sys.modules |= dict.fromkeys({absent}); {code}"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert run.returncode == 0, run.stderr.decode()
