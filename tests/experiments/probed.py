"""Small models and rows that the tests of probes look into."""

import dataclasses
import functools

import jax
import numpy as np

from experiments import probes
from experiments.config import Config, EvaluateConfig, ModelConfig
from experiments.evaluate import Questions
from experiments.models.decoder import build_decoder
from experiments.tasks import (
    NO_SOURCE,
    UNASKED,
    Adding,
    Induction,
    NoisyDigits,
    Recall,
    RepeatedText,
    StringCopy,
)

RECALL = Config(
    task=Recall(vocab_size=16, length=16, num_pairs=2),
    models=("attention", "window", "gru"),
    model=ModelConfig(width=8, num_layers=1, num_heads=2, window=5, short_convolution=0),
    evaluate=EvaluateConfig(num_answers=8, batch_size=4, num_probe_rows=4),
)
CARRIED = dataclasses.replace(RECALL.model, short_convolution=3)
DIGITS = dataclasses.replace(RECALL, task=NoisyDigits(length=11), model=CARRIED)
TEXT = dataclasses.replace(
    RECALL,
    task=RepeatedText(num_characters=12),
    model=dataclasses.replace(RECALL.model, num_layers=2),
)
INDUCTION = dataclasses.replace(RECALL, task=Induction(length=12), model=CARRIED)
COPY = dataclasses.replace(RECALL, task=StringCopy(max_characters=5))
ADDING = dataclasses.replace(RECALL, task=Adding(length=12))
CONFIGS = {
    "recall": RECALL,
    "digits": DIGITS,
    "text": TEXT,
    "induction": INDUCTION,
    "copy": COPY,
    "adding": ADDING,
}


@functools.cache
def questions_of(config):
    data = () if config not in (DIGITS, TEXT) else config.task.load("test")
    if config is TEXT:
        data = np.arange(97, 120).astype(np.uint8)
    return Questions(config, {"test": data})


@functools.cache
def drawn(config):
    """Rows to look at; those of strings are of different lengths."""
    if config is COPY:
        return jax.device_get(jax.jit(config.task.sample, static_argnums=1)(jax.random.key(3), 4))
    return questions_of(config).first(config.task.length, config.evaluate.num_probe_rows)


@functools.cache
def draw_params(config, model, seed=1):
    """Parameters drawn by NumPy."""
    rng = np.random.default_rng(seed)
    decoder = build_decoder(config.task, config.model_of(model))
    batch = drawn(config)
    shapes = jax.eval_shape(decoder.init, jax.random.key(0), batch.inputs, batch.positions)
    return jax.tree.map(lambda x: rng.normal(0, 0.6, x.shape).astype(x.dtype), shapes["params"])


def expected_spans(config):
    """Row, answer, question and places of every answer with a source."""
    batch, carried = drawn(config), max(config.model.short_convolution - 1, 0)
    for row, answer in np.ndindex(batch.targets.shape):
        position, source = batch.positions[row, answer], batch.sources[row, answer]
        if source != NO_SOURCE and batch.targets[row, answer] != UNASKED:
            first = source - config.task.source_width + 1
            places = [p for p in range(first, source + carried + 1) if p <= position]
            yield row, answer, position, places


@functools.cache
def reach_of(config, model):
    trained, initial = (draw_params(config, model, seed) for seed in (1, 2))
    spans = probes.spans_of(config, model, drawn(config))
    reach = probes.gradient_reach(config, model, drawn(config), spans)
    return {"initial": reach(initial), "trained": reach(trained)}
