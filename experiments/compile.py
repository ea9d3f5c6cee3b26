"""Compile the training step of a config for a TPU that is not here: does it fit, and what is it?

    python -m experiments.compile CONFIG.py [--target v5e:2x2] [--FIELD VALUE ...]

The compiler is that of a TPU (``pip install --no-deps libtpu``; x86-64 Linux) and needs none. Of
every model: the runs of its sweep that one chip trains together, what they hold of its memory, and
the FLOPs of a step as XLA counts them: a loop's body once, and nothing of what is in a kernel.
"""

import os
import pathlib
import sys
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from rich.console import Console
from rich.table import Table

from experiments.config import Config
from experiments.mesh import of_states
from experiments.run import choose, members
from experiments.runs import places_for
from experiments.train import build_program

USAGE = (
    "usage: python -m experiments.compile CONFIG.py [--target v5e:2x2] [--FIELD VALUE ...] [--help]"
)
GIGABYTES = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}
"""Memory of a chip, by kind; from Google Cloud's documentation of TPU versions."""
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Without these the compiler would look for a TPU."""


class Compiled(NamedTuple):
    """What the compiler says of a dispatch of training steps."""

    runs: int
    """On each chip."""
    argument_bytes: int
    temporary_bytes: int
    flops: float
    """Of one step of these runs."""

    @property
    def bytes(self) -> int:
        """What a chip must hold."""
        return self.argument_bytes + self.temporary_bytes


def main(arguments: list[str]) -> int:
    """Returns the exit status: 2 for a bad command line, 1 if a model does not fit."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{USAGE}\n\n{__doc__}")
        return 0 if arguments else 2
    path, *rest = arguments
    try:
        target, rest = _target(rest)
        configs = members(choose(pathlib.Path(path), rest), pathlib.Path(path))
        devices = devices_of(target)
    except (ValueError, TypeError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    room = 1e9 * GIGABYTES[target.partition(":")[0]]
    console, fits = Console(), True
    for name, config in configs.items():
        table = Table("model", "runs a chip", "state, MB", "temporary, MB", "GFLOP a step", "fits")
        for model in config.models:
            found = compile_steps(config, model, devices)
            fits &= found.bytes <= room
            table.add_row(
                model,
                str(found.runs),
                f"{found.argument_bytes / 1e6:,.1f}",
                f"{found.temporary_bytes / 1e6:,.1f}",
                f"{found.flops / 1e9:,.2f}",
                "yes" if found.bytes <= room else f"no: {found.bytes / 1e9:,.1f} GB",
            )
        table.title = f"{name}, {target}: {len(devices)} chips of {room / 1e9:.0f} GB"
        console.print(table)
    return 0 if fits else 1


def _target(arguments: list[str]) -> tuple[str, list[str]]:
    """Returns the target, and the arguments without it."""
    if "--target" not in arguments:
        return "v5e:2x2", arguments
    n = arguments.index("--target")
    target = arguments[n + 1] if n + 1 < len(arguments) else ""
    kind, _, shape = target.partition(":")
    if kind not in GIGABYTES or not shape:
        raise ValueError(
            f"--target is {target!r}; expected KIND:SHAPE, KIND one of {', '.join(GIGABYTES)}, as "
            "in v5e:2x2 or v5p:4x4x4"
        )
    return target, arguments[:n] + arguments[n + 2 :]


def devices_of(target: str) -> list[Any]:
    """Returns the chips of a topology that is described, not there.

    Raises:
      ValueError: if the compiler is not installed or knows no such topology.
    """
    if find_spec("libtpu") is None:
        raise ValueError("the compiler for TPU is not installed: pip install --no-deps libtpu")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        topology = topologies.get_topology_desc(target, platform="tpu")
    except Exception as error:  # The compiler's own, of several types.
        raise ValueError(f"--target is {target!r}, which the compiler refuses: {error}") from None
    return list(np.array(topology.devices).flatten())


def compile_steps(config: Config, model: str, devices: list[Any]) -> Compiled:
    """Returns what a dispatch of the model's runs takes of each of these chips."""
    searched = len(config.tuning_seeds) * len(config.sweep.learning_rates)
    places = places_for(config.mesh, searched, config.sweep.seeds, devices=devices)
    data = jax.eval_shape(lambda: jax.tree.map(jax.numpy.asarray, config.task.load("train")))
    program = build_program(config, model, places, data)
    everywhere = jax.NamedSharding(places.mesh, jax.P())

    def placed(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    seeds, rates = (jax.ShapeDtypeStruct((places.count,), x) for x in ("int32", "float32"))
    of_runs = program.stacked, seeds, rates
    of_runs = jax.tree.map(placed, of_runs, of_states(places.mesh, of_runs))
    shared = jax.tree.map(lambda x: placed(x, everywhere), data)
    compiled = program.dispatch.lower(*of_runs, shared).compile()
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    return Compiled(
        runs=places.count // places.mesh.shape["run"],
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        flops=cost.get("flops", 0.0),
    )


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    sys.exit(main(sys.argv[1:]))
