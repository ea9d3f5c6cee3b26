"""What a run says in the terminal: what it will do, how far it is, what came out."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import rich.progress
from rich.console import Console

from experiments.config import Config
from experiments.mesh import left_whole
from experiments.models.decoder import build_decoder, receptive_field
from experiments.records import RunFolder
from experiments.runs import Status
from experiments.sweep import Watch
from experiments.train import StepMetrics


def announce(
    config: Config, folder: RunFolder, environment: dict[str, Any], console: Console
) -> None:
    """Prints what the run will do, and the most that it can cost."""
    sweep = config.sweep
    search = "no search"
    if config.tuning_seeds:
        search = f"{len(sweep.learning_rates)} rates x {len(config.tuning_seeds)} seeds to choose"
    stop = config.train.stop_accuracy
    rows = [
        ("claim", config.claim or "none stated"),
        ("task", folder.data),
        ("models", ", ".join(describe_model(config, model) for model in config.models)),
        ("runs", f"{search}, then {sweep.seeds} fresh seeds from {config.seed} on, for each model"),
        ("device", f"{environment['devices']} x {environment['device']}"),
        *([("mesh", describe_mesh(config))] if config.mesh.size > 1 else []),
        ("budget", f"{budget(config)}{'' if stop is None else f'; a run stops at {stop:.2%}'}"),
        ("folder", str(folder.path)),
    ]
    for label, text in rows:
        console.print(f"[bold]{label:<7}[/bold] {text}", highlight=False)


def budget(config: Config) -> str:
    """Returns the most work that a config can take, in a line."""
    runs = config.runs_per_model * len(config.models)
    return (
        f"{runs} runs of at most {config.train.steps:,} steps of {config.train.batch_size} rows of "
        f"{config.task.length} tokens: {runs * config.tokens_per_run / 1e6:,.1f} M tokens"
    )


def describe_model(config: Config, model: str) -> str:
    """Returns a model's name with its parameters and reach."""
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(_parameters(config, model)))
    reach = receptive_field(config.model_of(model))
    return f"{model} ({count:,} parameters{'' if reach is None else f', reach {reach} tokens'})"


def describe_mesh(config: Config) -> str:
    """Returns over which devices a run is spread, and what each of them has all of."""
    mesh, whole = config.mesh, {}
    for model in config.models:
        whole |= left_whole(mesh, _parameters(config, model))
    parts = " x ".join(f"{axis} {size}" for axis, size in dataclasses.asdict(mesh).items())
    if not whole:
        return f"{parts} devices a run"
    names = ", ".join(f"{name} {list(shape)}" for name, shape in whole.items())
    return (
        f"{parts} devices a run; model {mesh.model} divides no axis of these, whole on each: "
        f"{names}"
    )


def _parameters(config: Config, model: str) -> Any:
    """Returns the shapes of a model's parameters."""
    decoder = build_decoder(config.task, config.model_of(model))

    def init() -> Any:
        rng = jax.random.key(0)
        batch = config.task.sample(rng, 1, config.task.load("train"))
        return decoder.init(rng, batch.inputs, batch.positions)["params"]

    return jax.eval_shape(init)


@contextmanager
def progress(config: Config, console: Console) -> Iterator[Watch]:
    """Shows a line for every stage of every model, of which the context's value is told.

    Where nobody watches, a line is printed when a stage ends.
    """
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(bar_width=20),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[state]}"),
        rich.progress.TimeElapsedColumn(),
    )
    is_watched = console.is_terminal
    with rich.progress.Progress(*columns, console=console, disable=not is_watched) as shown:

        def watch(model: str, stage: str, num_runs: int, done: int) -> Callable[..., None]:
            begun, steps = time.monotonic(), config.train.steps
            if done:
                console.print(f"{model}, {stage}: going on from step {done:,}", highlight=False)
            line = shown.add_task(f"{model}, {stage}", total=steps, state="compiling")

            def show(metrics: StepMetrics) -> None:
                state, at = describe_state(metrics, num_runs), int(np.max(metrics.step[:num_runs]))
                has_ended = bool(np.all(metrics.status[:num_runs] != Status.RUNNING))
                shown.update(line, completed=steps if has_ended else at, state=state)
                if has_ended and not is_watched:
                    seconds = time.monotonic() - begun
                    text = f"{model}, {stage}: {at:,} steps, {state}, {seconds:.0f} s"
                    console.print(text, highlight=False, soft_wrap=True)

            return show

        yield watch


def describe_state(metrics: StepMetrics, num_runs: int) -> str:
    """Returns how the runs of a dispatch stand, in a few words."""
    status = metrics.status[:num_runs]
    counts = [f"{np.sum(status == kind)} {kind.name.lower()}" for kind in Status if kind in status]
    loss = metrics.loss[:num_runs]
    if np.all(np.isnan(loss)):
        return ", ".join(counts)
    return f"loss {np.nanmin(loss):.4f} to {np.nanmax(loss):.4f}, {', '.join(counts)}"
