"""What trained models reach: by distance of the source, by position, by row.

The rows asked are the same for every model and every seed. An evaluation is plain values, ready to
be written as JSON.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.config import Config
from experiments.mesh import split_rows
from experiments.models.decoder import build_decoder
from experiments.runs import Places, each_run, fetch
from experiments.tasks import NO_SOURCE, UNASKED, Batch, Split
from experiments.train import answer_losses

ROWS_SEED = {"valid": 2**31 - 2, "test": 2**31 - 1}
"""Of the rows of each split; no run can train with these (``config.MAX_SEED``)."""
MAX_BINS = 12
"""Distance bins at most."""


class Answers(NamedTuple):
    """Every answer of the asked rows of one run, ``[rows, A]`` each."""

    right: Any
    """Whether it is right."""
    loss: Any
    """In bits, or the squared error where answers are numbers."""
    asked: Any
    """Whether this place was asked at all."""
    positions: Any
    distances: Any

    @property
    def scored(self) -> Any:
        """What a run is scored by: the answers that have a source, or all if none has."""
        has_source = self.asked & (self.distances != NO_SOURCE)
        return has_source if has_source.any() else self.asked


class Questions:
    """The rows that every model of a config is asked, made once: at least ``num_answers``."""

    def __init__(self, config: Config, data: Mapping[str, Any]):
        """Takes the config and the task's arrays by split; rows are made when they are needed."""
        self.config = config
        self.data = data
        self._made: dict[tuple[str, int], Batch] = {}

    def rows(self, split: Split, length: int) -> Batch:
        """Returns the rows of a split at a length, in batches, ``[batches, B, ...]`` of NumPy."""
        if (split, length) not in self._made:
            task, batch_size = self.config.task.with_length(length), self.config.evaluate.batch_size
            rng = jax.random.key(ROWS_SEED[split])

            @jax.jit
            def sample(data: Any) -> Batch:
                def batch(index: Any) -> Batch:
                    return task.sample(jax.random.fold_in(rng, index), batch_size, data)

                count = -(
                    -self.config.evaluate.num_answers // jax.eval_shape(batch, 0).targets.size
                )
                return jax.lax.map(batch, jnp.arange(count))

            self._made[split, length] = jax.device_get(sample(self.data[split]))
        return self._made[split, length]

    def first(self, length: int, count: int) -> Batch:
        """Returns the first ``count`` test rows of a length."""
        rows = self.rows("test", length)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], rows)


def build_ask(
    config: Config, model: str, places: Places, length: int
) -> Callable[[Any, Any, Batch], list[Answers]]:
    """Returns a function from stacked parameters, which of them count, and rows, to answers.

    It is compiled once for all splits whose rows have the same shapes.
    """
    task = config.task.with_length(length)
    decoder = build_decoder(config.task, config.model_of(model))
    unit = 1.0 if task.num_classes is None else math.log(2)

    def ask(params: Any, is_run: Any, rows: Batch) -> Any:
        blank = jnp.zeros(rows.targets.shape, bool), jnp.zeros(rows.targets.shape)

        def of_batch(batch: Batch) -> Any:
            losses, right, _ = answer_losses(task, decoder, params, split_rows(batch))
            return right, losses / unit

        return jax.lax.cond(is_run, lambda: jax.lax.map(of_batch, rows), lambda: blank)

    stacked = each_run(ask, places)

    def answers_of_runs(params: Any, is_run: Any, rows: Batch) -> list[Answers]:
        asked = rows.targets != UNASKED
        if task.num_classes is None:
            asked = np.ones_like(asked)
        shared = (asked, rows.positions, rows.distances)
        of_runs = zip(*fetch(stacked(params, is_run, rows)), strict=True)
        return [
            Answers(*(x.reshape(-1, x.shape[-1]) for x in (*of_run, *shared)))
            for of_run, counts in zip(of_runs, is_run, strict=True)
            if counts
        ]

    return answers_of_runs


def summarise(answers: Answers) -> dict[str, Any]:
    """Returns the scores of one run: with and without a source, by distance, position and row."""
    has_source = answers.asked & (answers.distances != NO_SOURCE)
    groups = {"with_source": has_source, "without_source": answers.asked & ~has_source}
    bins = distance_bins(answers.distances[has_source])
    in_bins = [
        has_source & (answers.distances >= low) & (answers.distances <= high) for low, high in bins
    ]
    filled = [(*ends, in_bin) for ends, in_bin in zip(bins, in_bins, strict=True) if in_bin.any()]
    positions = np.unique(answers.positions[answers.asked])
    at_position = [answers.asked & (answers.positions == p) for p in positions]
    return {
        **{name: score(answers, group) for name, group in groups.items() if group.any()},
        "rows": len(answers.right),
        "rows_right": float(np.mean(np.all(answers.right | ~answers.asked, axis=1))),
        "by_distance": {
            "from": [low for low, _, _ in filled],
            "to": [high for _, high, _ in filled],
            **columns(answers, [in_bin for _, _, in_bin in filled]),
        },
        "by_position": {"position": positions.tolist(), **columns(answers, at_position)},
    }


def columns(answers: Answers, groups: list[Any]) -> dict[str, list[float]]:
    """Returns number, accuracy and loss of the answers of each group."""
    return {
        "answers": [int(group.sum()) for group in groups],
        "accuracy": [rounded(answers.right[group].mean()) for group in groups],
        "loss": [rounded(answers.loss[group].mean()) for group in groups],
    }


def score(answers: Answers, group: Any) -> dict[str, Any]:
    """Returns accuracy and loss over a group of answers, and 95 % intervals of both.

    The intervals take rows as independent, and answers of a row as no more than one. Where all are
    right, or all wrong, that of accuracy has no width.
    """
    found: dict[str, Any] = {"answers": int(group.sum())}
    for name, of_answers in (("accuracy", answers.right), ("loss", answers.loss)):
        values = of_answers[group].astype(np.float64)
        spread = np.bincount(np.nonzero(group)[0], values - values.mean(), minlength=len(group))
        half = 1.96 * math.sqrt(np.sum(spread**2)) / len(values)
        found[name] = rounded(values.mean())
        found[f"{name}_interval"] = [rounded(values.mean() - half), rounded(values.mean() + half)]
    return found


def distance_bins(distances: Any) -> list[tuple[int, int]]:
    """Returns at most ``MAX_BINS`` bins of equal width, ends included, that hold all distances."""
    if not distances.size:
        return []
    low, high = int(distances.min()), int(distances.max())
    width = math.ceil((high - low + 1) / MAX_BINS)
    return [(start, min(start + width - 1, high)) for start in range(low, high + 1, width)]


def rounded(value: Any) -> float:
    """Returns a number to the six digits that records keep."""
    return float(f"{float(value):.6g}")
