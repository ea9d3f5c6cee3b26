"""ListOps: a nested expression of list operations on digits; at its end, say its value."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from experiments.tasks.list_ops_trees import OPERATORS, PADDING, Rows, draw_rows
from experiments.tasks.task import Batch, Floor, Split

NUM_DIGITS = 10
"""Digits, and answers, are 0..9."""
_SEEDS = {"train": 0, "valid": 1, "test": 2}
_TREES_AT_ONCE = 8192
_MOST_REFUSED = 200 * _TREES_AT_ONCE


@functools.lru_cache(maxsize=6)
def _load(task: "ListOps", split: Split) -> Rows:
    """The pool of a split; the same settings make the same rows on every machine."""
    num_rows = task.num_rows if split == "train" else task.num_held_out_rows
    rng = np.random.default_rng(_SEEDS[split])
    parts, found, grown = [], 0, 0
    while found < num_rows:
        rows = draw_rows(
            rng,
            _TREES_AT_ONCE,
            min_length=task.min_length,
            max_length=task.max_length,
            max_depth=task.max_depth,
            max_args=task.max_args,
        )
        parts.append(rows)
        found, grown = found + len(rows.values), grown + _TREES_AT_ONCE
        if not found and grown >= _MOST_REFUSED:
            raise ValueError(
                f"min_length is {task.min_length}, expected less: of {grown} expressions none had "
                f"{task.min_length} to {task.max_length} tokens with max_depth={task.max_depth} "
                f"and max_args={task.max_args}"
            )
    pool = Rows(*(np.concatenate(arrays)[:num_rows] for arrays in zip(*parts, strict=True)))
    for array in pool:
        array.setflags(write=False)
    return pool


@dataclasses.dataclass(frozen=True)
class ListOps:
    """The value of a nested expression, asked at its last bracket.

    Tokens: 0..9 are digits, 10..13 open the operators MIN, MAX, MED (median; of an even number of
    arguments the mean of the middle two, rounded down) and SM (sum modulo 10), 14 closes one, 15
    pads a row at its end. An expression grows from its root, at depth 1, downwards: a node above
    depth D is an operator with probability 1/4, at depth D never, and a uniform digit otherwise;
    an operator is uniform among the four and has 2..R arguments, uniformly. Only expressions of
    ``min_length`` to ``max_length`` tokens, brackets included, are kept. With n the tokens of a
    row that are not padding::

        asked at  n - 1        answer    the value, 0..9
        source    0            distance  n - 1

    The answer is written nowhere in the row and every token may bear on it. The source named is
    the root operator, the farthest token that always does.

    A step draws, with replacement, from a pool of rows that ``load`` makes, one pool for each
    split. One expression in twelve has a length in the default range, and each has another shape:
    growing fresh ones inside a jitted step, where shapes are fixed, would cost more than the step.

    References:
        Nangia and Bowman, ListOps (arXiv 1804.06028). The law and the default lengths are those
        of Long Range Arena (Tay et al., arXiv 2011.04006) in its published generator, where both
        limits of length are exclusive and the pool has 96,000 + 2,000 + 2,000 rows.

    Example:
        (MED 7 6 (MAX 8 5 7)) is the median of 7, 6 and 8; the padding is 15.

        >>> task = ListOps(min_length=6, max_length=12, max_depth=3, max_args=3, num_rows=8)
        >>> batch = task.sample(jax.random.key(0), 1, task.load("train"))
        >>> print(batch.inputs[0])
        [12  7  6 11  8  5  7 14 14 15 15 15]
        >>> for name in ("positions", "targets", "sources", "distances"):
        ...     print(name, getattr(batch, name)[0])
        positions [8]
        targets [7]
        sources [0]
        distances [8]
    """

    max_length: int = 2000
    """L, the tokens of a row, padding included."""
    min_length: int = 500
    """The fewest tokens of an expression; at least 4, an operator with two digits."""
    max_depth: int = 10
    """D, the depth of the deepest digits; at least 2, an operator and its arguments."""
    max_args: int = 10
    """R, the most arguments of an operator; at least 2."""
    num_rows: int = 16_384
    """The rows of the training pool."""
    num_held_out_rows: int = 4_096
    """The rows of the validation pool and of the test pool."""

    # Not annotated: constants of the task, not settings.
    vocab_size = PADDING + 1
    num_classes = NUM_DIGITS
    source_width = 1

    def __post_init__(self):
        """Refuse settings that no expression fulfils."""
        at_least = {"min_length": 4, "max_depth": 2, "max_args": 2}
        at_least |= {"num_rows": 1, "num_held_out_rows": 1}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least {least}")
        if self.max_length < self.min_length:
            raise ValueError(
                f"max_length is {self.max_length}, expected at least min_length={self.min_length}"
            )

    @property
    def length(self) -> int:
        """L, ``max_length``."""
        return self.max_length

    def with_length(self, length: int) -> "ListOps":
        """Expressions of at most ``length`` tokens, which is at least ``min_length``."""
        if length < self.min_length:
            raise ValueError(f"length is {length}, expected at least min_length={self.min_length}")
        return dataclasses.replace(self, max_length=length)

    def load(self, split: Split) -> Rows:
        """The pool of the split, made anew in every process.

        Raises:
            ValueError: expressions of the lengths asked for are too rare to be found.
        """
        return _load(self, split)

    def describe(self) -> str:
        """One line: what a row is."""
        return (
            f"ListOps: expressions of {self.min_length} to {self.max_length} tokens, up to "
            f"{self.max_args} arguments, {self.max_depth - 1} operators deep; at the end, the value"
        )

    def floors(self, data: Rows) -> dict[str, Floor]:
        """Always the most frequent value of ``data``; the most frequent one for the root operator.

        Both are the shares and entropies of ``data`` itself, so take a pool of thousands.
        """
        counts = np.zeros((len(OPERATORS), NUM_DIGITS), np.int64)
        root = np.asarray(data.tokens)[:, 0].astype(np.int64) - OPERATORS[0]
        np.add.at(counts, (root, np.asarray(data.values)), 1)
        known = [(row.sum() / counts.sum(), Floor.of_counts(row)) for row in counts if row.any()]
        return {
            "chance": Floor.of_counts(counts.sum(axis=0)),
            "root operator alone": Floor(
                accuracy=float(sum(share * floor.accuracy for share, floor in known)),
                loss=float(sum(share * floor.loss for share, floor in known)),
            ),
        }

    def sample(self, rng: PRNGKeyArray, batch_size: int, data: Any = ()) -> Batch:
        """``batch_size`` rows drawn from ``data`` with one answer each (A = 1)."""
        if not isinstance(data, Rows):
            raise ValueError(f"data is {type(data).__name__}, expected what load returns")
        index = jax.random.randint(rng, (batch_size,), 0, len(data.values), jnp.int32)
        return Batch(
            inputs=jnp.asarray(data.tokens)[index].astype(jnp.int32),
            positions=jnp.asarray(data.lengths)[index][:, None] - 1,
            targets=jnp.asarray(data.values)[index][:, None],
            sources=jnp.zeros((batch_size, 1), jnp.int32),
        )
