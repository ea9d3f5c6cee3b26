"""Decoders whose parameters are drawn by NumPy, all of them: none hides behind a one or a zero."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.config import ModelConfig
from experiments.models.decoder import Decoder
from tests.attn.cases import jit

BATCH, LENGTH, VOCABULARY, FEATURES, LONGEST = 2, 13, 11, 5, 100
SMALL = ModelConfig(width=12, num_layers=1, num_heads=3, window=4)


class Model(NamedTuple):
    params: Any
    apply: Any
    """Jitted: params, inputs [B, L], blocked or None -> answers [B, L, C] asked everywhere."""
    gradient: Any
    """Not jitted: params, tokens -> what the sum of all classes at a position, with ones of either
    sign as weights, gains by each embedded input, [answer L, B, input L, D]."""


@functools.cache
def model(config: ModelConfig, vocabulary: int | None = VOCABULARY, classes=VOCABULARY) -> Model:
    decoder = Decoder(config, vocabulary, classes, LONGEST)
    rng = np.random.default_rng(0)
    inputs = jax.eval_shape(lambda: jnp.asarray(draw_inputs(rng, vocabulary)))
    asked = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
    shapes = jax.eval_shape(decoder.init, jax.random.key(0), inputs, asked)
    assert set(shapes) == {"params"}
    params = jax.tree.map(lambda x: rng.normal(0, 0.6, x.shape).astype(x.dtype), shapes["params"])

    def answers(variables, x, blocked=None):
        everywhere = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        return decoder.apply(variables, x, everywhere, blocked)

    def gradient(params, x):
        def perturbed(embedded):
            return answers({"params": params, "perturbations": {"embedded": embedded}}, x)

        result, pull = jax.vjp(perturbed, jnp.zeros((*x.shape[:2], config.width)))
        signs = np.random.default_rng(1).choice([-1.0, 1.0], result.shape).astype(np.float32)
        at_one_answer = jnp.eye(x.shape[1])[:, None, :, None] * signs
        return jax.vmap(lambda g: pull(g)[0])(at_one_answer)

    apply = jit(lambda params, x, blocked=None: answers({"params": params}, x, blocked))
    return Model(params, apply, gradient)


def draw_inputs(rng, vocabulary: int | None = VOCABULARY, length: int = LENGTH):
    if vocabulary is None:
        return rng.normal(size=(BATCH, length, FEATURES)).astype(np.float32)
    return rng.integers(0, vocabulary, (BATCH, length)).astype(np.int32)


def changed(tokens, position: int):
    """The same rows with another token at one position."""
    tokens = tokens.copy()
    tokens[:, position] = (tokens[:, position] + 1) % VOCABULARY
    return tokens


def differs(left, right):
    """Where answers [B, L, C] are not bitwise the same in every row and class: bool [L]."""
    same = np.asarray(left).view(np.uint32) == np.asarray(right).view(np.uint32)
    return ~same.all(axis=(0, 2))


def draw_mixer(mixer: type, config: ModelConfig, length: int, seed: int = 0):
    """Parameters, input [B, L, D] and jitted output of one mixer, in the default float."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(BATCH, length, config.width))
    shapes = jax.eval_shape(mixer(config).init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.6, leaf.shape), shapes)
    return params, x, np.asarray(jit(mixer(config).apply)({"params": params}, x))
