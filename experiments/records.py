"""The run folder: everything a run leaves behind, written so that a kill loses nothing.

    runs/NAME-DIGEST/           DIGEST is of the resolved config: another config, another folder
      config.json               the resolved config, and what the data is
      environment.json          versions, device, commit of each start
      MIXER/metrics.jsonl       a line a step
      MIXER/checkpoints/STEP/   parameters, optimiser, step
      MIXER/evaluation.json     what the trained model reached
      figures/  report.md       what a reader looks at
      finished.json             written last: chance, seconds of the last start

Files are replaced whole (written beside, then renamed). Metrics alone are appended to; on resuming
they are cut back to the checkpoint, so that each step stands there once.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
from types import ModuleType
from typing import Any

import jax

from experiments.config import Config, to_dict
from experiments.train import StepMetrics, TrainState

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scikit-learn")


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Paths of a run and what is written to them."""

    path: pathlib.Path

    @classmethod
    def of(cls, config: Config, name: str, parent: pathlib.Path) -> "RunFolder":
        """Returns the folder of this config, made with its config.json if it is new."""
        resolved = {**to_dict(config), "data": config.task.describe()}
        text = json.dumps(resolved, indent=2) + "\n"
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        folder = cls(parent / f"{name}-{digest}")
        (folder.path / "figures").mkdir(parents=True, exist_ok=True)
        write_text(folder.path / "config.json", text)
        return folder

    def mixer(self, name: str) -> "MixerRecord":
        """Returns the records of one mixer."""
        (self.path / name).mkdir(exist_ok=True)
        return MixerRecord(self.path / name)

    def begin(self, environment: dict[str, Any]) -> list[dict[str, Any]]:
        """Returns the environments of all starts, this one last, having noted it."""
        path = self.path / "environment.json"
        environments = [*(read_json(path) or []), environment]
        write_json(path, environments)
        return environments

    def finish(self, summary: dict[str, Any]) -> None:
        """Marks the run as finished."""
        write_json(self.path / "finished.json", summary)

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config as plain values."""
        return read_json(self.path / "config.json")

    @property
    def figures(self) -> pathlib.Path:
        """Where figures are drawn."""
        return self.path / "figures"

    @property
    def finished(self) -> dict[str, Any] | None:
        """What ``finish`` was told; None if the run has not finished."""
        return read_json(self.path / "finished.json")


@dataclasses.dataclass(frozen=True)
class MixerRecord:
    """What is kept of one mixer of a run."""

    path: pathlib.Path

    def resume(self, blank: TrainState) -> TrainState:
        """Returns the last checkpoint, or ``blank``; cuts the metrics back to it."""
        state = self._checkpoints.restore(self.path / "checkpoints", blank)
        lines = self.metrics()[: int(state.step)]
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(x) + "\n" for x in lines))
        return state

    def save(self, state: TrainState) -> None:
        """Writes a checkpoint; the one before it stays until this one is complete."""
        self._checkpoints.save(self.path / "checkpoints", state)

    @property
    def _checkpoints(self) -> ModuleType:
        # Orbax takes a second to import, which --help and a finished run need not wait for.
        from experiments import checkpoints

        return checkpoints

    def append(self, first: int, metrics: StepMetrics) -> None:
        """Appends the metrics of steps ``first + 1`` and on, and sees them on the disk."""
        columns = {name: column.tolist() for name, column in metrics._asdict().items()}
        rows = zip(*columns.values(), strict=True)
        with (self.path / "metrics.jsonl").open("a") as file:
            for step, row in enumerate(rows, first + 1):
                file.write(
                    json.dumps({"step": step, **dict(zip(columns, row, strict=True))}) + "\n"
                )
            file.flush()
            os.fsync(file.fileno())

    def metrics(self) -> list[dict[str, float]]:
        """Returns the recorded steps, up to the first line that a kill cut short."""
        path = self.path / "metrics.jsonl"
        lines = []
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return lines

    @property
    def is_evaluated(self) -> bool:
        """Whether the evaluation has been written."""
        return (self.path / "evaluation.json").exists()

    @property
    def evaluation(self) -> dict[str, Any]:
        """What ``experiments.evaluate`` found, once it is written."""
        return read_json(self.path / "evaluation.json")

    def write_evaluation(self, evaluation: dict[str, Any]) -> None:
        """Keeps the evaluation."""
        write_json(self.path / "evaluation.json", evaluation)


def environment() -> dict[str, Any]:
    """Returns where this process runs: device, versions, commit, command."""
    device = jax.devices()[0]
    return {
        "device": f"{device.device_kind} ({device.platform})",
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cores": os.cpu_count(),
        "machine": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "commit": _commit(),
        "command": [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def _commit() -> str:
    """Returns the commit of the checkout, marked if files differ from it; "unknown" without git."""

    def git(*arguments: str) -> str:
        here = pathlib.Path(__file__).parent
        run = subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, check=True
        )
        return run.stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (
            "+" if git("status", "--porcelain") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a value so that the file holds all of it or does not exist."""
    write_text(path, json.dumps(value, indent=2) + "\n")


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
