"""Published numbers beside ours, each with what sets its setting apart."""

from experiments import published
from experiments.report import words
from experiments.report.blocks import Block, Facts, Paragraph, Table
from experiments.results import Results
from experiments.tasks import (
    Adding,
    Induction,
    ListOps,
    NoisyDigits,
    PrefixKeyCopy,
    Recall,
    StringCopy,
)


def yardsticks(results: Results) -> list[Block]:
    """Returns what others have published on the run's task; nothing where there is nothing."""
    task = results.config.task
    if isinstance(task, Recall):
        return _recall(results, task)
    if isinstance(task, Induction):
        return _induction(results)
    if isinstance(task, Adding):
        return _adding(results)
    if isinstance(task, NoisyDigits):
        return _scores(
            results,
            published.NOISY_IMAGES,
            "Theirs are noise-padded CIFAR-10 images, whose chance is .1; ours has the protocol "
            "with small digits, fewer rows and a smaller model. A yardstick of difficulty only.",
        )
    if isinstance(task, ListOps):
        floors = ", ".join(f"{k} {words.share(v.accuracy)}" for k, v in results.floors.items())
        difference = f"Not to be read without the floors of our rows: {floors}."
        return _scores(results, published.LISTOPS, difference)
    if isinstance(task, PrefixKeyCopy):
        return _claims("copy by prefix key")
    if isinstance(task, StringCopy):
        return _claims("copy")
    return []


def _recall(results: Results, task: Recall) -> list[Block]:
    exact = [
        row
        for row in published.RECALL
        if row.length in results.lengths and row.pairs == task.num_pairs
    ]
    # Without a setting of theirs that is ours, the one of as many pairs is the closest.
    shown = exact or [row for row in published.RECALL if row.pairs == task.num_pairs]
    shown = shown or list(published.RECALL)
    settings = dict.fromkeys((row.length, row.pairs) for row in shown)
    rows = [
        [
            f"{model} (published), L {length}, P {pairs}",
            *(
                f"{row.accuracy:.2f}"
                for row in shown
                if (row.length, row.pairs, row.model) == (length, pairs, model)
            ),
        ]
        for length, pairs in settings
        for model in dict.fromkeys(row.model for row in shown)
    ]
    widths: dict[str, dict[int, str]] = {}
    for model in results.models:
        width = results.settings(model).width
        name = ",".join(p for p in model.split(",") if not p.startswith("width="))
        widths.setdefault(name, {})[width] = words.share(results.median(model))
    columns = sorted({*published.RECALL_WIDTHS, *(w for of in widths.values() for w in of)})
    theirs = [
        [row[0], *(_at(row[1:], published.RECALL_WIDTHS, column) for column in columns)]
        for row in rows
    ]
    ours = [
        [f"{name} (ours), L {results.length}, P {task.num_pairs}"]
        + [found.get(column, "-") for column in columns]
        for name, found in widths.items()
    ]
    difference = (
        f"Theirs: a vocabulary of 8,192, slots drawn with power .01 (early ones first), "
        f"other layers and budgets, the best of four learning rates, read off the figure to "
        f"{published.ZOOLOGY.reading:g}. Ours: a vocabulary of {task.vocab_size:,}, slot power "
        f"{task.slot_power:g}, {results.config.train.steps:,} steps of "
        f"{results.config.train.batch_size} rows. The two are not the same experiment."
    )
    header = ["median accuracy at width", *map(str, columns)]
    return _block(published.ZOOLOGY, difference, Table(header, [*ours, *theirs]))


def _at(cells: list[str], places: tuple[int, ...], wanted: int) -> str:
    return cells[places.index(wanted)] if wanted in places else "-"


def _induction(results: Results) -> list[Block]:
    trained = results.config.task.length
    times = sorted(
        {length / trained for length in results.lengths}
        | {score.length / score.trained_length for score in published.INDUCTION}
    )
    ours = [
        [
            f"{model} (ours)",
            *(
                words.share(results.median(model, "accuracy", round(t * trained)))
                if round(t * trained) in results.lengths
                else "-"
                for t in times
            ),
        ]
        for model in results.models
    ]
    theirs = []
    for model in dict.fromkeys(score.model for score in published.INDUCTION):
        found = {
            score.length / score.trained_length: f"{score.accuracy:.3f}"
            for score in published.INDUCTION
            if score.model == model
        }
        theirs.append([f"{model} (published)", *(found.get(t, "-") for t in times)])
    difference = (
        f"Theirs are trained at {published.INDUCTION_TRAINED_LENGTH} tokens, ours at {trained}; "
        "columns are multiples of the length of training. Before every mixer of ours stands a "
        f"short convolution of width {results.config.model.short_convolution} unless its name says "
        "otherwise; their layers, widths and steps are not ours."
    )
    table = Table(["accuracy at", *(f"{t:g}x" for t in times)], [*ours, *theirs])
    return _block(published.MAMBA, difference, table)


def _adding(results: Results) -> list[Block]:
    ours = [
        [f"{model} (ours)", words.loss(results.median(model, "loss"))] for model in results.models
    ]
    theirs = [[f"{x.model} (published)", words.loss(x.value)] for x in published.ADDING]
    difference = (
        f"Theirs is at T = 600, ours at T = {results.config.task.length}; always answering 1 "
        "scores 1/6 = 0.167 at any length. Their models are larger, their budget is another."
    )
    return _block(published.BAI, difference, Table(["", "squared error"], [*ours, *theirs]))


def _scores(results: Results, scores: tuple[published.Score, ...], difference: str) -> list[Block]:
    ours = [[f"{m} (ours)", words.share(results.median(m))] for m in results.models]
    theirs = [[f"{x.model} (published, {x.task})", words.share(x.value)] for x in scores]
    table = Table(["", "accuracy"], [*ours, *theirs])
    return _block(scores[0].source, difference, table)


def _claims(task: str) -> list[Block]:
    found = [claim for claim in published.COPY_CLAIMS if claim.task == task]
    return [
        Paragraph(
            "What others report, in words; their models and budgets are larger.", "Published."
        ),
        Facts([f"{claim.words} ({_cited(claim.source)})" for claim in found]),
    ]


def _block(source: published.Source, difference: str, table: Table) -> list[Block]:
    return [Paragraph(f"{_cited(source)} {difference}", "Beside published numbers."), table]


def _cited(source: published.Source) -> str:
    return f"{source.paper}, arXiv {source.arxiv}, {source.place}."
