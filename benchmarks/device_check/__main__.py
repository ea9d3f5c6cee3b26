"""Checks a device: is attention right, linear in memory, fast; does a model learn.

    python -m benchmarks.device_check [--out runs/device_check] [--minutes 8]

It builds nothing, needs no network and nothing but jax, flax, optax and jaxtyping. Parts end as
their share of the minutes does: what is left out is said. A part that raises does not stop the
others. Exit status 1 if the laws, bfloat16, float32, memory or training fail.
"""

import argparse
import os
import pathlib
import sys
import time
from collections.abc import Callable, Sequence

from benchmarks.device_check.check import FAILED, RAISED, Check
from benchmarks.device_check.device import device
from benchmarks.device_check.laws import laws
from benchmarks.device_check.memory import memory
from benchmarks.device_check.rounding import bfloat16, float32
from benchmarks.device_check.sizes import Sizes, sizes_here
from benchmarks.device_check.speed import speed
from benchmarks.device_check.summary import summarise
from benchmarks.device_check.training import training

PARTS: dict[str, tuple[Callable[[Check], bool | None], float]] = {
    "device": (device, 0.1),
    "laws": (laws, 0.35),
    "bfloat16": (bfloat16, 0.5),
    "float32": (float32, 0.6),
    "memory": (memory, 0.65),
    "training": (training, 0.72),
    "speed": (speed, 0.93),
}
"""By name: a part, and the share of all minutes at which it begins nothing more. What one leaves is
for those after it; speed, which is never done, has the rest."""
MUST_PASS = ("laws", "bfloat16", "float32", "memory", "training")


def main(arguments: Sequence[str] | None = None, sizes: Sizes | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser("python -m benchmarks.device_check", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/device_check"),
        help="where the record (JSON) and what is printed (Markdown) go",
    )  # fmt: skip
    parser.add_argument("--minutes", type=float, default=8.0, help="of all parts together")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    # Some of the memory of a GPU is for others: processes beside this one, and torch.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    check = Check(options.out, sizes_here() if sizes is None else sizes)
    found = check.record
    check.say(f"# {found['device']}, {found['date']}, jax {found['jax']}, commit {found['commit']}")
    for name in PARTS:
        if name in options.parts:
            part, share = PARTS[name]
            check.do(name, part, begun + 60 * share * options.minutes)
    summarise(check)
    check.say(f"- written to {check.path}.json and .md, {time.monotonic() - begun:.0f} s")
    ends = {name: part["status"] for name, part in check.record["parts"].items()}
    return int(any(ends.get(name) in (FAILED, RAISED) for name in MUST_PASS))


if __name__ == "__main__":
    sys.exit(main())
