"""The tables of a run, from its results alone."""

from typing import Any

from experiments import statistics
from experiments.config import NEAR
from experiments.report import words
from experiments.report.blocks import Table
from experiments.results import WIDER, Results


def models(results: Results) -> Table:
    """Returns what each model is and reaches; floors are rows."""
    aim = words.percent(results.threshold)
    any_diverged = any(
        run["status"] == "diverged" for model in results.models for run in results.runs(model)
    )
    header = [
        "model",
        "reach",
        "parameters",
        "state",
        "rate",
        f"runs at {aim} [Wilson 95 %]",
        "of as many others",
        "median accuracy",
        f"mean accuracy {_of_what(results)}",
        "every seed",
        "whole rows",
        f"median {results.loss_unit}",
        f"mean loss {_of_what(results)}",
        f"steps to {aim} in training",
        *(["diverged"] if any_diverged else []),
    ]
    rows = []
    for model in results.models:
        evaluation = results.evaluations[model]
        reach = results.reach(model)
        lost = sum(run["status"] == "diverged" for run in results.runs(model))
        whole = [asked["rows_right"] for asked in results.asked(model)]
        rows.append(
            [
                model,
                "any" if reach is None else str(reach),
                words.count(evaluation["parameters"]),
                words.size(evaluation["state_bytes"]),
                rate(results, model),
                words.successes(results.success(model)),
                others(results, model),
                words.share(results.median(model)),
                words.mean(results.mean(model), "accuracy"),
                " ".join(seed_values(results, model)),
                "-" if results.some_have_no_source else words.share(statistics.median(whole)),
                words.loss(results.median(model, "loss")),
                words.mean(results.mean(model, "loss"), "loss"),
                steps(results, model),
                *([str(lost)] if any_diverged else []),
            ]
        )
    for name, floor in results.floors.items():
        row = dict.fromkeys(header, "-") | {
            "model": f"floor: {name}",
            "median accuracy": words.share(floor.accuracy),
            f"median {results.loss_unit}": words.loss(floor.loss),
        }
        rows.append(list(row.values()))
    note = (
        f"Test rows of {results.length} tokens, {results.seeds} fresh seeds a model; accuracy and "
        f"loss are of the answers that have a source. {_brackets(results)} Of as many others: how "
        f"many of {results.seeds} further seeds may get there, the central 95 % of a beta-binomial "
        f"law; Wilson's interval is of the rate, and a count strays beyond it. Reach: the farthest "
        f"distance, in tokens, at which an input can change an answer. State: what is kept of a "
        f"row to read on. Steps: until the answers of {results.config.train.steps_per_dispatch} "
        f"steps of training are right by {aim}, the median over seeds where those that did not get "
        f"there count as later; rows of training that come again may be known by heart."
    )
    asked = results.config.task.with_length(results.length)
    if asked != results.config.task:
        note += f" The test rows are those of {asked.describe().rstrip('.')}."
    if results.is_number:
        note += f" An answer is right if it is off by less than {results.tolerance}."
    if any_diverged:
        note += " A diverged run is scored by its last finite state, and never is a success."
    return Table(header, rows, note)


def _of_what(results: Results) -> str:
    return "[of other rows, 95 %]" if results.seeds == 1 else "[of other seeds, 95 %]"


def _brackets(results: Results) -> str:
    if results.seeds == 1:
        return (
            "In brackets after a mean: its interval over test rows, of this seed; another seed may "
            "fall elsewhere."
        )
    return (
        "In brackets after a mean: where that of as many other seeds falls at this learning rate, "
        f"by Student's t made {WIDER:g} times as wide, which a repetition has shown to be enough, "
        "and for accuracy no less than Wilson's interval over all answers."
    )


def rate(results: Results, model: str) -> str:
    """Returns the learning rate of a model, marked if it is at the edge of the grid."""
    chosen = results.evaluations[model]["learning_rate"]
    mark = " (edge)" if is_at_edge(results, model) else ""
    return f"{chosen:g}{mark}"


def is_at_edge(results: Results, model: str) -> bool:
    """Returns whether the chosen rate is the least or the greatest of several."""
    rates = results.config.sweep.learning_rates
    return len(rates) > 1 and results.evaluations[model]["learning_rate"] in (rates[0], rates[-1])


def steps(results: Results, model: str) -> str:
    """Returns the median number of steps to the threshold, as the censored quantity it is."""
    median = results.steps_to_threshold(model).median
    if median is not None:
        return words.count(median)
    return f"> {words.count(max(run['steps'] for run in results.runs(model)))}"


def seed_values(results: Results, model: str) -> list[str]:
    """Returns the accuracy of each seed, marked if the run diverged."""
    return [
        f"{words.share(accuracy)}{' (diverged)' if run['status'] == 'diverged' else ''}"
        for accuracy, run in zip(
            results.scores(model, "accuracy"), results.runs(model), strict=True
        )
    ]


def others(results: Results, model: str) -> str:
    """Returns how many of as many other seeds may succeed."""
    least, most = statistics.repeated_successes(*results.success(model)[:2])
    return str(least) if least == most else f"{least} to {most}"


def differences(results: Results) -> Table | None:
    """Returns each model minus its rival, over pairs of the same seed and data."""
    rivals = {model: results.rival(model) for model in results.models}
    rows = []
    for model, rival in rivals.items():
        if rival is None:
            continue
        accuracy, loss = (
            statistics.paired_differences(
                results.scores(model, metric), results.scores(rival, metric)
            )
            for metric in ("accuracy", "loss")
        )
        rows.append(
            [
                f"{model} minus {rival}",
                f"{words.signed(accuracy.mean)} {words.interval(accuracy.interval)}",
                f"{accuracy.sign_test:.3g}",
                f"{words.signed(loss.mean)} {words.interval(loss.interval)}",
                str(accuracy.pairs),
            ]
        )
    if not rows:
        return None
    header = ["difference", "accuracy [95 %]", "sign test p", results.loss_unit, "pairs"]
    note = (
        "Each model minus the first, or the first of its mixer at the same width. Means of paired "
        "differences, where that of as many other seeds falls by Student's t (which takes them as "
        "normal: a mixture of solved and unsolved runs is not) and the exact two-sided sign test, "
        "which with n pairs cannot be under 2^(1-n), and of many tests is below .05 in one of "
        "twenty by chance. A diverged run is scored by its last finite state."
    )
    return Table(header, rows, note)


def by_length(results: Results) -> Table | None:
    """Returns the mean accuracy at each length that was asked."""
    if len(results.lengths) < 2:
        return None
    rows = [
        [model]
        + [words.mean(results.mean(model, "accuracy", n), "accuracy") for n in results.lengths]
        for model in results.models
    ]
    note = (
        f"Mean accuracy by length of row; trained at {results.config.task.length:,} tokens. "
        f"{_brackets(results)}"
    )
    return Table(["model", *(f"{n:,}" for n in results.lengths)], rows, note)


def whole_rows(results: Results) -> Table | None:
    """Returns how many rows were right as a whole at each length, where a row has many answers."""
    asked = {n: results.asked(results.models[0], n)[0] for n in results.lengths}
    if len(asked) < 2 or results.some_have_no_source:
        return None
    if all(x["rows"] == _answers(x) for x in asked.values()):
        return None
    rows = []
    for model in results.models:
        of_seeds = [[x["rows_right"] for x in results.asked(model, n)] for n in asked]
        rows.append([model, *(words.spread(values) for values in of_seeds)])
    note = "Rows in which every answer is right, by length: the median of seeds, least to greatest."
    return Table(["model", *(f"{n:,}" for n in asked)], rows, note)


def _answers(asked: dict[str, Any]) -> int:
    return sum(asked[x]["answers"] for x in ("with_source", "without_source") if x in asked)


def by_distance(results: Results) -> Table | None:
    """Returns the median accuracy at each distance of the source."""
    bins = results.bins()
    if len(bins) < 2:
        return None
    rows = []
    for model in results.models:
        reach = results.reach(model)
        columns = zip(*results.columns(model, "by_distance", "accuracy"), strict=True)
        cells = [words.share(statistics.median(column)) for column in columns]
        beyond = [reach is not None and low > reach for low, _ in bins]
        rows.append([model, *(f"({x})" if b else x for x, b in zip(cells, beyond, strict=True))])
    answers = results.columns(results.models[0], "by_distance", "answers")[0]
    rows.append(["answers a seed", *map(words.count, answers)])
    header = ["model", *(f"{low}-{high}" if high > low else str(low) for low, high in bins)]
    note = (
        f"Median accuracy by distance from question to source, in tokens, rows of "
        f"{results.length}. In parentheses: beyond the model's reach."
    )
    return Table(header, rows, note)


def by_group(results: Results) -> Table | None:
    """Returns accuracy and loss of answers with and without a source, where there are both."""
    if not results.some_have_no_source:
        return None
    groups = ("with_source", "without_source")
    rows = [
        [model]
        + [
            words.mean(results.mean(model, metric, group=group), metric)
            for group in groups
            for metric in ("accuracy", "loss")
        ]
        for model in results.models
    ]
    unit = results.loss_unit
    header = ["model", "accuracy, source", unit, "accuracy, no source", f"{unit}, no source"]
    note = f"Means of answers with a source and without one. {_brackets(results)}"
    return Table(header, rows, note)


def inside(results: Results) -> Table | None:
    """Returns what the probes saw: weight on the source, accuracy without it, gradients."""
    rows = []
    for model, evaluation in results.evaluations.items():
        seen = evaluation["inside"]
        if not seen or not any(seen[0][k] for k in ("attention", "blocked", "gradient")):
            continue
        weight, cut, reach = "-", ["-"] * 5, ["-"] * 3
        if seen[0]["attention"]:
            masses = [x["attention"]["best"]["mass"] for x in seen]
            weight = f"{words.spread(masses)}, uniform {seen[0]['attention']['uniform']:.3f}"
        if seen[0]["blocked"]:
            cases = ("open", "source", "hidden", "elsewhere")
            cut = [words.spread([x["blocked"][case] for x in seen]) for case in cases]
            cut = [words.count(seen[0]["blocked"]["answers"]), *cut]
        if seen[0]["gradient"]:
            stages = [[x["gradient"][when] for x in seen] for when in ("initial", "trained")]
            reach = [words.spread([x["share_at_source"] for x in stage]) for stage in stages]
            reach[1] += f", uniform {seen[0]['gradient']['trained']['uniform']:.3f}"
            norms = (statistics.median([x["norm"] for x in stage]) for stage in stages)
            reach.append(", ".join(map(words.loss, norms)))
        rows.append([model, str(len(seen)), weight, *cut, *reach])
    if not rows:
        return None
    header = [
        "model",
        "seeds",
        "weight on source",
        "answers",
        "accuracy, open",
        "source blocked",
        "source hidden",
        "elsewhere blocked",
        "gradient share, initial",
        "trained",
        "gradient norm, initial and trained",
    ]
    note = (
        f"On {results.config.evaluate.num_probe_rows} rows: the median of seeds, least to "
        "greatest. Weight on source: of the head that puts most on the source and on where the "
        "short convolution carries it. Uniform: what all positions alike would give. Blocked: no "
        "question may attend to its source, or to as many other keys; what reaches it through a "
        "third position stays open. Hidden: nor may any other later position. Gradient: of the "
        "right answer's logit by the embeddings of the row, its norms summed over positions; "
        "share: what falls on the source."
    )
    return Table(header, rows, note)


def search(results: Results) -> Table | None:
    """Returns how every rate did on every tuning seed."""
    rates = results.config.sweep.learning_rates
    if len(rates) < 2:
        return None
    rows = []
    for model in results.models:
        found = results.search(model)
        if found is None:
            continue
        cells = []
        for tried in rates:
            runs = [run for run in found["runs"] if run["learning_rate"] == tried]
            texts = [
                "diverged"
                if run["status"] == "diverged"
                else f"{words.share(run['accuracy'])} ({words.loss(run['loss'])}; {run['steps']})"
                for run in runs
            ]
            mark = " chosen" if tried == found["chosen"] else ""
            cells.append(", ".join(texts) + mark)
        rows.append([model, *cells])
    note = (
        f"On the validation split, {results.config.sweep.tuning_seeds} tuning seed(s) a rate, "
        f"never reported elsewhere: accuracy ({results.loss_unit}; steps). Chosen: of the rates by "
        f"which most runs reach the aim, the lowest that takes at most {NEAR} times the steps of "
        "the soonest; where none does, that of the least median loss."
    )
    return Table(["model", *(f"{tried:g}" for tried in rates)], rows, note)


def budget(results: Results) -> Table:
    """Returns runs, steps, tokens and seconds of each model, and of all."""
    config = results.config
    totals = [0.0] * 5
    rows = []
    for model in results.models:
        runs = [*results.runs(model), *(results.search(model) or {"runs": []})["runs"]]
        steps = sum(run["steps"] for run in runs)
        tokens = steps * config.train.batch_size * config.task.length
        numbers = len(runs), steps, tokens, *results.seconds(model)
        totals = [a + b for a, b in zip(totals, numbers, strict=True)]
        rows.append([model, *map(words.count, numbers)])
    header = ["model", "runs", "steps", "tokens", "seconds to train", "to evaluate"]
    note = (
        f"At most {config.train.steps:,} steps a run, of {config.train.batch_size} rows of "
        f"{config.task.length} tokens. Runs of a model are trained together. Seconds are of all "
        "starts, up to the last checkpoint of each."
    )
    return Table(header, [*rows, ["all", *map(words.count, totals)]], note)
