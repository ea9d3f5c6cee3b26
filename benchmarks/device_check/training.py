"""Training of a small decoder on associative recall, the task of ``configs/small/recall.py``."""

import time
from typing import Any

import numpy as np

from benchmarks.device_check.check import Check

RATE, SEEDS = 3e-3, (0, 1)


def training(check: Check) -> bool:
    """Returns whether every seed has learned to recall."""
    # Here, so that the other parts run where what the laboratory needs is missing.
    from experiments.config import Config, OptimizerConfig, SweepConfig, TrainConfig
    from experiments.runs import Run, places_for
    from experiments.tasks import Recall
    from experiments.train import build_program, initial_state, train

    steps, least = check.sizes.steps, check.sizes.least_accuracy
    config = Config(
        task=Recall(vocab_size=256, length=64, num_pairs=8),
        models=("attention",),
        optimizer=OptimizerConfig(decay_share=0.3),
        sweep=SweepConfig(learning_rates=(RATE,), seeds=len(SEEDS)),
        train=TrainConfig(steps=steps, batch_size=32, checkpoint_every=steps),
    )
    runs = [Run(seed, RATE) for seed in SEEDS]
    program = build_program(config, "attention", places_for(config.mesh, len(runs)), ())
    found, times = [], []

    def record(metrics: Any) -> None:
        found.append(metrics)
        times.append(time.perf_counter())

    begun = time.perf_counter()
    state = initial_state(program, runs)
    train(config, program, runs, state, (), record=record, save=lambda state: None)
    done, accuracy, loss = (
        np.asarray(x)[: len(runs)].tolist()
        for x in (found[-1].step, found[-1].accuracy, found[-1].loss)
    )
    # The first dispatch is compiled too.
    counted = steps - int(found[0].step[0])
    step_seconds = (times[-1] - times[0]) / counted if counted else None
    check.found |= {"steps": done, "accuracy": accuracy, "loss": loss}
    check.found |= {"step_seconds": step_seconds, "first_seconds": times[0] - begun}
    row = check.table("seed", "steps", "accuracy", "loss")
    for seed, *figures in zip(SEEDS, done, accuracy, loss, strict=True):
        row(str(seed), str(figures[0]), f"{figures[1]:.4f}", f"{figures[2]:.4f}")
    each = "not known" if step_seconds is None else f"{1e3 * step_seconds:.2f} ms"
    check.found["summary"] = (
        f"accuracy {', '.join(f'{x:.3f}' for x in accuracy)} after {steps} steps (at least "
        f"{least}); a step of {len(runs)} runs {each}, the first {times[0] - begun:.0f} s"
    )
    return all(x >= least for x in accuracy) and done == [steps] * len(runs)
