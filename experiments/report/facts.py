"""What a reader should not overlook, found in the records by fixed rules; facts, no verdicts."""

from experiments import statistics
from experiments.report import words
from experiments.report.tables import is_at_edge
from experiments.results import Results

FEW_SEEDS = 5
"""Of so many seeds or fewer a run's page says that they are few."""
FAR_APART = 0.2
"""From this on, the page says that accuracies of a model's seeds differ."""
ENOUGH_ANSWERS = 10_000
"""Of fewer a run's page says so."""


def noted(results: Results) -> list[str]:
    """Returns sentences on what failed, contradicts the order of the models, or limits the rest."""
    if not results.models:
        return _unfinished(results)
    return [
        *_unfinished(results),
        *_better_than_rivals(results),
        *_without_success(results),
        *_disagreeing(results),
        *_unlike_the_search(results),
        *_without_the_source(results),
        *_diverged(results),
        *_beyond_reach(results),
        *_at_the_edge(results),
        *_limits(results),
        *_starts(results),
    ]


def _unfinished(results: Results) -> list[str]:
    found = []
    missing = [model for model in results.config.models if model not in results.models]
    if missing:
        found.append(f"Not evaluated yet: {_listed(missing)}.")
    if results.folder.finished is None:
        found.append("The run has not finished; its floors are not known yet.")
    return found


def _better_than_rivals(results: Results) -> list[str]:
    found = []
    for model in results.models:
        first = results.rival(model)
        if first is None:
            continue
        ours, theirs = results.median(first), results.median(model)
        better = []
        if theirs > ours and words.share(theirs) != words.share(ours):
            values = f"{words.share(theirs)} against {words.share(ours)}"
            better.append(f"the higher median accuracy ({values})")
        ours, theirs = results.median(first, "loss"), results.median(model, "loss")
        if theirs < ours:
            values = f"{words.loss(theirs)} against {words.loss(ours)} {results.loss_unit}"
            better.append(f"the lower median loss ({values})")
        if better:
            found.append(f"{model} has {' and '.join(better)} than {first}.")
    first = results.config.models[0]
    if first not in results.models:
        return found
    return [*found, *_better_without_source(results, first), *_better_at_lengths(results, first)]


def _better_without_source(results: Results, first: str) -> list[str]:
    def loss(model: str) -> float | None:
        asked = results.asked(model)
        if not all({"with_source", "without_source"} <= set(a) for a in asked):
            return None
        return statistics.median([a["without_source"]["loss"] for a in asked])

    ours = loss(first)
    losses = {model: loss(model) for model in results.models}
    better = [m for m, x in losses.items() if x is not None and ours is not None and x < ours]
    if not better or ours is None:
        return []
    values = ", ".join(f"{model} {words.loss(losses[model] or 0.0)}" for model in better)
    return [
        f"Where an answer has no source, these have the lower median loss than {first} "
        f"({words.loss(ours)}): {values}."
    ]


def _better_at_lengths(results: Results, first: str) -> list[str]:
    found = []
    for length in results.lengths:
        if length == results.length:
            continue
        ours = results.median(first, "accuracy", length)
        better = {m: results.median(m, "accuracy", length) for m in results.models}
        better = {m: x for m, x in better.items() if x > ours}
        if better:
            values = ", ".join(f"{model} {words.share(x)}" for model, x in better.items())
            found.append(
                f"At {length:,} tokens these have the higher median accuracy than {first} "
                f"({words.share(ours)}): {values}."
            )
    return found


def _without_success(results: Results) -> list[str]:
    aim = words.percent(results.threshold)
    none = [model for model in results.models if results.success(model).successes == 0]
    if not none:
        return []
    if len(none) == len(results.models):
        return [f"No run of any model reached {aim}."]
    return [f"No run of these reached {aim}: {_listed(none)}."]


def _disagreeing(results: Results) -> list[str]:
    found = []
    for model in results.models:
        success, scores = results.success(model), results.scores(model, "accuracy")
        few, many = min(scores), max(scores)
        if 0 < success.successes < success.trials or many - few > FAR_APART:
            found.append(
                f"The seeds of {model} disagree: {success.successes} of {success.trials} reached "
                f"{words.percent(results.threshold)}; accuracy {words.share(few)} to "
                f"{words.share(many)}."
            )
    return found


def _unlike_the_search(results: Results) -> list[str]:
    found = []
    for model in results.models:
        few, many = (end(results.scores(model, "accuracy")) for end in (min, max))
        tried = [run["accuracy"] for run in results.tried(model)]
        if tried and (max(tried) < few - FAR_APART or min(tried) > many + FAR_APART):
            found.append(
                f"At the rate that was chosen for {model} the search had accuracy "
                f"{', '.join(map(words.share, tried))} on valid rows, its fresh seeds "
                f"{words.share(few)} to {words.share(many)} on test rows."
            )
    return found


def _without_the_source(results: Results) -> list[str]:
    """What a source gives through a third position, and what is answered although it is hidden."""
    if not results.floors:
        return []
    highest = max(floor.accuracy for floor in results.floors.values())
    kept, guessed = [], []
    for model in results.models:
        cases = results.blocked(model)
        if cases is None:
            continue
        answers = int(cases["answers"])
        surely, _ = statistics.wilson_interval(cases["hidden"] * answers, answers)
        taken = cases["open"] - cases["hidden"]
        if taken > FAR_APART and cases["source"] - cases["hidden"] > taken / 2:
            kept.append(f"{model} ({words.share(cases['source'])})")
        if surely > highest:
            guessed.append(f"{model} ({words.share(cases['hidden'])})")
    found = []
    if kept:
        found.append(
            "With its source blocked for the question alone, more than half of what hiding it from "
            f"all would take is left: {_listed(kept)}. There it goes through a third position."
        )
    if guessed:
        found.append(
            f"With the source hidden from all that comes later, these are still above the highest "
            f"floor: {_listed(guessed)}. So much is known without it, or carried by convolutions."
        )
    return found


def _diverged(results: Results) -> list[str]:
    found = []
    for model in results.models:
        lost = [run["seed"] for run in results.runs(model) if run["status"] == "diverged"]
        if lost:
            found.append(
                f"{len(lost)} of {len(results.runs(model))} fresh runs of {model} diverged "
                f"(seed {', '.join(map(str, lost))})."
            )
        tried = (results.search(model) or {"runs": []})["runs"]
        lost = [f"{run['learning_rate']:g}" for run in tried if run["status"] == "diverged"]
        if lost:
            rates = ", ".join(dict.fromkeys(lost))
            found.append(f"In the search {len(lost)} runs of {model} diverged (rate {rates}).")
    return found


def _beyond_reach(results: Results) -> list[str]:
    if not results.floors:
        return []
    highest = max(floor.accuracy for floor in results.floors.values())
    found = []
    for model in results.models:
        reach = results.reach(model)
        right = total = 0.0
        for columns in (asked["by_distance"] for asked in results.asked(model)):
            for low, answers, accuracy in zip(
                columns["from"], columns["answers"], columns["accuracy"], strict=True
            ):
                if reach is not None and low > reach:
                    right, total = right + answers * accuracy, total + answers
        if total and statistics.wilson_interval(min(right, total), int(total))[0] > highest:
            found.append(
                f"Beyond its reach of {reach} tokens {model} answers "
                f"{words.share(right / total)}, above the highest floor of {words.share(highest)}: "
                "such answers can be guessed from what is within reach."
            )
    return found


def _at_the_edge(results: Results) -> list[str]:
    edge = [model for model in results.models if is_at_edge(results, model)]
    found = []
    if edge:
        rates = [f"{model} ({results.evaluations[model]['learning_rate']:g})" for model in edge]
        found.append(f"The chosen learning rate is at the edge of those tried: {_listed(rates)}.")
    return found


def _limits(results: Results) -> list[str]:
    found = []
    rates, tuning = results.config.sweep.learning_rates, results.config.sweep.tuning_seeds
    if len(rates) == 1:
        found.append(
            f"One learning rate, {rates[0]:g}, was used for every model, without a search: a model "
            "that fails at it may not at another."
        )
    elif tuning == 1:
        found.append("Each learning rate was tried on one tuning seed.")
    answers = results.config.evaluate.num_answers
    if answers < ENOUGH_ANSWERS:
        found.append(
            f"Each run is asked {answers:,} answers of a length, fewer than {ENOUGH_ANSWERS:,}."
        )
    if results.seeds <= FEW_SEEDS:
        few = "One seed a model" if results.seeds == 1 else f"{results.seeds} seeds a model"
        found.append(f"{few}: the intervals are wide, and a sign test cannot reach .05.")
    return found


def _starts(results: Results) -> list[str]:
    environments = results.folder.environments
    commits = list(dict.fromkeys(x["commit"] for x in environments))
    found = []
    if len(commits) > 1:
        found.append(
            f"The run was started {len(environments)} times, at commits {_listed(commits)}."
        )
    changed = [commit for commit in commits if commit.endswith("+")]
    if changed:
        found.append(f"Files differed from the commit (+): {_listed(changed)}.")
    return found


def _listed(names: list[str]) -> str:
    return "; ".join(names)
