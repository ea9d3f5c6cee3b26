"""Compile the training step of a config for chips that are not here: does it fit, what it takes.

    python -m experiments.compile CONFIG.py [--target v5e:2x2] [--FIELD VALUE ...]

A target is a kind of TPU (v4, v5e, v5p, v6e) or GPU (h100, h200) and its shape, as in ``v5p:4x4x4``
or ``h100:8``; on a GPU, what would be cuDNN's is of our kernels. The compilers need no such chip
(x86-64 Linux; ``pip install --no-deps libtpu``, or
``jax-cuda13-pjrt jax-cuda13-plugin nvidia-cuda-nvcc nvidia-nvvm``). The runs of a sweep are spread
over the chips and, with ``--mesh.data``, ``--mesh.sequence`` and ``--mesh.model``, each run over
several of them. Of every model:

- the runs that a chip takes part in, and what they hold of its memory;
- what it sends in a step: the collectives of the program, loops counted (``experiments.traffic``);
  where the compiler does not show it, as of v5p, those of the same step for as many chips of v5e;
- the FLOPs of a step on a chip (``experiments.flops``);
- the least time of a step, that is FLOPs over peak, the state read and written once over the
  bandwidth of memory, and bytes sent over the bandwidth of all links together. What a program takes
  is more: matrices too small for the peak, activations, one link instead of all.
"""

import math
import pathlib
import re
import sys
from typing import Any, NamedTuple

import jax
from rich.console import Console
from rich.table import Table

from attn import compiled_for
from experiments.config import Config
from experiments.console import describe_mesh
from experiments.flops import flops_of
from experiments.mesh import of_states
from experiments.run import choose, members
from experiments.runs import places_for
from experiments.targets import Chip, checked, chip_of, devices_of
from experiments.traffic import Traffic, traffic
from experiments.train import build_program

PROGRAM = "python -m experiments.compile"
USAGE = f"usage: {PROGRAM} CONFIG.py [--target v5e:2x2] [--FIELD VALUE ...] [--help]"

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
        configs = members(choose(pathlib.Path(path), rest, PROGRAM), pathlib.Path(path))
        devices = devices_of(target)
        for config in configs.values():
            places_for(config.mesh, 1, devices=devices)
    except (ValueError, TypeError, FileNotFoundError) as error:
        print(f"error: {error}\n{USAGE}", file=sys.stderr)
        return 2
    chip = chip_of(target)
    console, fits = Console(), True
    for name, config in configs.items():
        table = Table("model", "runs a chip", "MB: state + working", "fits")
        for column in ("GFLOP a step", "MB sent a step", "least ms: products, memory, links"):
            table.add_column(column, justify="right")
        sent = {}
        for model in config.models:
            found = compile_steps(config, model, target, devices)
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
    return checked(target), arguments[:n] + arguments[n + 2 :]


def _parted(argument: str) -> list[str]:
    """Returns ``--target=X`` as its two parts."""
    name, is_given, value = argument.partition("=")
    return [name, value] if name == "--target" and is_given else [argument]


def compile_steps(config: Config, model: str, target: str, devices: list[Any]) -> Compiled:
    """Returns what a dispatch of the model's runs takes of each of these chips of a target."""
    found, program = _compiled(config, model, target, devices)
    if program is None:
        return found
    sent = _traffic_of(program)
    shape = next((shape for count, shape in SHAPES.items() if count >= len(devices)), None)
    if sent is None and shape is not None:
        other = f"{SHOWN}:{shape}"
        _, program = _compiled(config, model, other, devices_of(other)[: len(devices)])
        sent = None if program is None else _traffic_of(program)
    return found._replace(traffic=sent)


def _compiled(config: Config, model: str, target: str, devices: list[Any]) -> tuple[Compiled, Any]:
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
    chip = chip_of(target)
    try:
        with compiled_for(chip.platform, chip.capability):
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
