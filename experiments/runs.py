"""The axis of runs: many runs of one model, stacked along a first axis, as one program.

A run is a seed and a learning rate. The axis is sharded over the devices, and each device goes
through its runs a few at a time. One at a time is the fastest on CPU, and there a run that has
stopped costs nothing; elsewhere all at once are one vmapped computation.
"""

import enum
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec


class Run(NamedTuple):
    """What sets a run apart from the others of its model."""

    seed: int
    """Of initial parameters and of the order of the data."""
    learning_rate: float
    """The peak of its schedule."""


class Status(enum.IntEnum):
    """How a run stands."""

    RUNNING = 0
    """It has steps left."""
    FINISHED = 1
    """It has done all its steps."""
    REACHED = 2
    """It has reached ``train.stop_accuracy`` and stopped."""
    DIVERGED = 3
    """A step was not finite; its state is the one before it."""


def over_runs(num_runs: int, devices: Sequence[Any] | None = None) -> NamedSharding:
    """Returns the sharding of the axis of runs: over as many devices as divide it.

    Devices are those of this process, unless others are named to compile for.
    """
    devices = jax.local_devices() if devices is None else devices
    count = max(n for n in range(1, len(devices) + 1) if num_runs % n == 0)
    mesh = jax.make_mesh((count,), ("run",), axis_types=(AxisType.Auto,), devices=devices[:count])
    return NamedSharding(mesh, PartitionSpec("run"))


def slots_for(*counts: int, devices: Sequence[Any] | None = None) -> int:
    """Returns how many places hold each of these numbers of runs, on equally filled devices."""
    every = jax.local_devices() if devices is None else devices
    filled = min(len(every), max(counts))
    return -(-max(counts) // filled) * filled


def stack_runs(runs: Sequence[Run], num_slots: int) -> tuple[Any, Any]:
    """Returns seeds and rates ``[num_slots]`` on the devices, the places left over filled up."""
    filled = [*runs, *[runs[-1]] * (num_slots - len(runs))]
    columns = (
        np.asarray([run.seed for run in filled], np.int32),
        np.asarray([run.learning_rate for run in filled], np.float32),
    )
    return jax.device_put(columns, over_runs(num_slots))


def each_run(
    function: Callable[..., Any],
    num_slots: int,
    *,
    donate: bool = False,
    together: int | None = None,
    devices: Sequence[Any] | None = None,
) -> Callable[..., Any]:
    """Returns ``function(*of_one_run, shared)`` jitted over stacked runs: ``(*stacked, shared)``.

    Args:
      function: pure; takes what belongs to a run and, last, what all share.
      num_slots: the length of the axis of runs.
      donate: whether the first argument's memory is given up.
      together: runs that a device does at once, as one vmapped computation; by default one on
        CPU, all elsewhere.
      devices: those of this process, unless others are named to compile for.
    """
    runs, everywhere = PartitionSpec("run"), PartitionSpec()
    mesh = over_runs(num_slots, devices).mesh
    if together is None:
        platform = jax.default_backend() if devices is None else devices[0].platform
        together = 1 if platform == "cpu" else num_slots // mesh.size

    def on_a_device(stacked: tuple[Any, ...], shared: Any) -> Any:
        at_once = None if together == 1 else together
        return jax.lax.map(lambda run: function(*run, shared), stacked, batch_size=at_once)

    # Without the check of varying axes: a run that has stopped gives constants, which belong to no
    # device, where one that goes on gives values of its device, and the branches would not match.
    sharded = jax.shard_map(
        on_a_device, mesh=mesh, in_specs=(runs, everywhere), out_specs=runs, check_vma=False
    )
    return jax.jit(
        lambda *arguments: sharded(arguments[:-1], arguments[-1]),
        donate_argnums=(0,) if donate else (),
    )
