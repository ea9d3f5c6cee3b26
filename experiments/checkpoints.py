"""Checkpoints of the states of runs, by orbax: complete or not there.

Only the places that hold runs are written: how many others there are depends on the devices.
"""

import logging
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from experiments.train import TrainState

logging.getLogger("absl").setLevel(logging.ERROR)


def save(folder: pathlib.Path, state: TrainState, num_runs: int) -> None:
    """Writes the states of the first ``num_runs`` places; keeps the checkpoint before it too.

    A checkpoint is named by the most steps that a run has done. Runs that go on are in step, so
    the name is new unless every run diverged at once: then the one that is there is as good.
    """
    step = int(np.max(state.step[:num_runs]))
    with _manager(folder) as manager:
        if manager.latest_step() != step:
            kept = jax.device_get(jax.tree.map(lambda x: x[:num_runs], state))
            manager.save(step, args=ocp.args.StandardSave(kept))


def restore(folder: pathlib.Path, blank: TrainState, num_runs: int) -> TrainState:
    """Returns the latest states, placed as ``blank`` is; ``blank`` itself if there are none."""
    with _manager(folder) as manager:
        step = manager.latest_step()
        if step is None:
            return blank
        kept = jax.device_get(jax.tree.map(lambda x: x[:num_runs], blank))
        kept = manager.restore(step, args=ocp.args.StandardRestore(kept))
    whole = jax.tree.map(lambda new, old: jnp.concatenate([new, old[num_runs:]]), kept, blank)
    return jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), whole, blank)


def _manager(folder: pathlib.Path) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
    return ocp.CheckpointManager(folder.resolve(), options=options)
