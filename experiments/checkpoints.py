"""Checkpoints of a train state, by orbax: complete or not there."""

import logging
import pathlib

import jax
import orbax.checkpoint as ocp

from experiments.train import TrainState

logging.getLogger("absl").setLevel(logging.ERROR)


def save(folder: pathlib.Path, state: TrainState) -> None:
    """Writes the state under its step, unless it is there; keeps the one before it too."""
    step = int(state.step)
    with _manager(folder) as manager:
        if manager.latest_step() != step:
            manager.save(step, args=ocp.args.StandardSave(state))


def restore(folder: pathlib.Path, blank: TrainState) -> TrainState:
    """Returns the latest state, placed as ``blank`` is; ``blank`` itself if there is none."""
    with _manager(folder) as manager:
        step = manager.latest_step()
        if step is None:
            return blank
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, blank)
        return manager.restore(step, args=ocp.args.StandardRestore(abstract))


def _manager(folder: pathlib.Path) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
    return ocp.CheckpointManager(folder.resolve(), options=options)
