"""Checkpoints of the states of runs, by orbax: complete or not there.

Only the places that hold runs are written: how many others there are depends on the devices. Every
process writes what its devices hold, and reads what they are to hold, on whatever mesh.
"""

import logging
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

from experiments.runs import fetch
from experiments.train import TrainState

logging.getLogger("absl").setLevel(logging.ERROR)


def save(folder: pathlib.Path, state: TrainState, num_runs: int) -> None:
    """Writes the states of the first ``num_runs`` places; keeps the checkpoint before it too.

    A checkpoint is named by the most steps that a run has done. Runs that go on are in step, so
    the name is new unless every run diverged at once: then the one that is there is as good.
    """
    step = int(np.max(fetch(state.step)[:num_runs]))
    with _manager(folder) as manager:
        if manager.latest_step() != step:
            first = jax.jit(_first, static_argnums=1, out_shardings=_shardings(state))
            manager.save(step, args=ocp.args.StandardSave(first(state, num_runs)))


def restore(folder: pathlib.Path, blank: TrainState, num_runs: int) -> TrainState:
    """Returns the latest states, placed as ``blank`` is; ``blank`` itself if there are none."""
    with _manager(folder) as manager:
        step = manager.latest_step()
        if step is None:
            return blank
        shapes = jax.eval_shape(lambda state: _first(state, num_runs), blank)
        kept = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            shapes,
            _shardings(blank),
        )
        kept = manager.restore(step, args=ocp.args.StandardRestore(kept))

    def filled(kept, blank):
        return jax.tree.map(lambda x, y: jnp.concatenate([x, y[num_runs:]]), kept, blank)

    shardings = jax.tree.map(lambda x: x.sharding, blank)
    return jax.jit(filled, out_shardings=shardings)(kept, blank)


def _first(state: TrainState, count: int) -> TrainState:
    return jax.tree.map(lambda x: x[:count], state)


def _shardings(state: TrainState) -> TrainState:
    """Returns those of the states of some runs, whose number the mesh need not divide."""

    def of_leaf(x):
        return NamedSharding(x.sharding.mesh, PartitionSpec(None, *x.sharding.spec[1:]))

    return jax.tree.map(of_leaf, state)


def _manager(folder: pathlib.Path) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
    return ocp.CheckpointManager(folder.resolve(), options=options)
