"""What masks, derivatives and compilation cost, each against a call that is its measure.

    python -m benchmarks.ratios [--length 16384] [--repeats 5]

Calls that are compared take turns in one run; the ratio of their medians is printed, and the
medians beside it. Shapes: one row, N = 4 heads, H = 64, float32.
"""

import dataclasses
import functools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import attn
from attn import masks
from benchmarks.machine import machine
from benchmarks.programs import compiled
from benchmarks.timing import take_turns

NUM_HEADS, WIDTH = 4, 64


@dataclasses.dataclass(frozen=True)
class Options:
    """What is measured."""

    length: int = 16384
    """T = S where masks are compared."""
    repeats: int = 5
    """Turns of every call."""
    output: str = ""
    """A file to write the records to, as JSON lines."""


def main() -> None:
    """Prints a line for every ratio."""
    options = tyro.cli(Options, description=__doc__)
    print(machine())
    records = [
        *skipped_work(options.length, options.repeats),
        *derivatives(min(4096, options.length), options.repeats),
        *compilation(),
        *imports(options.repeats),
    ]
    if options.output:
        lines = "".join(json.dumps({**machine(), **record}) + "\n" for record in records)
        Path(options.output).write_text(lines)


def inputs(length: int) -> list[jax.Array]:
    """Returns query, key and value."""
    rng = np.random.default_rng(0)
    shape = (1, length, NUM_HEADS, WIDTH)
    return [jnp.asarray(rng.standard_normal(shape, np.float32)) for _ in range(3)]


def forward(query, key, value, mask):
    """Returns the output."""
    return attn.dot_product_attention(query, key, value, mask=mask)


def both(query, key, value, mask):
    """Returns the gradients, with the output as its own cotangent."""
    output, pull_back = jax.vjp(functools.partial(forward, mask=mask), query, key, value)
    return pull_back(output)


def skipped_work(length: int, repeats: int) -> list[dict[str, Any]]:
    """How much faster masks with empty tiles are than a causal one, forward and backward."""
    segment = length // 16
    cases = {
        "causal": masks.Causal(),
        "window of 256": masks.Window(255, 0),
        "16 packed segments, traced": masks.Causal()
        & masks.Segments(jnp.arange(length)[None] // segment),
    }
    calls = {name: compiled(both, *inputs(length), mask) for name, mask in cases.items()}
    times = take_turns(calls, repeats)
    return [
        report(f"causal / {name}, T = {length}, fwd+bwd", times["causal"], times[name])
        for name in list(cases)[1:]
    ]


def derivatives(length: int, repeats: int) -> list[dict[str, Any]]:
    """What derivatives cost against the pass that they are of, causal."""
    arrays, mask = inputs(length), masks.Causal()

    def jvp(query, key, value, mask):
        attend = functools.partial(forward, mask=mask)
        return jax.jvp(attend, (query, key, value), (key, value, query))

    def hessian_vector(query, key, value, mask):
        gradient = functools.partial(both, mask=mask)
        return jax.jvp(gradient, (query, key, value), (key, value, query))

    functions = {"fwd": forward, "fwd+bwd": both, "jvp": jvp, "hvp": hessian_vector}
    calls = {name: compiled(f, *arrays, mask) for name, f in functions.items()}
    times = take_turns(calls, repeats)
    return [
        report(f"jvp / fwd, T = {length}, causal", times["jvp"], times["fwd"]),
        report(f"Hessian-vector / fwd+bwd, T = {length}, causal", times["hvp"], times["fwd+bwd"]),
    ]


def compilation() -> list[dict[str, Any]]:
    """Seconds to trace and compile forward and backward, causal, at lengths far apart."""
    records = []
    for length in (1024, 4096, 16384):
        jax.clear_caches()
        begun = time.perf_counter()
        compiled(both, *inputs(length), masks.Causal())
        seconds = time.perf_counter() - begun
        records.append({"name": f"compilation of fwd+bwd, T = {length}", "seconds": seconds})
        print(f"{records[-1]['name']:<58} {seconds:.1f} s")
    return records


def imports(repeats: int) -> list[dict[str, Any]]:
    """How much longer ``import attn`` takes than ``import jax``."""

    def call(module):
        return lambda: subprocess.run([sys.executable, "-c", f"import {module}"], check=True)

    times = take_turns({name: call(name) for name in ("attn", "jax")}, max(repeats, 5))
    return [report("import attn / import jax", times["attn"], times["jax"])]


def report(name: str, above: float, below: float) -> dict[str, Any]:
    """Prints and returns a ratio."""
    print(f"{name:<58} {above / below:5.2f}   ({1e3 * above:.0f} / {1e3 * below:.0f} ms)")
    return {"name": name, "ratio": above / below, "seconds": [above, below]}


if __name__ == "__main__":
    main()
