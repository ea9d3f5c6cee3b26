"""The pages: what stands on them in which order, and their files."""

import html
import json
import pathlib
import shlex
import string
from collections.abc import Sequence
from typing import Any

from experiments import figures, viewer
from experiments.config import to_dict
from experiments.figures.inside import unpacked_maps
from experiments.records import RunFolder, write_text
from experiments.report import tables, words
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
from experiments.report.summary import origin, summary
from experiments.report.yardsticks import yardsticks
from experiments.results import Results

HERE = pathlib.Path(__file__).parent


def write(folders: Sequence[RunFolder], out: pathlib.Path, claim: str = "") -> list[pathlib.Path]:
    """Writes ``report.html`` and ``report.md``, with its figures, from records alone.

    Args:
      folders: of runs, finished or not; at least one.
      out: the directory to write to; made if there is none.
      claim: what several runs show together.

    Returns:
      The paths of the two pages.

    Raises:
      ValueError: if there are no folders.
    """
    if not folders:
        raise ValueError("a report needs at least one run folder")
    runs = [Results.load(folder) for folder in folders]
    (out / "figures").mkdir(parents=True, exist_ok=True)
    blocks = page(runs, claim)
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


def page(runs: Sequence[Results], claim: str = "") -> list[Block]:
    """Returns the whole page: all runs at once if there are several, then each."""
    anchors = [f"run-{i + 1}" for i in range(len(runs))]
    blocks: list[Block] = []
    evaluated = [results for results in runs if results.models]
    if len(runs) > 1 and evaluated:
        blocks.append(Heading(2, "All runs"))
        if claim:
            blocks.append(Paragraph(claim, "Claim."))
        blocks.append(Paragraph(f"{origin(runs)}.", "Made from"))
        overviews = [
            Picture(f"figures/{x.name}.png", f"all runs: {x.name}", x.caption, x.png)
            for x in figures.draw_overviews(list(runs))
        ]
        blocks += [Pictures(overviews), summary(runs)]
        links = [(a, r.name, r.config.claim) for a, r in zip(anchors, runs, strict=True)]
        blocks.append(Links(links))
    for anchor, results in zip(anchors, runs, strict=True):
        prefix = f"{results.folder.path.resolve().name}-" if len(runs) > 1 else ""
        blocks += section(results, anchor, prefix)
    return blocks


def section(results: Results, anchor: str, prefix: str) -> list[Block]:
    """Returns what the page says of one run; ``prefix`` begins the names of its figures."""
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
        ("Differences from the first model", tables.differences(results)),
        ("By length", tables.by_length(results)),
        ("By distance", tables.by_distance(results)),
        ("With and without a source", tables.by_group(results)),
        ("Inside one run", tables.inside(results)),
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
    return [*blocks, *_settings(results)]


def viewer_examples(results: Results) -> list[viewer.Example]:
    """Returns the rows whose attention maps are kept, of all models that have them."""
    found = []
    for model, evaluation in results.evaluations.items():
        carried = max(results.settings(model).short_convolution - 1, 0)
        for row, example in enumerate(evaluation["inside"].get("examples") or []):
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


def _settings(results: Results) -> list[Block]:
    """Returns what it took: search, budget, environment, command, config."""
    config = results.config
    blocks: list[Block] = []
    search = tables.search(results)
    if search is not None:
        blocks.append(Details("Search for the learning rates", [search]))
    rows = []
    for model in results.models:
        runs = [*results.runs(model), *(results.search(model) or {"runs": []})["runs"]]
        steps = sum(run["steps"] for run in runs)
        seconds = results.evaluations[model].get("seconds", {})
        rows.append(
            [
                model,
                str(len(runs)),
                words.count(steps),
                words.count(steps * config.train.batch_size * config.task.length),
                *(words.count(seconds[k]) if k in seconds else "-" for k in ("train", "evaluate")),
            ]
        )
    header = ["model", "runs", "steps", "tokens", "seconds to train", "to evaluate"]
    note = (
        f"At most {config.train.steps:,} steps a run, of {config.train.batch_size} rows of "
        f"{config.task.length} tokens. Runs of a model are trained together; seconds are of its "
        "last start."
    )
    blocks += [Heading(3, "Budget"), Table(header, rows, note), *_environments(results)]
    plain = json.dumps(to_dict(config), indent=2)
    blocks.append(Details("Resolved config", [Code(plain, "json")]))
    return blocks


def _environments(results: Results) -> list[Block]:
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
    arguments = results.folder.environments[-1]["command"][1:]
    command = f"python -m experiments.run {shlex.join(arguments)}"
    return [
        Heading(3, "Environment and command"),
        table,
        Code(command, "bash"),
    ]
