"""What a trained model reaches: by distance of the source, by position, and where it looks.

The test rows are the same for every mixer and every seed. An evaluation is plain values, ready to
be written as JSON: per length a summary, a list of distance bins, a list of positions, and the
attention weight that each layer and head puts on the true source.
"""

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.config import Config
from experiments.models.decoder import build_decoder
from experiments.tasks import NO_SOURCE, Batch, Task
from experiments.train import answer_losses

TEST_SEED = 2**31 - 1
"""Of the test rows; no run can train with it (``Config.seed`` is below)."""
MAX_BINS = 12
"""Distance bins at most."""


class Answers(NamedTuple):
    """Every answer that was asked, one row of each array a row of the test set."""

    correct: Any
    bits: Any
    positions: Any
    distances: Any


def evaluate(config: Config, mixer: str, params: Any, data: Any) -> dict[str, Any]:
    """Returns the evaluation of one mixer at every length of the config.

    Args:
      config: of the run.
      mixer: which of its mixers.
      params: trained parameters.
      data: of the test split.
    """
    lengths = {}
    for length in config.evaluation_lengths:
        task = config.task.with_length(length)
        lengths[str(length)] = summarise(ask(config, task, mixer, params, data))
    return {
        "mixer": mixer,
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "lengths": lengths,
        "attention": attention_on_source(config, mixer, params, data),
    }


def ask(config: Config, task: Task, mixer: str, params: Any, data: Any) -> Answers:
    """Returns what the model answers on at least ``evaluate.num_answers`` test answers."""
    decoder = build_decoder(config.task, config.model, mixer)
    batch_size = config.evaluate.batch_size

    @jax.jit
    def answer(params: Any, data: Any, index: Any) -> Answers:
        batch = test_batch(task, index, batch_size, data)
        losses, correct = answer_losses(decoder, params, batch)
        return Answers(correct, losses / math.log(2), batch.positions, batch.distances)

    batches = [jax.device_get(answer(params, data, 0))]
    missing = config.evaluate.num_answers - batches[0].correct.size
    for index in range(1, 1 + math.ceil(max(missing, 0) / batches[0].correct.size)):
        batches.append(jax.device_get(answer(params, data, index)))
    return Answers(*(np.concatenate(columns) for columns in zip(*batches, strict=True)))


def test_batch(task: Task, index: Any, batch_size: int, data: Any) -> Batch:
    """Returns one batch of the fixed test set."""
    return task.sample(jax.random.fold_in(jax.random.key(TEST_SEED), index), batch_size, data)


def summarise(answers: Answers) -> dict[str, Any]:
    """Returns the scores over all answers, with and without a source, by distance, by position."""
    known = answers.distances != NO_SOURCE
    groups = {"with_source": known, "without_source": ~known}
    return {
        "rows": len(answers.correct),
        **{name: score(answers, group) for name, group in groups.items() if group.any()},
        "by_distance": [
            {"from": low, "to": high, **score(answers, in_bin)}
            for low, high in distance_bins(answers.distances[known])
            if (in_bin := (answers.distances >= low) & (answers.distances <= high)).any()
        ],
        "by_position": [
            {"position": int(position), **score(answers, answers.positions == position)}
            for position in np.unique(answers.positions)
        ],
    }


def score(answers: Answers, group: Any) -> dict[str, Any]:
    """Returns accuracy and bits over a group of answers, with 95 % intervals.

    That of bits takes rows as independent, that of accuracy answers.
    """
    correct, bits = answers.correct[group], answers.bits[group]
    rows = np.nonzero(group)[0]
    spread = np.bincount(rows, bits - bits.mean(), minlength=len(group))
    half = 1.96 * math.sqrt(np.sum(spread**2)) / len(bits)
    return {
        "answers": len(correct),
        "accuracy": float(correct.mean()),
        "accuracy_interval": wilson_interval(float(correct.sum()), len(correct)),
        "bits": float(bits.mean()),
        "bits_interval": [float(bits.mean() - half), float(bits.mean() + half)],
    }


def wilson_interval(successes: float, trials: int, z: float = 1.96) -> list[float]:
    """Returns the interval of a proportion that has 95 % coverage, also near 0 and 1.

    References:
      Wilson, "Probable inference", JASA 1927; Agresti & Coull, The American Statistician 1998.
    """
    rate = successes / trials
    centre = (rate + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z * math.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2)) / (1 + z**2 / trials)
    return [max(0.0, centre - half), min(1.0, centre + half)]


def distance_bins(distances: Any) -> list[tuple[int, int]]:
    """Returns at most ``MAX_BINS`` bins of equal width, ends included, that hold all distances."""
    if not distances.size:
        return []
    low, high = int(distances.min()), int(distances.max())
    width = math.ceil((high - low + 1) / MAX_BINS)
    return [(start, min(start + width - 1, high)) for start in range(low, high + 1, width)]


def attention_on_source(
    config: Config, mixer: str, params: Any, data: Any
) -> dict[str, Any] | None:
    """Returns the mean attention weight on the true source, by layer and head, and one map.

    A source stands at its own positions and in the few after them, into which the short
    convolution carries it; the weight is on all of these. ``uniform`` is the weight that a query
    would put there if it looked at all of its past alike. None for a mixer without weights.
    """
    decoder = build_decoder(config.task, config.model, mixer)
    carried = max(config.model.short_convolution - 1, 0)

    @jax.jit
    def look(params: Any, data: Any):
        batch = test_batch(config.task, 0, config.evaluate.num_maps, data)
        _, sown = decoder.apply(
            {"params": params}, batch.inputs, batch.positions, mutable=["intermediates"]
        )
        layers: Any = sown.get("intermediates", {})
        names = (f"mixer_{layer}" for layer in range(config.model.num_layers))
        return batch, [layers[name]["weights"][0] for name in names if name in layers]

    batch, maps = jax.device_get(look(params, data))
    if not maps:
        return None
    known = batch.sources != NO_SOURCE
    row, _ = np.nonzero(known)
    asked, source = batch.positions[known], batch.sources[known]
    span = source[:, None] + np.arange(1 - config.task.source_width, carried + 1)
    span = np.minimum(span, asked[:, None])
    is_first = np.diff(span, prepend=-1) > 0
    mass = np.stack(
        [
            (m[row[:, None], :, asked[:, None], span] * is_first[..., None]).sum(1).mean(0)
            for m in maps
        ]
    )
    layer, head = (int(i) for i in np.unravel_index(mass.argmax(), mass.shape))
    return {
        "mass_on_source": mass.tolist(),
        "uniform": float(np.mean(is_first.sum(1) / (asked + 1))),
        "best": {"layer": layer, "head": head, "mass": float(mass[layer, head])},
        "example": {
            "map": np.round(maps[layer][0, head], 4).tolist(),
            "positions": batch.positions[0].tolist(),
            "sources": batch.sources[0].tolist(),
            "spans": [config.task.source_width - 1, carried],
        },
    }
