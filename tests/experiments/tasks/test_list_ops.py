"""ListOps: rows against a parser, and their law against a generator that recurses."""

import itertools

import numpy as np
import pytest
from scipy import stats

from experiments.tasks import ListOps
from tests.experiments.tasks.cases import MIN_P, Case, draw

OPERATORS = {10: min, 11: max, 12: lambda x: int(np.median(x)), 13: lambda x: sum(x) % 10}


def evaluate(tokens, task, depth=1):
    """The value of the expression that begins ``tokens``, which it is taken from."""
    head = tokens.pop(0)
    if head < 10:
        return head
    assert depth < task.max_depth
    arguments = []
    while tokens[0] != 14:
        arguments.append(evaluate(tokens, task, depth + 1))
    tokens.pop(0)
    assert 2 <= len(arguments) <= task.max_args
    return OPERATORS[head](arguments)


def read_list_ops(task, row):
    expression = [token for token in row if token != 15]
    n = len(expression)
    assert task.min_length <= n <= task.max_length == len(row)
    assert row == expression + [15] * (len(row) - n)
    value = evaluate(expression, task)
    assert not expression
    return [(n - 1, value, 0)]


def grow(rng, task, depth=1):
    """The published generator, restated: a tree as tokens."""
    if depth == task.max_depth or rng.random() > 0.25:
        return [int(rng.integers(10))]
    parts = [grow(rng, task, depth + 1) for _ in range(rng.integers(2, task.max_args + 1))]
    return [int(rng.integers(10, 14)), *itertools.chain(*parts), 14]


def guess_most_frequent(task, batch, data):
    return np.bincount(data.values, minlength=10) / len(data.values)


def guess_by_root(task, batch, data):
    table = np.stack(
        [np.bincount(data.values[data.tokens[:, 0] == op], minlength=10) for op in OPERATORS]
    )
    return (table / table.sum(axis=1, keepdims=True))[batch.inputs[:, :1] - 10]


CASE = Case(
    ListOps(
        max_length=31, min_length=7, max_depth=4, max_args=4, num_rows=3500, num_held_out_rows=500
    ),
    read_list_ops,
    other_length=7,
    bad_length=6,
    guesses={"chance": guess_most_frequent, "root operator alone": guess_by_root},
    answers_shown=False,
)


def assert_same_law(one, other):
    values = np.unique([*one, *other])
    table = [[np.sum(np.asarray(sample) == value) for value in values] for sample in (one, other)]
    rare = np.sum(table, axis=0) < 10
    table = np.column_stack([np.array(table)[:, ~rare], np.sum(np.array(table)[:, rare], axis=1)])
    table = table[:, table.sum(axis=0) > 0]
    assert stats.chi2_contingency(table)[1] > MIN_P  # pyright: ignore


def test_expressions_have_the_law_of_the_published_generator():
    """Lengths, values, root operators, second tokens and depths are distributed alike."""
    rng, task, pool = np.random.default_rng(0), CASE.task, CASE.task.load("train")
    grown = []
    while len(grown) < 2000:
        tokens = grow(rng, task)
        if task.min_length <= len(tokens) <= task.max_length:
            grown.append(tokens)
    found = [tokens[:n].tolist() for tokens, n in zip(pool.tokens, pool.lengths, strict=True)]

    def depth(tokens):
        return max(np.cumsum([(10 <= token < 14) - (token == 14) for token in tokens]))

    def brackets(tokens):
        return tokens.count(14)

    for feature in (len, depth, brackets, lambda t: t[0], lambda t: t[1], lambda t: t[-2]):
        assert_same_law([feature(t) for t in grown], [feature(t) for t in found])
    assert_same_law([evaluate(list(t), task) for t in grown], pool.values)


def test_rows_are_drawn_evenly_from_the_pool():
    task = ListOps(max_length=20, min_length=4, num_rows=20)
    pool, batch = task.load("train"), draw(task)
    counts = [(batch.inputs == row).all(axis=1).sum() for row in np.unique(pool.tokens, axis=0)]
    times = np.unique(pool.tokens, axis=0, return_counts=True)[1]
    assert stats.chisquare(counts, 200 * times).pvalue > MIN_P


def test_pools_differ_and_have_the_size_asked_for():
    sizes = [(split, len(CASE.task.load(split).values)) for split in ("train", "valid", "test")]
    assert sizes == [("train", 3500), ("valid", 500), ("test", 500)]
    valid, test = CASE.task.load("valid").tokens, CASE.task.load("test").tokens
    assert (valid != test).any(axis=1).mean() > 0.99


@pytest.mark.slow
def test_floors_of_long_rows_are_those_published():
    """Long Range Arena: the majority class scores 17.3 %, the root operator 37.1 %."""
    task = ListOps()
    floors = task.floors(task.load("train"))
    assert floors["chance"].accuracy == pytest.approx(0.173, abs=0.015)
    assert floors["root operator alone"].accuracy == pytest.approx(0.371, abs=0.015)


def test_lengths_that_do_not_occur_are_refused():
    task = ListOps(max_length=40, min_length=30, max_depth=2, max_args=3)
    with pytest.raises(ValueError, match=r"min_length is 30, expected less: of .* none had 30 to"):
        task.load("train")


def test_list_ops_asks_for_its_data():
    with pytest.raises(ValueError, match="expected what load returns"):
        ListOps().sample(None, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_length": 3}, "min_length is 3, expected at least 4"),
        ({"max_depth": 1}, "max_depth is 1, expected at least 2"),
        ({"max_args": 1}, "max_args is 1, expected at least 2"),
        ({"num_rows": 0}, "num_rows is 0, expected at least 1"),
        ({"num_held_out_rows": 0}, "num_held_out_rows is 0, expected at least 1"),
        ({"max_length": 499}, "max_length is 499, expected at least min_length=500"),
    ],
)
def test_list_ops_refuses_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        ListOps(**settings)
