"""Random ListOps expressions as token rows, many at a time.

Trees grow breadth-first: a level is one flat array over the nodes of all trees, in reading order,
so that the arguments of an operator lie next to each other in the level below. Shapes come first
and tokens only for the trees whose length is wanted, since most trees are refused.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MIN, MAX, MED, SM = OPERATORS = (10, 11, 12, 13)
"""Operators and opening bracket in one: least, greatest, median, sum modulo 10."""
CLOSE = 14
"""The closing bracket of any operator."""
PADDING = 15
"""Fills a row up."""
OPERATOR_SHARE = 0.25
"""The probability that an argument is an operator, and not a digit."""


class Level(NamedTuple):
    """The nodes of one depth, of all trees."""

    tree: NDArray[np.int64]
    """To which tree each node belongs, in ascending order."""
    arity: NDArray[np.int64]
    """Its number of arguments; 0 for a digit."""


class Rows(NamedTuple):
    """M expressions with their values; what ``ListOps.sample`` draws from."""

    tokens: NDArray[np.uint8]
    """The expressions, padded at their end, uint8 ``[M, L]``."""
    lengths: NDArray[np.int32]
    """Tokens of each without the padding, int32 ``[M]``."""
    values: NDArray[np.int32]
    """What each comes to, int32 ``[M]`` in 0..9."""


def draw_rows(
    rng: np.random.Generator,
    num_trees: int,
    *,
    min_length: int,
    max_length: int,
    max_depth: int,
    max_args: int,
) -> Rows:
    """Returns those of ``num_trees`` random trees that have a length in range, as rows."""
    levels, lengths = _grow(rng, num_trees, max_length, max_depth, max_args)
    wanted = (lengths >= min_length) & (lengths <= max_length)
    renumbered = np.cumsum(wanted) - 1
    kept = [
        Level(renumbered[level.tree[wanted[level.tree]]], level.arity[wanted[level.tree]])
        for level in levels
    ]
    tokens, values = _write(rng, kept, int(wanted.sum()), max_length)
    return Rows(tokens, lengths[wanted].astype(np.int32), values.astype(np.int32))


def _grow(
    rng: np.random.Generator, num_trees: int, max_length: int, max_depth: int, max_args: int
) -> tuple[list[Level], NDArray[np.int64]]:
    """Levels of trees that begin with an operator, and the trees' lengths in tokens.

    A tree stops growing once it is too long; its length is then only known to be too great.
    """
    level = Level(np.arange(num_trees), rng.integers(2, max_args + 1, num_trees))
    levels, lengths = [level], np.full(num_trees, 2)
    for depth in range(2, max_depth + 1):
        tree = np.repeat(level.tree, level.arity)
        is_operator = (rng.random(tree.size) < OPERATOR_SHARE) & (depth < max_depth)
        lengths += np.bincount(tree[is_operator], minlength=num_trees)
        lengths += np.bincount(tree, minlength=num_trees)
        arity = np.where(is_operator, rng.integers(2, max_args + 1, tree.size), 0)
        fits = lengths[tree] <= max_length
        level = Level(tree[fits], arity[fits])
        levels.append(level)
    return levels, lengths


def _write(
    rng: np.random.Generator, levels: list[Level], num_trees: int, max_length: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Tokens for whole trees, and the trees' values."""
    marks = [
        np.where(
            level.arity > 0,
            rng.choice(OPERATORS, level.arity.size),
            rng.integers(0, 10, level.arity.size),
        )
        for level in levels
    ]

    # Upwards: how many tokens each node takes, and what it comes to.
    sizes = [np.ones(level.arity.size, np.int64) for level in levels]
    values = [mark.copy() for mark in marks]
    for depth in reversed(range(len(levels) - 1)):
        is_operator = levels[depth].arity > 0
        if is_operator.any():
            arity = levels[depth].arity[is_operator]
            first = np.cumsum(arity) - arity
            sizes[depth][is_operator] = 2 + np.add.reduceat(sizes[depth + 1], first)
            values[depth][is_operator] = _apply(
                marks[depth][is_operator], values[depth + 1], arity, first
            )

    # Downwards: where each node begins, in all rows laid end to end.
    tokens = np.full(num_trees * max_length, PADDING, np.uint8)
    begins = np.arange(num_trees) * max_length
    for depth, level in enumerate(levels):
        tokens[begins] = marks[depth]
        is_operator = level.arity > 0
        tokens[(begins + sizes[depth] - 1)[is_operator]] = CLOSE
        if depth + 1 < len(levels):
            arity = level.arity[is_operator]
            before = np.cumsum(sizes[depth + 1]) - sizes[depth + 1]
            first = np.cumsum(arity) - arity
            begins = before + np.repeat(begins[is_operator] + 1 - before[first], arity)
    return tokens.reshape(num_trees, max_length), values[0]


def _apply(
    operators: NDArray[np.int64],
    arguments: NDArray[np.int64],
    arity: NDArray[np.int64],
    first: NDArray[np.int64],
) -> NDArray[np.int64]:
    """What each operator makes of its arguments, ``arity`` many from ``first`` on."""
    owner = np.repeat(np.arange(arity.size), arity)
    ordered = arguments[np.lexsort((arguments, owner))]
    # Of an even number of arguments the median is the mean of the middle two, rounded down.
    median = (ordered[first + (arity - 1) // 2] + ordered[first + arity // 2]) // 2
    total = np.add.reduceat(arguments, first)
    results = {MIN: ordered[first], MAX: ordered[first + arity - 1], MED: median, SM: total % 10}
    return np.select([operators == operator for operator in results], list(results.values()))
