"""What the tests of one task and those of every task share: a case, and rows drawn once."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from tests.quick import quick_to_compile

ROWS = 4000
MIN_P = 1e-4
"""A distribution is refused below this p-value; the seeds are fixed, so it never flickers."""


class Case(NamedTuple):
    """What the tests of all tasks need to know of one."""

    task: Any
    """Small, and with sizes that are easily told apart."""
    read: Callable
    """(position, answer, source) of each answer, from the rows by the definition alone."""
    other_length: int
    """The shortest that the task allows, or any other."""
    bad_length: int
    guesses: Mapping[str, Callable]
    """Each floor's predictor: (task, batch, data) -> its distribution over classes, or a number,
    of a shape that broadcasts to that of the targets."""
    answers_shown: bool = True
    """Whether the source of every answer shows the answer itself."""
    has_sources: bool = True
    """Whether an answer has a source."""
    full: Any = None
    """The task of its own length whose rows are all full; the task itself if None."""


@functools.partial(jax.jit, static_argnums=0, compiler_options=quick_to_compile())
def sample(task, rng, data):
    return task.sample(rng, ROWS, data)


@functools.lru_cache
def draw(task, seed=0):
    """ROWS rows of the training split; each task is compiled once and drawn once a seed."""
    return jax.device_get(sample(task, jax.random.key(seed), task.load("train")))


def frequencies(tokens, num_tokens):
    """How often each token occurs in each row, as shares: [B, 1, num_tokens]."""
    return np.mean(tokens[:, :, None] == np.arange(num_tokens), axis=1)[:, None, :]


def uniform_over(classes, num_classes):
    """The distribution that is uniform on some of the classes."""
    return np.isin(np.arange(num_classes), classes) / len(classes)
