"""The result table of a run for the terminal."""

from rich import box
from rich.table import Table

from experiments.records import RunFolder
from experiments.report import tables, words
from experiments.results import Results


def terminal_table(folder: RunFolder) -> Table:
    """Returns what each model of a run reaches, in a table for 100 columns."""
    results = Results.load(folder)
    unit = "sq. error" if results.is_number else "bits"
    table = Table(
        title=results.config.claim or None,
        caption_justify="left",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    columns = ("reach", "rate", "success", "accuracy", "of seeds", unit, "steps")
    table.add_column(results.name, overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for model in results.models:
        reach, success = results.reach(model), results.success(model)
        scores = results.scores(model, "accuracy")
        lost = any(run["status"] == "diverged" for run in results.runs(model))
        table.add_row(
            f"{model} (diverged)" if lost else model,
            "any" if reach is None else str(reach),
            f"{results.evaluations[model]['learning_rate']:g}"
            + ("!" if tables.is_at_edge(results, model) else ""),
            f"{success.successes}/{success.trials}",
            words.share(results.median(model)),
            f"{words.share(min(scores))}-{words.share(max(scores))}",
            words.loss(results.median(model, "loss")),
            tables.steps(results, model),
        )
    for name, floor in results.floors.items():
        accuracy, loss = words.share(floor.accuracy), words.loss(floor.loss)
        table.add_row(f"floor: {name}", "", "", "", accuracy, "", loss, "")
    missing = [model for model in results.config.models if model not in results.models]
    table.caption = (
        f"Medians of {results.seeds} seeds; success and steps at "
        f"{words.percent(results.threshold)}; !: a rate at the edge of those tried."
        + (f" Not evaluated: {', '.join(missing)}." if missing else "")
    )
    return table
