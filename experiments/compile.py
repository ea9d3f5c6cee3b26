"""Compile the training step of a config for a TPU that is not here: does it fit, what must it take?

    python -m experiments.compile CONFIG.py [--target v5e:2x2] [--FIELD VALUE ...]

The compiler is that of a TPU (``pip install --no-deps libtpu``; x86-64 Linux) and needs none. The
runs of a sweep are spread over the chips and, with ``--mesh.data``, ``--mesh.sequence`` and
``--mesh.model``, each run over several of them. Of every model:

- the runs that a chip takes part in, and what they hold of its memory;
- what it sends in a step: the collectives of the program, loops counted (``experiments.traffic``);
  where the compiler does not show it, as of v5p, those of the same step for as many chips of v5e;
- the FLOPs of a step on a chip (``experiments.flops``);
- the least time of a step, that is FLOPs over peak, the state read and written once over the
  bandwidth of memory, and bytes sent over the bandwidth of all links together. What a program takes
  is more: matrices too small for the peak, activations, one link instead of all.
"""

import math
import os
import pathlib
import re
import sys
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from rich.console import Console
from rich.table import Table

from experiments.config import Config
from experiments.console import describe_mesh
from experiments.flops import flops_of
from experiments.mesh import of_states
from experiments.run import choose, members
from experiments.runs import places_for
from experiments.traffic import Traffic, traffic
from experiments.train import build_program

USAGE = (
    "usage: python -m experiments.compile CONFIG.py [--target v5e:2x2] [--FIELD VALUE ...] [--help]"
)


class Chip(NamedTuple):
    """What a chip has, by Google Cloud's documentation of TPU versions."""

    gigabytes: float
    """Of memory."""
    flops: float
    """A second, of products in bfloat16."""
    memory: float
    """Bytes a second, to its memory and back."""
    links: float
    """Bytes a second, over all links to other chips."""


CHIPS = {
    "v4": Chip(32, 275e12, 1228e9, 300e9),
    "v5e": Chip(16, 197e12, 819e9, 200e9),
    "v5p": Chip(95, 459e12, 2765e9, 600e9),
    "v6e": Chip(32, 918e12, 1640e9, 448e9),
}
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Without these the compiler would look for a TPU."""
SHOWN = "v5e"
"""A kind whose programs the compiler shows."""
SHAPES = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
"""Its slices, by their chips."""


class Compiled(NamedTuple):
    """What the compiler says of a dispatch of training steps, for one chip."""

    runs: int
    """That it takes part in."""
    argument_bytes: int
    temporary_bytes: int
    traffic: Traffic | None
    """What it sends in a dispatch; None where that is not known."""
    steps: int
    """Of a dispatch."""
    flops: float
    """Of a step."""

    @property
    def bytes(self) -> int:
        """What a chip must hold."""
        return self.argument_bytes + self.temporary_bytes

    @property
    def sent_bytes(self) -> float | None:
        """What it sends in a step."""
        return None if self.traffic is None else self.traffic.total / self.steps

    def least_seconds(self, chip: Chip) -> tuple[float, float, float | None]:
        """Returns what a step takes at least for its products, for memory and for links."""
        return (
            self.flops / chip.flops,
            2 * self.argument_bytes / chip.memory,
            None if self.sent_bytes is None else self.sent_bytes / chip.links,
        )


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
        for config in configs.values():
            places_for(config.mesh, 1, devices=devices)
    except (ValueError, TypeError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    chip = CHIPS[target.partition(":")[0]]
    console, fits = Console(), True
    for name, config in configs.items():
        table = Table("model", "runs a chip", "MB: state + working", "fits")
        for column in ("GFLOP a step", "MB sent a step", "least ms: products, memory, links"):
            table.add_column(column, justify="right")
        sent = {}
        for model in config.models:
            found = compile_steps(config, model, devices)
            is_in = found.bytes <= 1e9 * chip.gigabytes
            fits &= is_in
            table.add_row(
                model,
                str(found.runs),
                f"{shown(found.argument_bytes, 1e6)} + {shown(found.temporary_bytes, 1e6)}",
                "yes" if is_in else f"no: {found.bytes / 1e9:,.1f} GB",
                shown(found.flops, 1e9),
                shown(found.sent_bytes, 1e6),
                " ".join(shown(x, 1e-3) for x in found.least_seconds(chip)),
            )
            sent[model] = found
        table.title = f"{name}, {target}: {len(devices)} chips of {chip.gigabytes} GB"
        console.print(table)
        if config.mesh.size > 1:
            console.print(describe_mesh(config), highlight=False)
        for model, found in sent.items():
            if found.traffic and found.traffic.total:
                console.print(f"{model}: in {found.steps} steps a chip sends {found.traffic}")
    return 0 if fits else 1


def _target(arguments: list[str]) -> tuple[str, list[str]]:
    """Returns the target, and the arguments without it."""
    arguments = [part for x in arguments for part in _parted(x)]
    if "--target" not in arguments:
        return "v5e:2x2", arguments
    n = arguments.index("--target")
    target = arguments[n + 1] if n + 1 < len(arguments) else ""
    kind, _, shape = target.partition(":")
    if kind not in CHIPS or not shape:
        raise ValueError(
            f"--target is {target!r}; expected KIND:SHAPE, KIND one of {', '.join(CHIPS)}, as "
            "in v5e:2x2 or v5p:4x4x4"
        )
    if not all(side.isdecimal() and int(side) for side in shape.split("x")):
        raise ValueError(f"--target is {target!r}; expected sides of 1 and more, as in v5e:2x2")
    return target, arguments[:n] + arguments[n + 2 :]


def _parted(argument: str) -> list[str]:
    """Returns ``--target=X`` as its two parts."""
    name, is_given, value = argument.partition("=")
    return [name, value] if name == "--target" and is_given else [argument]


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
    found, program = _compiled(config, model, devices)
    if program is None:
        return found
    sent = _traffic_of(program)
    shape = next((shape for count, shape in SHAPES.items() if count >= len(devices)), None)
    if sent is None and shape is not None:
        others = devices_of(f"{SHOWN}:{shape}")[: len(devices)]
        _, program = _compiled(config, model, others)
        sent = None if program is None else _traffic_of(program)
    return found._replace(traffic=sent)


def _compiled(config: Config, model: str, devices: list[Any]) -> tuple[Compiled, Any]:
    """Returns what is known before the program is read, and the program; None if it is too big."""
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
    flops = flops_of(config, model, program, data)
    try:
        compiled = program.dispatch.lower(*of_runs, shared).compile()
    except jax.errors.JaxRuntimeError as error:
        arguments, temporary, compiled = _bytes_of(of_runs), _too_many(error), None
    else:
        memory = compiled.memory_analysis()
        arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    found = Compiled(
        runs=places.count // places.mesh.shape["run"],
        argument_bytes=arguments,
        temporary_bytes=temporary,
        traffic=None,
        steps=config.train.steps_per_dispatch,
        flops=flops * places.count / places.mesh.size,
    )
    return found, compiled


def _bytes_of(arguments: Any) -> int:
    """Returns what arguments take of a device."""
    leaves = jax.tree.leaves(arguments)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def _too_many(error: Exception) -> int:
    """Returns the temporary bytes for which the compiler has given up; else raises the error."""
    found = re.search(r"HLO temporaries \(([\d.]+)([KMGT])\) exceeds", str(error))
    if found is None:
        raise error
    return int(float(found[1]) * 1024 ** (1 + "KMGT".index(found[2])))


def _traffic_of(compiled: Any) -> Traffic | None:
    try:
        return traffic(compiled.as_text())
    except jax.errors.JaxRuntimeError:  # Some programs its own reader refuses.
        return None


def shown(x: float | None, unit: float) -> str:
    """Returns a number in a unit, to three digits, as a table has it."""
    if x is None:
        return "-"
    return f"{x / unit:,.0f}" if x >= 100 * unit else f"{x / unit:.3g}"


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    sys.exit(main(sys.argv[1:]))
