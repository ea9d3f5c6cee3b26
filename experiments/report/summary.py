"""All runs at once: a table of task by mixer, and the part of a README that is made of it."""

import datetime
import os
import pathlib
from collections.abc import Sequence

from experiments import figures
from experiments.records import write_text
from experiments.report import words
from experiments.report.blocks import Table, markdown_table
from experiments.results import Results, mixer_of

BEGIN, END = "<!-- results -->", "<!-- /results -->"


def summary(runs: Sequence[Results]) -> Table:
    """Returns successes and median accuracy of every mixer on every task."""
    runs = [results for results in runs if results.models]
    mixers = list(dict.fromkeys(mixer_of(model) for results in runs for model in results.models))
    rows = []
    for results in runs:
        variants = results.variants()
        floor = next(iter(results.floors.values()), None)
        cells = [_cell(results, variants.get(mixer, [])) for mixer in mixers]
        rows.append([results.name, *cells, words.share(floor.accuracy) if floor else "-"])
    thresholds = sorted({words.percent(results.threshold) for results in runs})
    note = (
        f"Seeds that reach {', '.join(thresholds)}, of all [Wilson 95 %], then median accuracy, at "
        "the length of training. Of a mixer with several variants of one width, the one that did "
        "best in the search, on seeds and rows that are not reported; the sections have them all. "
        "Chance is the first floor of the task."
    )
    return Table(["task", *mixers, "chance"], rows, note)


def _cell(results: Results, variants: Sequence[str]) -> str:
    if not variants:
        return "-"
    model = variants[0]
    text = f"{words.successes(results.success(model))} {words.share(results.median(model))}"
    details = [",".join(model.split(",")[1:]), f"of {len(variants)}" if len(variants) > 1 else ""]
    shown = ", ".join(filter(None, details))
    return f"{text} ({shown})" if shown else text


def origin(runs: Sequence[Results]) -> str:
    """Returns device, commit and date of runs, in a line."""
    environments = [x for results in runs for x in results.folder.environments]
    devices = dict.fromkeys(f"{x['devices']} x {x['device']}, {x['machine']}" for x in environments)
    commits = dict.fromkeys(x["commit"] for x in environments)
    dates = sorted({date(results) for results in runs})
    span = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    return f"{'; '.join(devices)}; commit {', '.join(commits)}; {span}"


def budget(runs: Sequence[Results]) -> str:
    """Returns how long runs took to train and to evaluate, all of them together."""
    seconds = sum(sum(results.seconds(model)) for results in runs for model in results.models)
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min of training and evaluation"


def date(results: Results) -> str:
    """Returns the day of a run: as recorded, else of the file that was written last."""
    recorded = [x["date"] for x in results.folder.environments if "date" in x]
    if recorded:
        return recorded[-1][:10]
    path = results.folder.path
    last = next(p for p in (path / "finished.json", path / "config.json") if p.exists())
    day = datetime.datetime.fromtimestamp(last.stat().st_mtime, datetime.UTC)
    return day.date().isoformat()


def update_readme(readme: pathlib.Path, runs: Sequence[Results], out: pathlib.Path) -> None:
    """Replaces what a README says between its two markers by the summary of these runs.

    The headline figure is written to ``out/figures`` and referred to from there.

    Raises:
      ValueError: if the README does not hold each marker once, in order.
    """
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{readme}: expected {BEGIN} and, after it, {END}, each once")
    table = summary(runs)
    parts = [markdown_table(table.header, table.rows), f"{table.note} From {origin(runs)}."]
    png = figures.draw_headline(list(runs))
    if png is not None:
        file = out / "figures" / "headline.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png)
        link = pathlib.Path(os.path.relpath(file, readme.resolve().parent)).as_posix()
        parts.insert(0, f"![Accuracy by distance, and where attention looks]({link})")
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    write_text(readme, f"{before}\n\n" + "\n\n".join(parts) + f"\n\n{after}")
