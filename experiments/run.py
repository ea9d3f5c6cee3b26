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

from experiments import plot, report
from experiments.config import Config
from experiments.evaluate import evaluate
from experiments.models.decoder import receptive_field
from experiments.records import MixerRecord, RunFolder, environment, write_json
from experiments.train import NonFiniteLoss, StepMetrics, TrainState, initial_state, train

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
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        run(config, path.stem, RUNS, Console())
    except (NonFiniteLoss, ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


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
        console.print(report.table(config, folder))
        return folder
    train_data, test_data = (_on_device(config.task.load(split)) for split in ("train", "test"))
    environments = folder.begin(environment())
    announce(config, folder, environments[-1], console)
    seconds = {}
    for mixer in config.mixers:
        record, begun = folder.mixer(mixer), time.monotonic()
        params = train_with_progress(config, mixer, record, train_data, console)
        trained = time.monotonic()
        if record.evaluation is None:
            with console.status(f"{mixer}: evaluating"):
                record.write_evaluation(evaluate(config, mixer, params, test_data))
        seconds[mixer] = {
            "train": round(trained - begun, 1),
            "evaluate": round(time.monotonic() - trained, 1),
        }
    with console.status("drawing"):
        chance = config.task.chance(test_data)
        plot.draw_all(config, folder, chance)
        report.write(config, folder, chance, environments)
    write_json(folder.path / "finished.json", {"seconds": seconds})
    console.print(report.table(config, folder, chance))
    console.print(f"report and figures: {folder.path / 'report.md'}")
    return folder
