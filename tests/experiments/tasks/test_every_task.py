"""The laws that every registered task passes; what is its own stands in the file of its name."""

import dataclasses
import doctest
import importlib.util
import pkgutil

import jax
import numpy as np
import pytest

import experiments.tasks
from experiments.tasks import NO_SOURCE, TASKS, UNASKED, Task
from tests.experiments.tasks.cases import ROWS, draw, sample

MODULES = {name: f"tests.experiments.tasks.test_{name}" for name in TASKS}
CASES = {
    name: importlib.import_module(module).CASE
    for name, module in MODULES.items()
    if importlib.util.find_spec(module)
}
each_task = pytest.mark.parametrize("name", CASES)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_read_a_second_time_by_its_definition(name):
    """Without this file the laws below know nothing to compare the task with."""
    assert name in CASES, f"expected a CASE in {MODULES[name].replace('.', '/')}.py"


def assert_same(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b)


def is_asked(task, batch):
    return batch.targets != UNASKED if task.num_classes else np.ones(batch.targets.shape, bool)


@each_task
def test_answers_are_those_of_the_definition(name):
    """Positions, answers and sources can be recomputed from the rows by the definition alone."""
    task = CASES[name].task
    batch = draw(task)
    asked = is_asked(task, batch)
    for i in range(500):
        found = zip(*(part[i][asked[i]].tolist() for part in batch[1:]), strict=True)
        assert sorted(found) == sorted(CASES[name].read(task, batch.inputs[i].tolist()))


@each_task
def test_batch_has_the_promised_shapes_types_and_ranges(name):
    task = CASES[name].task
    batch = draw(task)
    if task.vocab_size is None:
        assert hasattr(task, "num_features"), "expected num_features, F of real-valued inputs"
        assert batch.inputs.shape == (ROWS, task.length, task.num_features)
        assert batch.inputs.dtype == np.float32
    else:
        assert batch.inputs.shape == (ROWS, task.length)
        assert batch.inputs.dtype == np.int32
        assert batch.inputs.min() >= 0
        assert batch.inputs.max() < task.vocab_size
    for part in batch[1:]:
        is_number = part is batch.targets and task.num_classes is None
        assert part.dtype == (np.float32 if is_number else np.int32)
        assert part.shape == batch.positions.shape
    assert batch.positions.min() >= 0
    assert batch.positions.max() < task.length
    asked = is_asked(task, batch)
    for positions, in_use in zip(batch.positions, asked, strict=True):
        assert in_use.any()
        assert len(set(positions[in_use])) == in_use.sum()
    if task.num_classes:
        assert batch.targets[asked].min() >= 0
        assert batch.targets.max() < task.num_classes
    else:
        assert np.isfinite(batch.targets).all()
        assert task.tolerance > 0


@each_task
def test_sources_hold_the_answer_and_lie_where_the_model_may_look(name):
    """A source ends at or before its question, fits in the row and may show the answer itself."""
    task = CASES[name].task
    batch = draw(task)
    has_source = batch.sources != NO_SOURCE
    assert has_source.any() == CASES[name].has_sources
    assert not has_source[~is_asked(task, batch)].any()
    assert (batch.sources[has_source] >= task.source_width - 1).all()
    assert (batch.sources <= batch.positions).all()
    distances = np.where(has_source, batch.positions - batch.sources, NO_SOURCE)
    np.testing.assert_array_equal(batch.distances, distances)
    if CASES[name].answers_shown:
        shown = np.take_along_axis(batch.inputs, np.maximum(batch.sources, 0), axis=1)
        np.testing.assert_array_equal(shown[has_source], batch.targets[has_source])


@each_task
def test_floors_are_what_their_predictors_reach(name):
    """Accuracy and loss of every floor, against its predictor run on rows (4.5 standard errors)."""
    case = CASES[name]
    task, batch, data = case.task, draw(case.task), case.task.load("train")
    floors = task.floors(data)
    assert next(iter(floors)) == "chance"
    assert set(floors) == set(case.guesses)
    asked = is_asked(task, batch)
    for floor_name, floor in floors.items():
        assert 0 <= floor.accuracy <= 1
        assert floor.loss >= 0
        assert type(floor.accuracy) is type(floor.loss) is float
        guess = case.guesses[floor_name](task, batch, data)
        if task.num_classes:
            guess = np.broadcast_to(guess, (*batch.targets.shape, task.num_classes))
            right = guess.argmax(axis=2) == batch.targets
            target = np.where(asked, batch.targets, 0)[:, :, None]
            given = np.take_along_axis(guess, target, axis=2)[:, :, 0]
            loss = -np.log2(np.where(asked, given, 1.0))
        else:
            right = np.abs(guess - batch.targets) < task.tolerance
            loss = (guess - batch.targets) ** 2
        for measured, expected in ((right, floor.accuracy), (loss, floor.loss)):
            # Rows are independent, their answers need not be.
            excess = np.where(asked, measured - expected, 0.0).sum(axis=1)
            error = 4.5 * excess.std() / np.sqrt(ROWS) + 1e-5
            assert abs(excess.mean()) < error, (floor_name, measured[asked].mean(), expected)


@each_task
def test_randomness_comes_from_rng_alone(name):
    task = CASES[name].task
    assert_same(sample(task, jax.random.key(3), task.load("train")), draw(task, seed=3))
    assert not np.array_equal(draw(task, seed=3).inputs, draw(task, seed=4).inputs)
    assert len(np.unique(draw(task).inputs, axis=0)) > ROWS / 2


# Slow: every operation is compiled by itself. The examples in docstrings run eagerly too.
@pytest.mark.slow
@each_task
def test_rows_are_the_same_outside_jit(name):
    task = CASES[name].task
    rows = task.sample(jax.random.key(0), ROWS, task.load("train"))
    for eager, part in zip(rows, draw(task), strict=True):
        np.testing.assert_allclose(eager, part, rtol=1e-6)


@each_task
def test_rows_are_the_same_vmapped_over_seeds_and_under_strict_settings(name):
    """Neither vmap, nor 64-bit types, nor strict promotion changes a value or a type."""
    task = CASES[name].task
    rngs = jax.vmap(jax.random.key)(np.arange(2))
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        batches = jax.vmap(lambda rng, data: sample(task, rng, data), in_axes=(0, None))(
            rngs, task.load("train")
        )
    for seed in range(2):
        batch = jax.tree.map(lambda leaf, i=seed: leaf[i], batches)
        assert_same(batch, draw(task, seed=seed))
        assert [part.dtype for part in batch] == [part.dtype for part in draw(task)]


@each_task
def test_with_length_changes_the_length_and_nothing_else(name):
    """Back at the first length it is the first task; copied strings then fill their rows."""
    case = CASES[name]
    task, other = case.task, case.task.with_length(case.other_length)
    assert other.length == case.other_length
    data = other.load("train")
    rows = jax.eval_shape(lambda: other.sample(jax.random.key(0), 2, data))
    assert rows.inputs.shape[:2] == (2, other.length)
    assert type(other) is type(task)
    full = case.full or task
    assert other.with_length(task.length) == full, "expected the task, or CASE's full"
    assert task.with_length(task.length) == full
    with pytest.raises(ValueError, match=f"length is {case.bad_length}, expected"):
        task.with_length(case.bad_length)


@each_task
def test_tasks_are_values_that_fulfil_the_protocol(name):
    """Equal settings make equal, hashable, immutable tasks; every task has defaults."""
    task = TASKS[name]()
    assert isinstance(task, Task)
    assert isinstance(task, TASKS[name])
    assert hash(task) == hash(TASKS[name]())
    assert task == TASKS[name]()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(task, "length", 10)  # noqa: B010
    assert task.describe()
    assert "\n" not in task.describe()


@each_task
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_every_split_loads_once_and_gives_rows(name, split):
    task = CASES[name].task
    data = task.load(split)
    assert task.load(split) is data, "expected a loader that reads once (functools.cache)"
    assert jax.eval_shape(lambda: task.sample(jax.random.key(0), 2, data)).inputs.shape[0] == 2


@pytest.mark.parametrize(
    "module",
    [f"experiments.tasks.{m.name}" for m in pkgutil.iter_modules(experiments.tasks.__path__)],
)
def test_docstring_examples(module):
    """The examples print what they say, and every task has one."""
    result = doctest.testmod(importlib.import_module(module))
    assert result.failed == 0
    is_task = module.endswith(tuple(TASKS))
    assert result.attempted or not is_task, f"expected an example (>>>) in a docstring of {module}"


@pytest.mark.parametrize(
    ("task", "tokens", "text"),
    [
        (TASKS["repeated_text"](), [97, 10, 32], "a\n "),
        (TASKS["string_copy"](), [26, 0, 25, 27, 28], "$az|."),
        (TASKS["characters"](), [97, 10, 32], "a\n "),
        (TASKS["prefix_key"](), [26, 0, 25, 27], "$az|"),
    ],
)
def test_tokens_that_stand_for_something_are_spelled(task, tokens, text):
    assert "".join(map(task.spell, tokens)) == text
