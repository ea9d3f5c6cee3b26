"""Run a config: train each of its mixers on its task, evaluate, draw, report.

    python -m experiments.run configs/NAME.py [--FIELD VALUE ...]
    python -m experiments.run configs/NAME.py --help

The same command started again goes on where it was stopped, or says that it has finished.
"""

import importlib.util
import math
import pathlib
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import rich.progress
import tyro
from rich.console import Console

from experiments import report
from experiments.config import Config
from experiments.evaluate import evaluate
from experiments.models.decoder import receptive_field
from experiments.records import MixerRecord, RunFolder, environment
from experiments.tasks import Chance
from experiments.train import NonFiniteLoss, StepMetrics, initial_state, train

USAGE = "usage: python -m experiments.run CONFIG.py [--FIELD VALUE ...] [--help]"
RUNS = pathlib.Path("runs")
"""Where run folders are made, under the current directory."""


def main(arguments: list[str]) -> int:
    """Returns the exit status of a command line; 2 for a bad one, 1 for a run that failed."""
    if not arguments or arguments[0] in ("-h", "--help"):
        known = "".join(f"\n  {path}" for path in sorted(pathlib.Path("configs").glob("*.py")))
        print(f"{USAGE}\n\nconfigs here:{known or ' none'}\n\nCONFIG.py --help lists its fields.")
        return 0 if arguments else 2
    path = pathlib.Path(arguments[0])
    try:
        config = parse(path, arguments[1:])
    except (ValueError, TypeError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        load_all(config)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    try:
        run(config, path.stem, RUNS, Console())
    except NonFiniteLoss as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def load_all(config: Config) -> None:
    """Loads the data of every length, so that what is missing shows before the first step."""
    for length in (config.task.length, *config.evaluation_lengths):
        for split in ("train", "test"):
            config.task.with_length(length).load(split)


def parse(path: pathlib.Path, overrides: list[str]) -> Config:
    """Returns the config of a file with the command line's values in it.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file has no ``get_config``, or a value is not accepted.
      SystemExit: from the command line's own ``--help`` and messages.
    """
    if not path.is_file():
        raise FileNotFoundError(f"CONFIG.py is {str(path)!r}; expected a file. {USAGE}")
    spec = importlib.util.spec_from_file_location(f"configs.{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"CONFIG.py is {str(path)!r}; expected a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{path} has no get_config(); expected one that returns a Config")
    return tyro.cli(
        Config,
        prog=f"python -m experiments.run {path}",
        description=module.__doc__ or "",
        default=module.get_config(),
        args=overrides,
        config=(tyro.conf.AvoidSubcommands,),
    )


def run(config: Config, name: str, parent: pathlib.Path, console: Console) -> RunFolder:
    """Returns the folder of the finished run, going on from what is already there."""
    folder = RunFolder.of(config, name, parent)
    if folder.finished is not None:
        console.print(f"{folder.path} has finished: nothing to do. Delete it to run again.")
        console.print(report.table(config, folder, Chance(**folder.finished["chance"])))
        return folder
    train_data, test_data = (_on_device(config.task.load(split)) for split in ("train", "test"))
    environments = folder.begin(environment())
    announce(config, folder, environments[-1], console)
    seconds = {}
    for mixer in config.mixers:
        record, begun = folder.mixer(mixer), time.monotonic()
        params = train_with_progress(config, mixer, record, train_data, console)
        trained = time.monotonic()
        if not record.is_evaluated:
            with console.status(f"{mixer}: evaluating"):
                record.write_evaluation(evaluate(config, mixer, params, test_data))
        seconds[mixer] = {
            "train": round(trained - begun, 1),
            "evaluate": round(time.monotonic() - trained, 1),
        }
    with console.status("drawing"):
        from experiments import plot  # matplotlib takes two seconds to import

        chance = config.task.chance(test_data)
        figures = plot.draw_all(config, folder, chance)
        report.write(config, folder, chance, figures, environments, seconds)
    folder.finish({"seconds": seconds, "chance": chance._asdict()})
    console.print(report.table(config, folder, chance))
    console.print(f"report and figures: {folder.path / 'report.md'}")
    return folder


def announce(
    config: Config, folder: RunFolder, environment: dict[str, Any], console: Console
) -> None:
    """Prints what the run will do."""
    rows = [
        ("claim", config.claim or "none stated"),
        ("task", config.task.describe()),
        ("mixers", ", ".join(config.mixers)),
        ("model", describe_model(config)),
        ("device", f"{environment['device']}, {environment['cores']} cores"),
        (
            "budget",
            f"{config.train.steps:,} steps of {config.train.batch_size} rows of "
            f"{config.task.length} tokens: {config.tokens:,} tokens for each mixer",
        ),
        ("seed", str(config.seed)),
        ("folder", str(folder.path)),
    ]
    for label, text in rows:
        console.print(f"[bold]{label:<7}[/bold] {text}", highlight=False)


def describe_model(config: Config) -> str:
    """Returns the decoder in a line, with its parameters."""
    data = config.task.load("train")
    state = jax.eval_shape(lambda: initial_state(config, config.mixers[0], data))
    parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(state.params))
    reaches = (
        f"{mixer} reaches {'any distance' if reach is None else f'{reach} tokens back'}"
        for mixer in config.mixers
        for reach in [receptive_field(config.model, mixer)]
    )
    return (
        f"{config.model.num_layers} layers, width {config.model.width}, {config.model.num_heads} "
        f"heads, {parameters:,} parameters; {', '.join(reaches)}"
    )


def train_with_progress(
    config: Config, mixer: str, record: MixerRecord, data: Any, console: Console
) -> Any:
    """Returns the trained parameters of a mixer, showing loss, rate and time left."""
    state = record.resume(initial_state(config, mixer, data))
    if int(state.step) == config.train.steps:
        return state.params
    if int(state.step):
        console.print(f"{mixer}: going on from step {int(state.step):,}")
    columns = (
        rich.progress.TextColumn(f"{mixer:<10}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("loss {task.fields[loss]:.4f}"),
        rich.progress.TextColumn("{task.fields[rate]:.1f} steps/s"),
        rich.progress.TextColumn("left"),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=console) as progress:
        shown = progress.add_task(
            mixer, total=config.train.steps, completed=int(state.step), loss=math.nan, rate=math.nan
        )

        def show(first: int, metrics: StepMetrics) -> None:
            record.append(first, metrics)
            done = len(metrics.loss)
            loss = float(metrics.loss.mean()) if done else math.nan
            rate = progress.tasks[0].speed or math.nan
            progress.update(shown, advance=done, loss=loss, rate=rate)
            if not console.is_terminal and (first + done) % config.train.checkpoint_every == 0:
                console.print(f"{mixer}: step {first + done:,}, loss {loss:.4f}")

        return train(config, mixer, state, data, record=show, save=record.save).params


def _on_device(data: Any) -> Any:
    return jax.tree.map(jnp.asarray, data)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
