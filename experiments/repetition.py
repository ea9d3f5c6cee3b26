"""Runs again, with other seeds: do they fall where the first ones said that others would?

    python -m experiments.repetition FIRST AGAIN [--wider 2.0]

Each is a run, a suite or a folder of runs; runs of one name are compared, whose configs may differ
in nothing but their seed. For every model that both have:

    successes   of the fresh seeds, in the interval for as many others
    accuracy    the mean of seeds at every length, and
    loss        that of the losses, in the interval of a repetition
    difference  of both from the model that this one is compared with, paired by seed

These are intervals of other seeds at the learning rate that the first search chose, of 95 % each.
The seeds of a search never change, so that the second search should choose it too; where it did not
(on another device, or by other code), models are counted apart. See ``experiments.statistics`` for
what the intervals take as given.
"""

import argparse
import dataclasses
import functools
import pathlib
import sys
from collections.abc import Iterator
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from experiments import statistics
from experiments.config import to_dict
from experiments.records import folders_of
from experiments.report import words
from experiments.results import WIDER, Results

KINDS = ("successes", "accuracy", "loss", "difference")


class Prediction(NamedTuple):
    """Where the first run said that a figure would fall, and where it fell."""

    run: str
    model: str
    kind: str
    """One of ``KINDS``."""
    of_what: str
    same_rate: bool
    """Whether both searches chose one learning rate, of what it is a difference from too."""
    interval: tuple[float, float]
    found: float

    @property
    def is_inside(self) -> bool:
        """Whether it fell there."""
        low, high = self.interval
        return low <= self.found <= high

    def __str__(self) -> str:
        what = " ".join((self.kind, self.of_what)).rstrip()
        rate = "" if self.same_rate else ", at another rate"
        expected = words.interval(self.interval)
        return f"{self.run}: {self.model}: {what} is {self.found:.4g}, expected in {expected}{rate}"


def compare(first: Results, again: Results, wider: float = WIDER) -> Iterator[Prediction]:
    """Yields the figures of each model that two runs of one config both have.

    Args:
      first: the run that predicts.
      again: the one made again.
      wider: than for normal values, by how much the intervals of means are.

    Raises:
      ValueError: if the configs differ in more than seed, models and claim, or seeds are shared.
    """
    _check(first, again)
    both = first, again

    def have_same_rate(*models: str) -> bool:
        rates = ([x.evaluations[m]["learning_rate"] for m in models] for x in both)
        return next(rates) == next(rates)

    for model in (m for m in first.models if m in again.models):
        of_model = functools.partial(Prediction, first.name, model)
        same_rate = have_same_rate(model)
        interval = statistics.repeated_successes(*first.success(model)[:2])
        yield of_model("successes", "", same_rate, interval, again.success(model).successes)
        for length in first.lengths:
            for metric in ("accuracy", "loss"):
                (_, interval), (mean, _) = (
                    x.mean(model, metric, length, wider=wider) for x in both
                )
                yield of_model(metric, f"at {length:,}", same_rate, interval, mean)
        rival = first.rival(model)
        if rival is None or rival not in again.models:
            continue
        same_rate = have_same_rate(model, rival)
        for metric in ("accuracy", "loss"):
            expected, found = (
                statistics.paired_differences(x.scores(model, metric), x.scores(rival, metric))
                for x in both
            )
            of_what = f"of {metric} from {rival}"
            yield of_model("difference", of_what, same_rate, expected.interval, found.mean)


def _check(first: Results, again: Results) -> None:
    plain = [to_dict(dataclasses.replace(x.config, seed=0, claim="")) for x in (first, again)]
    for name in plain[0]:
        if name != "models" and plain[0][name] != plain[1][name]:
            raise ValueError(
                f"{again.folder.path}: {name} is {plain[1][name]}; expected that of "
                f"{first.folder.path}, {plain[0][name]}"
            )
    shared = set(first.config.reported_seeds) & set(again.config.reported_seeds)
    if shared:
        raise ValueError(f"{again.folder.path}: seeds {sorted(shared)} are those of the first run")


def summary(found: list[Prediction]) -> Table:
    """Returns how many figures of each kind fell inside, run by run, by whether rates agree."""
    table = Table(box=None, pad_edge=False)
    for name in ("run", "rate", *KINDS):
        table.add_column(name, justify="left" if name in ("run", "rate") else "right")
    for run in (*dict.fromkeys(x.run for x in found), "all"):
        for same_rate in (True, False):
            every = [x for x in found if run in (x.run, "all") and x.same_rate == same_rate]
            of_kinds = [[x.is_inside for x in every if x.kind == kind] for kind in KINDS]
            if every:
                cells = (f"{sum(inside)} of {len(inside)}" for inside in of_kinds)
                table.add_row(run, "same" if same_rate else "another", *cells)
    return table


def main(arguments: list[str]) -> int:
    """Returns the exit status of a command line; 1 if what it names cannot be compared."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.repetition",
        description="Says whether runs with other seeds fall inside the intervals of the first.",
    )
    parser.add_argument("first", type=pathlib.Path, help="a run, a suite or a folder of runs")
    parser.add_argument("again", type=pathlib.Path, help="the same, made again with another --seed")
    parser.add_argument(
        "--wider",
        type=float,
        default=WIDER,
        help="factor of Student's intervals of means (default: %(default)s, that of the page)",
    )
    chosen = parser.parse_args(arguments)
    try:
        first, again = (
            {results.name: results for results in map(Results.load, folders_of(path))}
            for path in (chosen.first, chosen.again)
        )
        shared = [name for name in first if name in again]
        found = [x for name in shared for x in compare(first[name], again[name], chosen.wider)]
        if not found:
            raise ValueError(f"{chosen.again} has no model of a run of {chosen.first}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console = Console()
    for figure in found:
        if not figure.is_inside:
            console.print(str(figure), markup=False, highlight=False, soft_wrap=True)
    console.print(summary(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
