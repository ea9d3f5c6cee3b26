"""The axis of runs: many runs of one model, stacked along a first axis, as one program.

A run is a seed and a learning rate. The axis is sharded over groups of devices, and each group goes
through its runs a few at a time. One at a time is the fastest on CPU, and there a run that has
stopped costs nothing; elsewhere all at once are one vmapped computation.
"""

import enum
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.mesh import MeshConfig, build_mesh


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


class Places(NamedTuple):
    """Places for runs, along one axis, on equally filled groups of devices."""

    count: int
    mesh: Mesh
    """See ``experiments.mesh``."""

    @property
    def sharding(self) -> NamedSharding:
        """Where what is of runs alone stands."""
        return NamedSharding(self.mesh, PartitionSpec("run"))


def places_for(shape: MeshConfig, *counts: int, devices: Sequence[Any] | None = None) -> Places:
    """Returns places that hold each of these numbers of runs, and as few more as can be.

    Args:
      shape: of the devices of one run.
      *counts: of runs that are trained one number after the other.
      devices: all of all processes, unless others are named to compile for.

    Raises:
      ValueError: if there are fewer devices than one run has.
    """
    mesh = build_mesh(shape, max(counts), devices)
    groups = mesh.shape["run"]
    return Places(-(-max(counts) // groups) * groups, mesh)


def stack_runs(runs: Sequence[Run], places: Places) -> tuple[Any, Any]:
    """Returns seeds and rates, ``[places.count]``, in place; places left over are filled up."""
    filled = [*runs, *[runs[-1]] * (places.count - len(runs))]
    columns = (
        np.asarray([run.seed for run in filled], np.int32),
        np.asarray([run.learning_rate for run in filled], np.float32),
    )
    return jax.device_put(columns, places.sharding)


def fetch(tree: Any) -> Any:
    """Returns arrays on devices as NumPy's, whole in every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def each_run(
    function: Callable[..., Any],
    places: Places,
    *,
    donate: bool = False,
    together: int | None = None,
    out_shardings: Any = None,
) -> Callable[..., Any]:
    """Returns ``function(*of_one_run, shared)`` jitted over stacked runs: ``(*stacked, shared)``.

    Args:
      function: pure; takes what belongs to a run and, last, what all share.
      places: where the runs are.
      donate: whether the first argument's memory is given up.
      together: runs that a device does at once, as one vmapped computation; by default one on
        CPU, all elsewhere.
      out_shardings: where the results are to be; as XLA finds best if None.
    """
    runs, everywhere, mesh = PartitionSpec("run"), PartitionSpec(), places.mesh
    if together is None:
        is_cpu = mesh.devices.flat[0].platform == "cpu"
        together = 1 if is_cpu else places.count // mesh.shape["run"]

    def on_devices(stacked: tuple[Any, ...], shared: Any) -> Any:
        at_once = None if together == 1 else together
        return jax.lax.map(lambda run: function(*run, shared), stacked, batch_size=at_once)

    # Without the check of varying axes: a run that has stopped gives constants, which belong to no
    # device, where one that goes on gives values of its device, and the branches would not match.
    sharded = jax.shard_map(
        on_devices,
        mesh=mesh,
        in_specs=(runs, everywhere),
        out_specs=runs,
        # Where XLA has nothing to divide, kernels may run.
        axis_names={"run"} if mesh.size > mesh.shape["run"] else set(mesh.axis_names),
        check_vma=False,
    )
    return jax.jit(
        lambda *arguments: sharded(arguments[:-1], arguments[-1]),
        donate_argnums=(0,) if donate else (),
        out_shardings=out_shardings,
    )
