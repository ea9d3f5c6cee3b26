"""The pages: what stands on them in which order, and their files."""

import html
import json
import pathlib
import shlex
import string
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import figures, viewer
from experiments.config import to_dict
from experiments.figures.inside import unpacked_maps
from experiments.records import RunFolder, write_text
from experiments.report import tables
from experiments.report.blocks import (
    Block,
    Code,
    Details,
    Facts,
    Fragment,
    Heading,
    Links,
    Paragraph,
    Picture,
    Pictures,
    Table,
    to_html,
    to_markdown,
)
from experiments.report.facts import noted
from experiments.report.summary import budget, origin, summary
from experiments.report.yardsticks import yardsticks
from experiments.results import Results

Commands = Mapping[str, Sequence[str]]
HERE = pathlib.Path(__file__).parent


def write(
    folders: Sequence[RunFolder],
    out: pathlib.Path,
    claim: str = "",
    commands: Commands | None = None,
) -> list[pathlib.Path]:
    """Writes ``report.html`` and ``report.md``, with its figures, from records alone.

    Args:
      folders: of runs, finished or not; at least one.
      out: the directory to write to; made if there is none.
      claim: what several runs show together.
      commands: by the name of a folder, arguments of ``experiments.run`` that make it again; those
        of its last start where there are none.

    Returns:
      The paths of the two pages.

    Raises:
      ValueError: if there are no folders.
    """
    if not folders:
        raise ValueError("a report needs at least one run folder")
    runs = [Results.load(folder) for folder in folders]
    (out / "figures").mkdir(parents=True, exist_ok=True)
    blocks = page(runs, claim, commands)
    for picture in pictures_of(blocks):
        (out / picture.file).write_bytes(picture.png)
    title = runs[0].name if len(runs) == 1 else f"Long-range dependency: {len(runs)} runs"
    template = string.Template((HERE / "page.html").read_text(encoding="utf-8"))
    style = (HERE / "page.css").read_text(encoding="utf-8")
    text = template.substitute(title=html.escape(title), style=style, body=to_html(blocks))
    pages = [out / "report.html", out / "report.md"]
    write_text(pages[0], text)
    write_text(pages[1], f"# {title}\n\n{to_markdown(blocks)}")
    return pages


def pictures_of(blocks: Sequence[Block]) -> list[Picture]:
    """Returns the pictures of blocks, those within other blocks included."""
    found = []
    for block in blocks:
        if isinstance(block, Picture):
            found.append(block)
        elif isinstance(block, Pictures):
            found += block.pictures
        elif isinstance(block, Details):
            found += pictures_of(block.blocks)
    return found


def page(runs: Sequence[Results], claim: str = "", commands: Commands | None = None) -> list[Block]:
    """Returns the whole page: all runs at once if there are several, then each."""
    anchors = [f"run-{i + 1}" for i in range(len(runs))]
    blocks: list[Block] = []
    evaluated = [results for results in runs if results.models]
    if len(runs) > 1 and evaluated:
        blocks.append(Heading(2, "All runs"))
        if claim:
            blocks.append(Paragraph(claim, "Claim."))
        blocks.append(Paragraph(f"{origin(runs)}; {budget(runs)}.", "Made from"))
        overviews = [
            Picture(f"figures/{x.name}.png", f"all runs: {x.name}", x.caption, x.png)
            for x in figures.draw_overviews(list(runs))
        ]
        blocks += [Pictures(overviews), summary(runs)]
        links = [(a, r.name, r.config.claim) for a, r in zip(anchors, runs, strict=True)]
        blocks.append(Links(links))
    for anchor, results in zip(anchors, runs, strict=True):
        name = results.folder.path.resolve().name
        prefix = f"{name}-" if len(runs) > 1 else ""
        blocks += section(results, anchor, prefix, (commands or {}).get(name, ()))
    return blocks


def section(results: Results, anchor: str, prefix: str, command: Sequence[str] = ()) -> list[Block]:
    """Returns what the page says of one run.

    Args:
      results: of the run.
      anchor: of its heading.
      prefix: what the names of its figures begin with.
      command: arguments that make it again; by default those of its last start.
    """
    blocks: list[Block] = [
        Heading(2, results.name, anchor),
        Paragraph(results.config.claim or "None stated.", "Claim."),
        Paragraph(f"{results.folder.data.rstrip('.')}.", "Task and data."),
    ]
    facts = noted(results)
    if not results.models:
        return [*blocks, Heading(3, "Noted"), Facts(facts)]
    blocks.append(tables.models(results))
    if facts:
        blocks += [Heading(3, "Noted"), Facts(facts)]
    titled = (
        ("Differences", tables.differences(results)),
        ("By length", tables.by_length(results)),
        ("Whole rows by length", tables.whole_rows(results)),
        ("By distance", tables.by_distance(results)),
        ("With and without a source", tables.by_group(results)),
        ("Inside the runs", tables.inside(results)),
    )
    for title, table in titled:
        if table is not None:
            blocks += [Heading(3, title), table]
    published = yardsticks(results)
    if published:
        blocks += [Heading(3, "Published"), *published]
    pictures = [
        Picture(f"figures/{prefix}{x.name}.png", f"{results.name}: {x.name}", x.caption, x.png)
        for x in figures.draw_all(results)
    ]
    blocks += [Heading(3, "Figures"), Pictures(pictures)]
    examples = viewer_examples(results)
    if examples:
        instead = f"The HTML page has the attention maps of {len(examples)} rows to point at."
        blocks += [Heading(3, "Attention, row by row"), Fragment(viewer.render(examples), instead)]
    return [*blocks, *_settings(results, command)]


def viewer_examples(results: Results) -> list[viewer.Example]:
    """Returns the rows whose attention maps are kept, of all models that have them."""
    found = []
    for model, evaluation in results.evaluations.items():
        carried = max(results.settings(model).short_convolution - 1, 0)
        first = next(iter(evaluation["inside"]), {})
        for row, example in enumerate(first.get("examples", ())):
            answers = [
                viewer.Answer(
                    answer["position"],
                    answer["source"],
                    min(example["source_width"], answer["source"] + 1),
                    _answer_text(answer["target"]),
                    _answer_text(answer["predicted"]),
                    _is_right(results, answer),
                )
                for answer in example["answers"]
            ]
            label = f"{model}, row {row}"
            maps = unpacked_maps(example)
            found.append(viewer.Example(label, example["tokens"], answers, maps, carried))
    return found


def _answer_text(answer: str | float) -> str:
    return answer if isinstance(answer, str) else f"{answer:.2f}"


def _is_right(results: Results, answer: dict[str, Any]) -> bool:
    if not results.is_number:
        return answer["predicted"] == answer["target"]
    return abs(answer["predicted"] - answer["target"]) < results.tolerance


def _settings(results: Results, command: Sequence[str]) -> list[Block]:
    """Returns what it took: search, budget, environment, commands, config."""
    config = results.config
    blocks: list[Block] = []
    search = tables.search(results)
    if search is not None:
        blocks.append(Details("Search for the learning rates", [search]))
    blocks += [Heading(3, "Budget"), tables.budget(results), *_environments(results, command)]
    plain = json.dumps(to_dict(config), indent=2)
    blocks.append(Details("Resolved config", [Code(plain, "json")]))
    return blocks


def _without_models(arguments: Sequence[str]) -> list[str]:
    """Returns arguments of ``experiments.run`` without those that say which models."""
    kept, is_kept = [], True
    for argument in arguments:
        if argument.startswith("--"):
            is_kept = argument.partition("=")[0] != "--models"
        if is_kept:
            kept.append(argument)
    return kept


def _environments(results: Results, command: Sequence[str]) -> list[Block]:
    rows = [
        [
            str(start + 1),
            f"{x['devices']} x {x['device']}, {x['cores']} cores, {x['machine']}",
            x["commit"],
            f"Python {x['python']}, " + ", ".join(f"{k} {v}" for k, v in x["packages"].items()),
        ]
        for start, x in enumerate(results.folder.environments)
    ]
    if not rows:
        return []
    table = Table(["start", "device", "commit", "versions"], rows)
    arguments = command or results.folder.environments[-1]["command"][1:]
    path = pathlib.Path(next(iter(arguments), ""))
    if not command and path.stem != results.name:  # It was run with others, by a suite.
        own = next(path.parent.rglob(f"{results.name}.py"), None)
        if own is not None:
            arguments = [str(own), "--seed", str(results.config.seed)]
            path = own
    lines = [arguments]
    # Of some models already, the command of one row cannot be told from it.
    if command or path.stem == results.name:
        lines += [[*_without_models(arguments), "--models", model] for model in results.models]
    commands = [f"python -m experiments.run {shlex.join(line)}" for line in lines]
    commit = results.folder.environments[-1]["commit"]
    what = "All of it, and each row alone" if len(lines) > 1 else "The run that this is of"
    return [
        Heading(3, "Environment and commands"),
        table,
        Paragraph(f"{what}, to the same numbers at commit {commit}."),
        Code("\n".join(commands), "bash"),
    ]
