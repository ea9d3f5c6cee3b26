"""What happens inside a trained model: where it looks, what it depends on, what it costs.

Each probe takes a few test rows, compiles once what it asks, and of the parameters of a run returns
plain values. A source stands at its own positions and in the few after them, into which the short
convolution carries it: its *span*.
"""

import base64
import time
import zlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.config import Config
from experiments.evaluate import Questions
from experiments.models import MIXERS
from experiments.models.decoder import Decoder, build_decoder
from experiments.tasks import NO_SOURCE, UNASKED, Batch
from experiments.train import answer_losses, mean_answer

NUM_EXAMPLES = 2
"""Rows whose attention maps are kept whole."""
MAX_ANSWERS = 8
"""Answers of a row whose gradients are taken: of those with a source, evenly spaced."""
COST_ROWS = 8
"""Rows of the step whose cost is measured."""


class Spans(NamedTuple):
    """Where the sources of a batch stand, answer by answer, of those that have one."""

    row: Any
    """``[n]``"""
    answer: Any
    """``[n]``, its place among the answers of its row."""
    asked: Any
    """``[n]``, the position at which it is asked."""
    places: Any
    """``[n, width]``, the positions of the span; none beyond the question."""
    is_first: Any
    """``[n, width]``, false where a place repeats the one before it."""
    end: Any
    """``[n]``, the last position to which the convolutions of all layers carry the source."""


def probe(
    config: Config, model: str, runs: Iterable[tuple[Any, Any]], questions: Questions
) -> list[dict[str, Any]]:
    """Returns what is seen inside each run of a model, on the same rows; whole maps of the first.

    Args:
      config: of the runs.
      model: one of ``config.models``.
      runs: of each the parameters in the end, and those before the first step; taken one after
        the other, and none where there are no rows to probe.
      questions: of the config.
    """
    if config.evaluate.num_probe_rows == 0:
        return []
    batch = questions.first(config.task.length, config.evaluate.num_probe_rows)
    spans = spans_of(config, model, batch)
    has_source = len(spans.row) > 0
    has_weights = MIXERS[config.model_of(model).mixer].has_weights
    reach_of = gradient_reach(config, model, batch, spans) if has_source else None
    maps_of = attention_maps(config, model, batch) if has_weights else None
    both = has_source and has_weights
    accuracy_of = blocked_accuracy(config, model, batch, spans) if both else None
    found = []
    for n, (trained, initial) in enumerate(runs):
        seen: dict[str, Any] = {"attention": None, "blocked": None, "gradient": None}
        if reach_of is not None:
            seen["gradient"] = {"initial": reach_of(initial), "trained": reach_of(trained)}
        if maps_of is not None:
            maps, predicted = maps_of(trained)
            if accuracy_of is not None:
                seen["attention"] = mass_on_source(maps, spans)
                seen["blocked"] = accuracy_of(trained)
            if n == 0:
                seen["examples"] = examples(config, batch, maps, predicted)
        found.append(seen)
    return found


def spans_of(config: Config, model: str, batch: Batch) -> Spans:
    """Returns the spans of all answers of a batch that have a source."""
    carried = max(config.model_of(model).short_convolution - 1, 0)
    row, answer = np.nonzero((batch.sources != NO_SOURCE) & (batch.targets != UNASKED))
    asked, source = batch.positions[row, answer], batch.sources[row, answer]
    places = source[:, None] + np.arange(1 - config.task.source_width, carried + 1)
    places = np.minimum(places, asked[:, None])
    end = np.minimum(source + carried * config.model_of(model).num_layers, asked)
    return Spans(row, answer, asked, places, np.diff(places, prepend=-1) > 0, end)


def attention_maps(config: Config, model: str, batch: Batch) -> Callable[[Any], tuple[Any, Any]]:
    """Returns a function of parameters: all weights, ``[layers, B, N, L, L]``, and the answers."""
    decoder = build_decoder(config.task, config.model_of(model))

    @jax.jit
    def look(params: Any, batch: Batch) -> tuple[Any, Any]:
        result, sown = decoder.apply(
            {"params": params}, batch.inputs, batch.positions, mutable=["intermediates"]
        )
        layers: Any = sown["intermediates"]
        names = (f"mixer_{layer}" for layer in range(config.model_of(model).num_layers))
        maps = jnp.stack([layers[name]["weights"][0] for name in names])
        return maps, result if config.task.num_classes is None else jnp.argmax(result, axis=-1)

    return lambda params: jax.device_get(look(params, batch))


def mass_on_source(maps: Any, spans: Spans) -> dict[str, Any]:
    """Returns the mean weight that each layer and head puts on the span of the true source.

    ``uniform`` is what a query would put there if it looked at all of its past alike.
    """
    # Indexed by arrays around a slice, the result has their axes first: [n, width, layers, N].
    weights = maps[:, spans.row[:, None], :, spans.asked[:, None], spans.places]
    mass = np.where(spans.is_first[..., None, None], weights, 0).sum(axis=1).mean(axis=0)
    layer, head = (int(i) for i in np.unravel_index(mass.argmax(), mass.shape))
    return {
        "mass_on_source": mass.tolist(),
        "uniform": float(np.mean(spans.is_first.sum(1) / (spans.asked + 1))),
        "best": {"layer": layer, "head": head, "mass": float(mass[layer, head])},
    }


def blocked_accuracy(
    config: Config, model: str, batch: Batch, spans: Spans
) -> Callable[[Any], dict[str, float]]:
    """Returns a function of parameters: accuracy when a source may not be attended to.

    ``source``: by its question; what reaches that through a third position stays open. ``hidden``:
    by any later position, so that it reaches none. To compare with: ``open``, where nothing is
    blocked, and ``elsewhere``, where as many other keys of the question are (``blocked_pairs``).
    """
    decoder = build_decoder(config.task, config.model_of(model))

    @jax.jit
    def accuracy(params: Any, batch: Batch, blocked: Any) -> Any:
        _, right, _ = answer_losses(config.task, decoder, params, batch, blocked=blocked)
        return jnp.mean(right[spans.row, spans.answer])

    cases = blocked_pairs(spans, *batch.inputs.shape[:2])

    def of_cases(params: Any) -> dict[str, float]:
        found = {name: float(accuracy(params, batch, blocked)) for name, blocked in cases.items()}
        return {"answers": len(spans.row), **found}

    return of_cases


def blocked_pairs(spans: Spans, rows: int, length: int) -> dict[str, Any]:
    """Returns which pairs of query and key are blocked in each case, ``[rows, L, L]``.

    ``source``: those of each question and its span. ``elsewhere``: of each question and as many
    keys side by side, drawn from its past but for the span; all of these where there are fewer.
    The past is taken as a ring, so that they may begin at its end and go on at its beginning.
    ``hidden``: of every position and any other of a span, up to its ``end``.
    """
    past, size = spans.asked + 1, spans.is_first.sum(axis=1)
    count = np.minimum(size, past - size)
    away = np.random.default_rng(0).integers(size, past - count + 1)
    steps = np.arange(spans.places.shape[1])
    beside = (spans.places[:, :1] + away[:, None] + steps) % past[:, None]

    def pairs(places: Any, counts: Any) -> Any:
        blocked = np.zeros((rows, length, length), bool)
        n, place = np.nonzero(counts)
        blocked[spans.row[n], spans.asked[n], places[n, place]] = True
        return blocked

    hidden = np.zeros((rows, length, length), bool)
    for row, first, end in zip(spans.row, spans.places[:, 0], spans.end, strict=True):
        hidden[row, first:, first : end + 1] = True
    hidden &= ~np.eye(length, dtype=bool)
    return {
        "open": np.zeros((rows, length, length), bool),
        "source": pairs(spans.places, spans.is_first),
        "hidden": hidden,
        "elsewhere": pairs(beside, steps < count[:, None]),
    }


def gradient_reach(
    config: Config, model: str, batch: Batch, spans: Spans
) -> Callable[[Any], dict[str, Any]]:
    """Returns a function of parameters: how far back an answer depends on what was read.

    ``by_distance[d]`` is the mean of ``|d logit_target / d embedding|`` at d positions before the
    question, divided by its sum over all of them; ``norm`` is the mean of that sum over answers,
    and ``share_at_source`` what of it falls on the span of the source, where all positions alike
    would have ``uniform``.
    """
    decoder = build_decoder(config.task, config.model_of(model))
    length = batch.inputs.shape[1]
    columns = np.unique(spans.answer)
    columns = columns[np.linspace(0, len(columns) - 1, min(len(columns), MAX_ANSWERS)).astype(int)]
    few = np.isin(spans.answer, columns)
    row, answer, asked, places, is_first, _ = (x[few] for x in spans)

    @jax.jit
    def norms(params: Any, batch: Batch) -> Any:
        def logit(change: Any, answer: Any) -> Any:
            result: Any = decoder.apply(
                {"params": params, "perturbations": {"embedded": change}},
                batch.inputs,
                batch.positions,
            )
            if config.task.num_classes is None:
                return jnp.sum(result[:, answer])
            targets = jnp.maximum(batch.targets[:, answer], 0)
            return jnp.sum(jnp.take_along_axis(result[:, answer], targets[:, None], axis=1))

        shape = (*batch.inputs.shape[:2], config.model_of(model).width)
        by_answer = jax.lax.map(lambda a: jax.grad(logit)(jnp.zeros(shape), a), columns)
        return jnp.linalg.norm(by_answer, axis=-1)

    def reach(params: Any) -> dict[str, Any]:
        of_answer = np.asarray(norms(params, batch))[np.searchsorted(columns, answer), row]
        total = of_answer.sum(axis=1, keepdims=True)
        share = of_answer / np.where(total > 0, total, 1)
        on_source = np.where(is_first, np.take_along_axis(share, places, axis=1), 0).sum(1)
        distance = asked[:, None] - np.arange(length)
        past = distance >= 0
        sums = np.bincount(distance[past], share[past], minlength=length)
        counts = np.bincount(distance[past], minlength=length)
        means = sums / np.maximum(counts, 1)
        return {
            "share_at_source": float(on_source.mean()),
            "uniform": float(np.mean(is_first.sum(1) / (asked + 1))),
            "norm": float(f"{total.mean():.6g}"),
            "by_distance": [float(f"{x:.4g}") for x in means],
        }

    return reach


def examples(config: Config, batch: Batch, maps: Any, predicted: Any) -> list[dict[str, Any]]:
    """Returns a few rows with their answers and maps, for a person to look at."""
    task = config.task
    is_number, spell = task.num_classes is None, getattr(task, "spell", str)
    kept = []
    for row in range(min(NUM_EXAMPLES, len(batch.inputs))):
        tokens = batch.inputs[row].tolist()
        answers = [
            {
                "position": int(batch.positions[row, i]),
                "source": int(batch.sources[row, i]),
                "target": float(target) if is_number else spell(int(target)),
                "predicted": (
                    float(predicted[row, i]) if is_number else spell(int(predicted[row, i]))
                ),
            }
            for i, target in enumerate(batch.targets[row])
            if target != UNASKED
        ]
        kept.append(
            {
                "tokens": [
                    spell(t) if task.vocab_size else " ".join(f"{x:.1f}" for x in t[:2])
                    for t in tokens
                ],
                "answers": answers,
                "source_width": task.source_width,
                "maps": packed(maps[:, row]),
            }
        )
    return kept


def packed(maps: Any) -> dict[str, Any]:
    """Returns maps ``[layers, N, L, L]`` as text: a byte a weight, of its root, compressed.

    The root keeps small weights apart: a look everywhere alike over 1,000 tokens is code 8, not 0.
    """
    codes = np.round(255 * np.sqrt(maps)).astype(np.uint8)
    text = base64.b64encode(zlib.compress(codes.tobytes(), 9)).decode()
    return {"shape": list(codes.shape), "zlib": text}


def unpacked(maps: dict[str, Any]) -> Any:
    """Returns the maps of ``packed``, to 1/255 at most."""
    codes = np.frombuffer(zlib.decompress(base64.b64decode(maps["zlib"])), np.uint8)
    return (codes.reshape(maps["shape"]) / 255) ** 2


def cost(config: Config, model: str, params: Any, questions: Questions) -> list[dict[str, float]]:
    """Returns what a training step costs at each of ``evaluate.cost_lengths``, per row.

    Milliseconds are the least of five steps of forward and backward on this device; bytes of
    temporary memory are those of the compiled program.
    """
    decoder: Decoder = build_decoder(config.task, config.model_of(model))
    found = []
    params = jax.device_put(params) if config.evaluate.cost_lengths else params
    for length in config.evaluate.cost_lengths:
        task = config.task.with_length(length)
        batch = task.sample(jax.random.key(0), COST_ROWS, questions.data["test"])
        gradient = jax.jit(jax.grad(lambda p, b, task=task: mean_answer(task, decoder, p, b)[0]))
        compiled = gradient.lower(params, batch).compile()
        seconds = []
        for _ in range(6):
            begun = time.perf_counter()
            jax.block_until_ready(compiled(params, batch))
            seconds.append(time.perf_counter() - begun)
        memory: Any = compiled.memory_analysis()
        found.append(
            {
                "length": length,
                "milliseconds": round(1e3 * min(seconds[1:]) / len(batch.inputs), 4),
                "temporary_bytes": memory.temp_size_in_bytes / len(batch.inputs),
            }
        )
    return found
