"""The run folder: everything a run leaves behind, written so that a kill loses nothing.

    runs/NAME-DIGEST/           DIGEST is of what determines a model's numbers: of the resolved
                                config but for its models and its claim
      config.json               the resolved config, and what the data is
      environment.json          versions, device, commit of each start
      MODEL/                    e.g. attention,position=rotary
        search/  fresh/         the two stages of its runs, each with
          runs.json             seed and learning rate of each
          metrics.jsonl         a line a dispatch, in it an entry a run
          checkpoints/N/        states after N steps
        search.json             how the rates did, which was chosen
        evaluation.json         what the fresh runs reached, what is seen inside each
        cost.json               seconds of all starts; time and memory of a step by length
      figures/  report.*        what a reader looks at
      finished.json             written last: floors, seconds of the last start
    runs/SUITE-DIGEST/          of a suite: its page, and in suite.json its claim, its runs in order
                                and what makes each alone

Of several processes the first alone writes, and the others wait for it; all see the same folder.
Files are replaced whole (written beside, then renamed). Metrics alone are appended to; on resuming
they are cut back to the checkpoint, so that each step stands there once.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.config import Config, from_dict, to_dict
from experiments.runs import Run, fetch
from experiments.train import StepMetrics, TrainState


class Busy(RuntimeError):
    """Another process is at work in a run folder."""


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Paths of a run and what is written to them."""

    path: pathlib.Path

    @classmethod
    def of(cls, config: Config, name: str, parent: pathlib.Path) -> "RunFolder":
        """Returns the folder of this config, made if it is new.

        Another config is another folder, but not one that differs in ``models`` or ``claim``
        alone: what is there of a model is that model's whatever it is compared with.
        """
        plain = to_dict(config)
        del plain["models"], plain["claim"]
        folder = cls(parent / f"{name}-{digest([plain, config.task.describe()])}")
        (folder.path / "figures").mkdir(parents=True, exist_ok=True)
        return folder

    def write_config(self, config: Config) -> None:
        """Keeps the resolved config, whose models are those that a report shows."""
        resolved = {"config": to_dict(config), "data": config.task.describe()}
        write_json(self.path / "config.json", resolved)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other processes out of the folder; the system lets go of it whatever happens.

        Raises:
          Busy: if another one is in it.
        """
        if jax.process_index():  # The first is there for all.
            yield
            return
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Busy(f"{self.path}: another process is at work here") from error
            yield

    def model(self, name: str) -> "ModelRecord":
        """Returns the records of one model."""
        (self.path / name).mkdir(exist_ok=True)
        return ModelRecord(self.path / name)

    def begin(self, environment: dict[str, Any]) -> list[dict[str, Any]]:
        """Returns the environments of all starts, this one last, having noted it.

        A run that had finished has not any more.
        """
        environments = [*self.environments, environment]
        write_json(self.path / "environment.json", environments)
        if jax.process_index() == 0:
            (self.path / "finished.json").unlink(missing_ok=True)
        return environments

    def finish(self, summary: dict[str, Any]) -> None:
        """Marks the run as finished."""
        write_json(self.path / "finished.json", summary)

    @property
    def config(self) -> Config:
        """The resolved config."""
        return from_dict(read_json(self.path / "config.json")["config"])

    @property
    def data(self) -> str:
        """What the rows are, and for real data its origin and its hash."""
        return read_json(self.path / "config.json")["data"]

    @property
    def environments(self) -> list[dict[str, Any]]:
        """Device, versions and commit of each start."""
        return read_json(self.path / "environment.json") or []

    @property
    def figures(self) -> pathlib.Path:
        """Where figures are drawn."""
        return self.path / "figures"

    @property
    def finished(self) -> dict[str, Any] | None:
        """What ``finish`` was told; None if the run has not finished."""
        return read_json(self.path / "finished.json")


@dataclasses.dataclass(frozen=True)
class SuiteFolder:
    """What a suite leaves behind beside its runs."""

    path: pathlib.Path

    @classmethod
    def of(
        cls,
        claim: str,
        folders: list[RunFolder],
        commands: dict[str, list[str]],
        name: str,
        parent: pathlib.Path,
    ) -> "SuiteFolder":
        """Returns the folder of the suite of these runs, made with its suite.json.

        Args:
          claim: what they show together.
          folders: the runs.
          commands: by a folder's name, arguments of ``experiments.run`` that make it alone.
          name: of the suite.
          parent: where its folder is made.
        """
        runs = [folder.path.name for folder in folders]
        kept = {"claim": claim, "runs": runs, "commands": commands}
        suite = cls(parent / f"{name}-{digest(kept)}")
        suite.path.mkdir(parents=True, exist_ok=True)
        write_json(suite.path / "suite.json", kept)
        return suite

    @property
    def exists(self) -> bool:
        """Whether a suite was written here."""
        return (self.path / "suite.json").exists()

    @property
    def claim(self) -> str:
        """What the runs show together."""
        return read_json(self.path / "suite.json")["claim"]

    @property
    def commands(self) -> dict[str, list[str]]:
        """By the name of a run's folder, arguments of ``experiments.run`` that make it alone."""
        return read_json(self.path / "suite.json").get("commands", {})

    @property
    def folders(self) -> list[RunFolder]:
        """The runs in their order; each stands in this folder or beside it."""
        names = read_json(self.path / "suite.json")["runs"]
        inside = ((self.path / name, self.path.parent / name) for name in names)
        return [RunFolder(here if here.exists() else beside) for here, beside in inside]


def folders_of(path: pathlib.Path) -> list[RunFolder]:
    """Returns the run at a path, those of the suite there, or those directly in it by age.

    Raises:
      ValueError: if there is none, or if one of a suite is missing.
    """
    if (path / "config.json").exists():
        return [RunFolder(path)]
    if SuiteFolder(path).exists:
        folders = SuiteFolder(path).folders
        for folder in folders:
            if not (folder.path / "config.json").exists():
                raise ValueError(f"{folder.path} is missing: {path / 'suite.json'} names it")
        return folders
    found = [p.parent for p in path.glob("*/config.json")]
    if not found:
        raise ValueError(f"{path} is no run folder and holds none: expected one with config.json")
    ordered = sorted(found, key=lambda p: ((p / "config.json").stat().st_mtime, p.name))
    return [RunFolder(folder) for folder in ordered]


@dataclasses.dataclass(frozen=True)
class ModelRecord:
    """What is kept of one model of a run."""

    path: pathlib.Path

    def stage(self, name: str, runs: list[Run]) -> "StageRecord":
        """Returns the records of one stage, of these runs."""
        stage = StageRecord(self.path / name, tuple(runs))
        stage.path.mkdir(parents=True, exist_ok=True)
        write_json(stage.path / "runs.json", [run._asdict() for run in runs])
        return stage

    def stages(self) -> dict[str, "StageRecord"]:
        """Returns the stages that have begun, by name."""
        found = {}
        for name in ("search", "fresh"):
            runs = read_json(self.path / name / "runs.json")
            if runs is not None:
                found[name] = StageRecord(self.path / name, tuple(Run(**run) for run in runs))
        return found

    @property
    def search(self) -> dict[str, Any] | None:
        """What the search found, once it has; None before, and where there is none."""
        return read_json(self.path / "search.json")

    def write_search(self, search: dict[str, Any]) -> None:
        """Keeps what the search found."""
        write_json(self.path / "search.json", search)

    @property
    def cost(self) -> dict[str, Any]:
        """What the model has cost so far."""
        return read_json(self.path / "cost.json") or {}

    def write_cost(self, cost: dict[str, Any]) -> None:
        """Keeps what the model has cost: it stands apart, for it is never the same twice."""
        write_json(self.path / "cost.json", cost)

    @property
    def is_evaluated(self) -> bool:
        """Whether the evaluation has been written."""
        return (self.path / "evaluation.json").exists()

    @property
    def evaluation(self) -> dict[str, Any]:
        """What ``experiments.sweep`` found and what it cost, once it is written."""
        return read_json(self.path / "evaluation.json") | self.cost

    def write_evaluation(self, evaluation: dict[str, Any], cost: dict[str, Any]) -> None:
        """Keeps the evaluation, and apart from it the whole cost."""
        self.write_cost(cost)
        write_json(self.path / "evaluation.json", evaluation)


@dataclasses.dataclass(frozen=True)
class StageRecord:
    """What is kept of runs that are trained together."""

    path: pathlib.Path
    runs: tuple[Run, ...]

    def resume(self, blank: TrainState) -> TrainState:
        """Returns the last checkpoint, or ``blank``; cuts the metrics back to it."""
        state = self._checkpoints.restore(self.path / "checkpoints", blank, len(self.runs))
        steps = fetch(state.step)[: len(self.runs)]
        kept = [line for line in self.metrics() if np.all(np.asarray(line["step"]) <= steps)]
        _keep(self.path / "metrics.jsonl", "".join(json.dumps(x) + "\n" for x in kept))
        return state

    def save(self, state: TrainState) -> None:
        """Writes a checkpoint; the one before it stays until this one is complete."""
        self._checkpoints.save(self.path / "checkpoints", state, len(self.runs))

    @property
    def _checkpoints(self) -> ModuleType:
        # Orbax takes a second to import, which --help and a finished run need not wait for.
        from experiments import checkpoints

        return checkpoints

    def append(self, metrics: StepMetrics) -> None:
        """Appends the metrics of a dispatch, and sees them on the disk."""
        if jax.process_index():
            return
        columns = {
            name: [_plain(x) for x in column[: len(self.runs)].tolist()]
            for name, column in metrics._asdict().items()
        }
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(columns) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def metrics(self) -> list[dict[str, Any]]:
        """Returns the recorded dispatches, up to the first line that a kill cut short.

        Of each a dict of lists, with an entry a run; None where a run did nothing.
        """
        path = self.path / "metrics.jsonl"
        lines = []
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return lines

    def steps_to(self, accuracy: float, run: int) -> int | None:
        """Returns after how many steps a run first answered so well, or None if it never did.

        Seen once a dispatch, on the mean over its steps.
        """
        for line in self.metrics():
            reached = line["accuracy"][run]
            if reached is not None and reached >= accuracy:
                return line["step"][run]
        return None


def _plain(value: float) -> float | int | None:
    if isinstance(value, int):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def digest(plain: Any) -> str:
    """Returns what tells folders of one name apart, of plain values."""
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:8]


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a value so that the file holds all of it or does not exist; all processes call it."""
    _keep(path, json.dumps(value, indent=2) + "\n")


def _keep(path: pathlib.Path, text: str) -> None:
    """Writes a file by the first of the processes, which all must do together."""
    if jax.process_index() == 0:
        write_text(path, text)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(str(path))


def read_json(path: pathlib.Path) -> Any:
    """Returns the value of a file, or None if there is none."""
    return json.loads(path.read_text()) if path.exists() else None


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file whole: beside its place, then renamed."""
    beside = path.with_name(path.name + ".part")
    with beside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
