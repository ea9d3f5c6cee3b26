"""Run a config, or a suite of them: sweep its models on its task, evaluate, draw, report.

    python -m experiments.run configs/NAME.py [--FIELD VALUE ...]
    python -m experiments.run configs/NAME.py --help

The same command started again goes on where it was stopped, or says that it has finished.
"""

import contextlib
import dataclasses
import importlib.util
import os
import pathlib
import sys
import time
import traceback
from collections.abc import Iterator
from typing import NoReturn, get_args

import jax
import tyro
from rich.console import Console

from experiments.config import Config, Suite, quick
from experiments.console import announce, budget, progress
from experiments.environment import environment
from experiments.evaluate import Questions
from experiments.processes import join
from experiments.records import Busy, RunFolder, SuiteFolder
from experiments.runs import places_for
from experiments.sweep import Diverged, sweep
from experiments.tasks import Split

PROGRAM = "python -m experiments.run"
USAGE = f"usage: {PROGRAM} CONFIG.py [--FIELD VALUE ...] [--help]"
RUNS = pathlib.Path("runs")
"""Where run folders are made, under the current directory."""


def main(arguments: list[str]) -> int:
    """Returns the exit status of a command line; 2 for a bad one, 1 for a run that failed."""
    if not arguments or arguments[0] in ("-h", "--help"):
        known = "".join(f"\n  {path}" for path in sorted(pathlib.Path("configs").rglob("*.py")))
        print(f"{USAGE}\n\nconfigs here:{known or ' none'}\n\nCONFIG.py --help lists its fields.")
        return 0 if arguments else 2
    path = pathlib.Path(arguments[0])
    try:
        chosen = choose(path, arguments[1:])
        configs = members(chosen, path)
    except (ValueError, TypeError, FileNotFoundError) as error:
        print(f"error: {error}\n{USAGE}", file=sys.stderr)
        return 2
    try:
        for config in configs.values():
            load_all(config)
        prepare_jax()
        join(chosen.processes)
        for config in configs.values():
            places_for(config.mesh, 1)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    try:
        with together():
            run_all(chosen, configs, path, Console(quiet=jax.process_index() > 0))
    except (Diverged, Busy) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def prepare_jax() -> None:
    """Makes a device of every core, which each train runs, and keeps what is compiled.

    What the user has set is left alone.
    """
    if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", os.cpu_count())
    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str((RUNS / ".compiled").resolve()))


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Leaves the other processes, if there are any, by what ends this one and not them."""
    try:
        yield
    except Diverged:  # in every process
        raise
    except BaseException as error:
        if jax.process_count() > 1:
            leave_the_others(error)
        raise


def leave_the_others(error: BaseException) -> NoReturn:
    """Ends this process at once: an orderly end waits for the others, and they for this one."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        what = f"failed, or has lost another: {error}"
    elif isinstance(error, (Busy, KeyboardInterrupt)):
        what = f"stopped: {error or 'interrupted'}"
    else:
        traceback.print_exception(error)
        what = f"failed: {error}"
    print(
        f"error: process {jax.process_index()} of {jax.process_count()} {what}\n"
        "started again, the run goes on from its last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def run_all(
    chosen: Config | Suite, configs: dict[str, Config], path: pathlib.Path, console: Console
) -> None:
    """Runs the configs of a file one after the other and reports on them."""
    if isinstance(chosen, Config):
        ((name, config),) = configs.items()
        folder = run(config, name, RUNS, console)
        return report_on([folder], folder.path, console)
    for name, config in configs.items():
        console.print(f"{name:<16} {budget(config)}", highlight=False, soft_wrap=True)
    tokens = sum(x.tokens_per_run * x.runs_per_model * len(x.models) for x in configs.values())
    console.print(f"{'all':<16} {tokens / 1e6:,.1f} M tokens", highlight=False)
    folders, lost = [], []
    for name, config in configs.items():
        try:
            run(config, name, RUNS, console)
        except Diverged as error:
            lost.append(str(error))
        folders.append(RunFolder.of(config, name, RUNS))
    commands = commands_of(chosen, folders, path)
    suite = SuiteFolder.of(chosen.claim, folders, commands, path.stem, RUNS)
    report_on(folders, suite.path, console, suite)
    if lost:
        raise Diverged("\n".join(lost))


def load_all(config: Config) -> None:
    """Loads the data of every length, so that what is missing shows before the first step."""
    lengths = {config.task.length, *config.evaluation_lengths, *config.evaluate.cost_lengths}
    for length in sorted(lengths):
        for split in get_args(Split):
            config.task.with_length(length).load(split)


def parse(path: pathlib.Path, overrides: list[str]) -> dict[str, Config]:
    """Returns the configs of a file by name, with the command line's values in them.

    One config, or those of a suite. Errors are those of ``choose``.
    """
    return members(choose(path, overrides), path)


def choose(path: pathlib.Path, overrides: list[str], program: str = PROGRAM) -> Config | Suite:
    """Returns what a file describes, with the command line's values in it.

    Args:
      path: of the file.
      overrides: the command line's values.
      program: that is called with them, as its messages are to name it.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file has no ``get_config``, or a value is not accepted.
      SystemExit: from the command line's own ``--help`` and messages.
    """
    default, description = read_config(path)
    return tyro.cli(
        type(default),
        prog=f"{program} {path}",
        description=description,
        default=default,
        args=overrides,
        config=(tyro.conf.AvoidSubcommands,),
    )


def members(chosen: Config | Suite, path: pathlib.Path) -> dict[str, Config]:
    """Returns the config of a file by its name, or those of the suite that it describes.

    Raises:
      FileNotFoundError: if a member is no file.
      ValueError: if a member is no config, or what the suite sets is nothing for it.
    """
    if isinstance(chosen, Config):
        return {path.stem: chosen}
    found = {}
    for name in chosen.members:
        member, _ = read_config(path.parent / name)
        if not isinstance(member, Config):
            raise ValueError(f"members has {name!r}; expected the file of a config, not of a suite")
        member = quick(member) if chosen.quick else member
        of_suite = {x: getattr(chosen, x) for x in ("seed", "mesh", "processes")}
        models = tuple(dict.fromkeys((*member.models, *chosen.add_models)))
        try:
            member = dataclasses.replace(member, models=models, **of_suite)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        found[pathlib.Path(name).stem] = member
    return found


def commands_of(suite: Suite, folders: list[RunFolder], path: pathlib.Path) -> dict[str, list[str]]:
    """Returns what makes each member of a suite alone; nothing does where it was cut down."""
    if suite.quick:
        return {}
    commands = {}
    for folder, member in zip(folders, suite.members, strict=True):
        commands[folder.path.name] = [str(path.parent / member), "--seed", str(suite.seed)]
        if suite.add_models:
            commands[folder.path.name] += ["--models", *folder.config.models]
    return commands


def read_config(path: pathlib.Path) -> tuple[Config | Suite, str]:
    """Returns what a file's ``get_config`` returns, and the file's docstring."""
    if not path.is_file():
        raise FileNotFoundError(f"CONFIG.py is {str(path)!r}; expected a file")
    spec = importlib.util.spec_from_file_location(f"configs.{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"CONFIG.py is {str(path)!r}; expected a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{path} has no get_config(); expected one that returns a Config")
    return module.get_config(), module.__doc__ or ""


def run(config: Config, name: str, parent: pathlib.Path, console: Console) -> RunFolder:
    """Returns the folder of the finished run, going on from what is already there."""
    folder = RunFolder.of(config, name, parent)
    with folder.alone():
        folder.write_config(config)
        are_evaluated = all(folder.model(model).is_evaluated for model in config.models)
        if folder.finished is None or not are_evaluated:
            finish(config, folder, console)
        else:
            console.print(f"{folder.path} has finished: nothing to do. Delete it to run again.")
    return folder


def finish(config: Config, folder: RunFolder, console: Console) -> None:
    """Does what is left to do of a run."""
    data = {split: config.task.load(split) for split in get_args(Split)}
    questions = Questions(config, data)
    environments = folder.begin(environment() | {"mesh": dataclasses.asdict(config.mesh)})
    announce(config, folder, environments[-1], console)
    begun = time.monotonic()
    lost = []
    with progress(config, console) as watch:
        for model in config.models:
            try:
                sweep(config, model, folder.model(model), questions, watch)
            except Diverged as error:  # of the others' runs none is the worse for it
                lost.append(str(error))
    if lost:
        raise Diverged("\n".join(lost))
    floors = {
        str(length): {
            name: floor._asdict()
            for name, floor in config.task.with_length(length)
            .floors(questions.data["test"])
            .items()
        }
        for length in config.evaluation_lengths
    }
    folder.finish({"floors": floors, "seconds": round(time.monotonic() - begun, 1)})


def report_on(
    folders: list[RunFolder],
    page: pathlib.Path,
    console: Console,
    suite: SuiteFolder | None = None,
) -> None:
    """Writes the pages of finished runs and prints their tables; the first process does."""
    if jax.process_index():
        return
    from experiments import report  # matplotlib takes two seconds to import

    with console.status("drawing"):
        claim, commands = ("", None) if suite is None else (suite.claim, suite.commands)
        pages = report.write(folders, page, claim, commands)
    for folder in folders:
        console.print(report.terminal_table(folder))
    console.print(f"report: {' and '.join(map(str, pages))}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
