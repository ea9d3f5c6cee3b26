"""A long context over many chips that are not here: what each holds, sends and computes.

    python -m benchmarks.scaling [--kind v5p] [--lengths 8192 ...] [--chips 1 4 ...]

The training step of configs/full/long_context.py, its tokens spread over chips, compiled for each
number of TPUs or GPUs; a Markdown table, a row a compilation. See ``experiments.compile`` for its
columns.
"""

import dataclasses
import pathlib
import time
from typing import Literal

import jax
import tyro

from experiments.compile import compile_steps, shown
from experiments.mesh import MeshConfig
from experiments.run import parse
from experiments.targets import chip_of, devices_of

SHAPES = {
    "v5e": {1: "2x2", 4: "2x2", 16: "4x4", 64: "8x8", 256: "16x16"},
    "v5p": {1: "2x2x1", 4: "2x2x1", 16: "2x2x4", 64: "4x4x4", 256: "4x8x8"},
}
SHAPES["v6e"] = SHAPES["v5e"]
SHAPES["h100"] = SHAPES["h200"] = {1: "1", 4: "4", 16: "2x8", 64: "8x8", 256: "32x8"}
"""The slice, or machines and GPUs of each, by kind and number of chips."""
CONFIG = pathlib.Path("configs/full/long_context.py")


@dataclasses.dataclass(frozen=True)
class Options:
    """What is compiled: every length on every number of chips, at 1k to 256k tokens a chip."""

    kind: Literal["v5e", "v5p", "v6e", "h100", "h200"] = "v5p"
    """Of the chips."""
    lengths: tuple[int, ...] = (8192, 65_536, 262_144, 1_048_576)
    """Tokens of a row."""
    chips: tuple[Literal[1, 4, 16, 64, 256], ...] = (1, 4, 16, 64, 256)
    """Over which they are spread."""


def main() -> None:
    """Prints the table."""
    options = tyro.cli(Options, description=__doc__)
    print(f"jax {jax.__version__}, compiled for {options.kind}; a step is of one row\n")
    print(
        "| tokens | chips | holds, GB | of it temporary | fits | TFLOP a step | sent, MB a step | "
        "least ms: products | memory | links | compiled in, s |"
    )
    print("|" + " --- |" * 11)
    for length in options.lengths:
        for count in options.chips:
            if not 1024 <= length // count <= 262_144:
                continue
            overrides = ["--task.length", str(length), "--mesh.sequence", str(count)]
            overrides += ["--train.steps-per-dispatch", "1"]
            (config,) = parse(CONFIG, overrides).values()
            assert config.mesh == MeshConfig(sequence=count)
            target = f"{options.kind}:{SHAPES[options.kind][count]}"
            devices, chip = devices_of(target)[:count], chip_of(target)
            begun = time.perf_counter()
            found = compile_steps(config, config.models[0], target, devices)
            seconds = time.perf_counter() - begun
            fits = "yes" if found.bytes <= 1e9 * chip.gigabytes else "no"
            row = [
                f"{length:,}",
                str(count),
                f"{found.bytes / 1e9:.2f}",
                f"{found.temporary_bytes / 1e9:.2f}",
                fits,
                shown(found.flops, 1e12),
                shown(found.sent_bytes, 1e6),
                *(shown(x, 1e-3) for x in found.least_seconds(chip)),
                f"{seconds:.0f}",
            ]
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main()
