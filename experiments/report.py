"""The results of a run as a table for the terminal and a page to read, from its records alone."""

import json
from typing import Any

from rich.table import Table

from experiments.config import Config
from experiments.models.decoder import receptive_field
from experiments.records import RunFolder, write_text
from experiments.tasks import Chance

HEADER = ("", "reach (tokens)", "length", "accuracy", "bits / answer", "weight on source")
NOTE = (
    "Brackets: 95 % interval over test answers taken as independent (accuracy) and over test rows "
    "(bits) of this one seed; other seeds spread more. Chance: guessing by the frequency of "
    "answers. Weight on source: of the head that puts most there, at the source and where the "
    "short convolution carries it; in brackets, of looking everywhere alike."
)


def table(config: Config, folder: RunFolder, chance: Chance) -> Table:
    """Returns the result table for the terminal."""
    rendered = Table(*HEADER, title=config.claim or None, caption=NOTE, caption_justify="left")
    for row in rows(config, folder, chance):
        rendered.add_row(*row)
    return rendered


def rows(config: Config, folder: RunFolder, chance: Chance) -> list[tuple[str, ...]]:
    """Returns the lines under ``HEADER``: every mixer at every length, then chance."""
    lines = []
    for mixer in config.mixers:
        evaluation = folder.mixer(mixer).evaluation
        reach = receptive_field(config.model, mixer)
        attention = evaluation["attention"]
        for length, scores in evaluation["lengths"].items():
            weight = "-"
            if attention is not None and length == str(config.task.length):
                weight = f"{attention['best']['mass']:.2f} ({attention['uniform']:.3f})"
            for group, label in (("with_source", mixer), ("without_source", f"{mixer}, no source")):
                if group in scores:
                    lines.append(
                        (
                            label,
                            "any" if reach is None else str(reach),
                            length,
                            _percent(scores[group]["accuracy"], scores[group]["accuracy_interval"]),
                            _bits(scores[group]["bits"], scores[group]["bits_interval"]),
                            weight if group == "with_source" else "-",
                        )
                    )
    guess = ("chance", "-", "any", f"{100 * chance.accuracy:.1f} %", f"{chance.bits:.2f}", "-")
    return [*lines, guess]


def write(
    config: Config,
    folder: RunFolder,
    chance: Chance,
    figures: list[str],
    environments: list[dict[str, Any]],
    seconds: dict[str, dict[str, float]],
) -> None:
    """Writes ``report.md``: claim, results, figures, budget, environment, command."""
    environment = environments[-1]
    sections = [
        f"# {folder.path.name}",
        f"**Claim.** {config.claim or 'None stated.'}",
        f"**Task.** {config.task.describe()}.",
        "## Results",
        _markdown(HEADER, rows(config, folder, chance)),
        NOTE,
        *(f"![{name}](figures/{name})" for name in figures),
        *_distance_tables(config, folder),
        "## Budget and environment",
        _markdown(
            ("", ""),
            [
                ("steps x rows x tokens", _budget(config)),
                ("parameters", ", ".join(_parameters(config, folder))),
                ("device", f"{environment['device']}, {environment['cores']} cores"),
                ("commit", environment["commit"]),
                ("seconds", _seconds(seconds, len(environments))),
                ("command", f"`python -m experiments.run {' '.join(environment['command'][1:])}`"),
                ("packages", ", ".join(f"{k} {v}" for k, v in environment["packages"].items())),
            ],
        ),
        "## Config",
        f"```json\n{json.dumps(folder.config, indent=2)}\n```",
    ]
    write_text(folder.path / "report.md", "\n\n".join(sections) + "\n")


def _distance_tables(config: Config, folder: RunFolder) -> list[str]:
    """Returns, for each length with more than one distance, accuracy by distance and mixer."""
    parts = []
    for length in map(str, config.evaluation_lengths):
        bins = {
            mixer: folder.mixer(mixer).evaluation["lengths"][length]["by_distance"]
            for mixer in config.mixers
        }
        first = bins[config.mixers[0]]
        if len(first) > 1:
            lines = [
                (
                    f"{first[i]['from']}-{first[i]['to']}",
                    str(first[i]["answers"]),
                    *(_percent(b[i]["accuracy"], b[i]["accuracy_interval"]) for b in bins.values()),
                )
                for i in range(len(first))
            ]
            header = ("distance (tokens)", "answers", *config.mixers)
            parts += [f"### Accuracy by distance, rows of {length}", _markdown(header, lines)]
    return parts


def _budget(config: Config) -> str:
    return (
        f"{config.train.steps:,} x {config.train.batch_size} x {config.task.length} = "
        f"{config.tokens:,} tokens a mixer, seed {config.seed}"
    )


def _parameters(config: Config, folder: RunFolder) -> list[str]:
    return [f"{m} {folder.mixer(m).evaluation['parameters']:,}" for m in config.mixers]


def _seconds(seconds: dict[str, dict[str, float]], starts: int) -> str:
    parts = (f"{m} {s['train']:.0f} + {s['evaluate']:.0f}" for m, s in seconds.items())
    kind = "train + evaluate" if starts == 1 else f"train + evaluate in the last of {starts} starts"
    return f"{', '.join(parts)} ({kind})"


def _percent(value: float, interval: list[float]) -> str:
    return f"{100 * value:.1f} % [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def _bits(value: float, interval: list[float]) -> str:
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def _markdown(header: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    table = [header, ("---",) * len(header), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in table)
