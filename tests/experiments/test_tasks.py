"""Every task against an independent reading of its rows, and what all tasks have in common."""

import dataclasses
import doctest
import functools
import importlib
import itertools
import math
import pkgutil
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from scipy import stats

import experiments.tasks
from experiments.tasks import (
    NO_SOURCE,
    TASKS,
    Induction,
    NoisyDigits,
    Recall,
    RepeatedText,
    Task,
    noisy_digits,
    repeated_text,
)

ROWS = 4000
MIN_P = 1e-4
"""A distribution is refused below this p-value; the seeds are fixed, so it never flickers."""


@functools.partial(jax.jit, static_argnums=0)
def sample(task, rng, data):
    return task.sample(rng, ROWS, data)


@functools.lru_cache
def draw(task, seed=0):
    """ROWS rows of the training split; each task is compiled once and drawn once a seed."""
    return jax.device_get(sample(task, jax.random.key(seed), task.load("train")))


def assert_same(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b)


def read_induction(task, row):
    first, last = [t for t, token in enumerate(row) if token == 16]
    assert last == task.length - 1
    return [(last, row[first + 1], first + 1)]


def read_recall(task, row):
    opening = 2 * task.num_pairs
    place = {row[i]: i for i in range(0, opening, 2)}
    value = {row[i]: row[i + 1] for i in range(0, opening, 2)}
    half = task.vocab_size // 2
    assert len(place) == len(set(value.values())) == task.num_pairs
    assert all(1 <= k < half for k in value)
    assert all(half <= v < task.vocab_size for v in value.values())
    answers = [(t, value[row[t]], place[row[t]] + 1) for t in range(opening, len(row)) if row[t]]
    assert len(answers) == len({row[t] for t, _, _ in answers}) == task.num_pairs
    assert all(t % 2 == 0 for t, _, _ in answers)
    return answers


def read_repeated_text(task, row):
    n = task.num_characters
    text = row[:n]
    assert row[n:] == text[:-1]
    answers = [(t, text[t + 1], -1) for t in range(n - 1)]
    return answers + [(n - 1 + i, text[i], i) for i in range(n)]


def read_noisy_digits(task, row):
    data = task.load("train")
    (match,) = np.flatnonzero((data.images == np.asarray(row)[:8]).all(axis=(1, 2)))
    return [(task.length - 1, data.labels[match], 7)]


class Case(NamedTuple):
    """What the tests of all tasks need to know of one."""

    task: Any
    """Small, and with sizes that are easily told apart."""
    read: Callable
    """(position, answer, source) of each answer, from the rows by the definition alone."""
    other_length: int
    """The shortest that the task allows, or any other."""
    bad_length: int


CASES = {
    "repeated_text": Case(RepeatedText(num_characters=7), read_repeated_text, 3, 20),
    "noisy_digits": Case(NoisyDigits(length=11), read_noisy_digits, 8, 7),
    "recall": Case(Recall(vocab_size=23, length=26, num_pairs=5), read_recall, 20, 27),
    "induction": Case(Induction(length=13), read_induction, 3, 2),
}
each_task = pytest.mark.parametrize("name", TASKS)


@each_task
def test_answers_are_those_of_the_definition(name):
    """Positions, answers and sources can be recomputed from the rows by the definition alone."""
    task = CASES[name].task
    batch = [part[:500].tolist() for part in draw(task)]
    for row, *found in zip(*batch, strict=True):
        expected = CASES[name].read(task, row)
        assert sorted(zip(*found, strict=True)) == sorted(expected)


@each_task
def test_batch_has_the_promised_shapes_types_and_ranges(name):
    task = CASES[name].task
    batch = draw(task)
    if task.vocab_size is None:
        assert batch.inputs.shape == (ROWS, task.length, task.num_features)
        assert batch.inputs.dtype == np.float32
    else:
        assert batch.inputs.shape == (ROWS, task.length)
        assert batch.inputs.dtype == np.int32
        assert batch.inputs.min() >= 0
        assert batch.inputs.max() < task.vocab_size
    for part in batch[1:]:
        assert part.dtype == np.int32
        assert part.shape == batch.positions.shape
    assert batch.positions.min() >= 0
    assert batch.positions.max() < task.length
    assert all(len(set(row)) == len(row) for row in batch.positions.tolist())
    assert batch.targets.min() >= 0
    assert batch.targets.max() < task.num_classes


@each_task
def test_sources_hold_the_answer_and_lie_where_the_model_may_look(name):
    """A source ends at or before its question, fits in the row and shows the answer itself."""
    task = CASES[name].task
    batch = draw(task)
    has_source = batch.sources != NO_SOURCE
    assert has_source.any()
    assert (batch.sources[has_source] >= task.source_width - 1).all()
    assert (batch.sources <= batch.positions).all()
    distances = np.where(has_source, batch.positions - batch.sources, NO_SOURCE)
    np.testing.assert_array_equal(batch.distances, distances)
    if task.vocab_size is not None:
        shown = np.take_along_axis(batch.inputs, np.maximum(batch.sources, 0), axis=1)
        np.testing.assert_array_equal(shown[has_source], batch.targets[has_source])


@each_task
def test_randomness_comes_from_rng_alone(name):
    task = CASES[name].task
    assert_same(sample(task, jax.random.key(3), task.load("train")), draw(task, seed=3))
    assert not np.array_equal(draw(task, seed=3).inputs, draw(task, seed=4).inputs)
    assert len(np.unique(draw(task).inputs, axis=0)) > ROWS / 2


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
    task, _, length, bad_length = CASES[name]
    other = task.with_length(length)
    assert other.length == length
    data = other.load("train")
    rows = jax.eval_shape(lambda: other.sample(jax.random.key(0), 2, data))
    assert rows.inputs.shape[:2] == (2, other.length)
    assert type(other) is type(task)
    assert other.with_length(task.length) == task
    with pytest.raises(ValueError, match=f"length is {bad_length}, expected"):
        task.with_length(bad_length)


@each_task
def test_tasks_are_values_that_fulfil_the_protocol(name):
    """Equal settings make equal, hashable, immutable tasks; every task has defaults."""
    task = TASKS[name]()
    assert isinstance(task, Task)
    assert isinstance(task, TASKS[name])
    assert hash(task) == hash(TASKS[name]())
    assert task == TASKS[name]()
    assert task.load("train") is task.load("train")
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(task, "length", 10)  # noqa: B010
    assert task.describe()
    assert "\n" not in task.describe()


@pytest.mark.parametrize(
    "module",
    [f"experiments.tasks.{m.name}" for m in pkgutil.iter_modules(experiments.tasks.__path__)],
)
def test_docstring_examples(module):
    """The examples print what they say, and every task has one."""
    result = doctest.testmod(importlib.import_module(module))
    assert result.failed == 0
    assert result.attempted or not module.endswith(tuple(TASKS))


def test_induction_places_the_first_trigger_uniformly():
    sources = draw(CASES["induction"].task).sources[:, 0]
    counts = np.bincount(sources - 1, minlength=11)
    assert len(counts) == 11
    assert stats.chisquare(counts).pvalue > MIN_P


def test_induction_tokens_are_uniform_and_leave_the_trigger_out():
    batch = draw(CASES["induction"].task)
    counts = np.bincount(batch.inputs.ravel(), minlength=17)
    assert counts[16] == 2 * ROWS
    assert stats.chisquare(counts[:16]).pvalue > MIN_P
    assert stats.chisquare(np.bincount(batch.targets[:, 0], minlength=16)).pvalue > MIN_P


def test_induction_answer_is_told_by_no_token_but_its_source():
    batch = draw(CASES["induction"].task)
    for place in range(12):
        elsewhere = (batch.sources != place)[:, 0] & (batch.inputs[:, place] != 16)
        same = batch.inputs[elsewhere, place] == batch.targets[elsewhere, 0]
        assert stats.binomtest(int(same.sum()), same.size, 1 / 16).pvalue > MIN_P


@pytest.mark.parametrize("slot_power", [1.0, 0.01])
def test_recall_draws_slots_one_after_another_without_replacement(slot_power):
    """Pair 0 has slot x with p ~ x^(a-1), pair 1 the same among those that are left."""
    task = Recall(vocab_size=8, length=14, num_pairs=2, slot_power=slot_power)
    slots = (draw(task).positions - 4) // 2
    assert (slots[:, 0] != slots[:, 1]).all()
    p = np.arange(1, 6) ** (slot_power - 1)
    p /= p.sum()
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    counts = Counter(map(tuple, slots.tolist()))
    observed = [counts[pair] for pair in pairs]
    expected = [ROWS * p[i] * p[j] / (1 - p[i]) for i, j in pairs]
    assert stats.chisquare(observed, expected).pvalue > MIN_P


def test_recall_draws_keys_and_values_uniformly():
    inputs = draw(CASES["recall"].task).inputs
    for pair in range(5):
        keys, values = inputs[:, 2 * pair], inputs[:, 2 * pair + 1]
        assert stats.chisquare(np.bincount(keys, minlength=11)[1:]).pvalue > MIN_P
        assert stats.chisquare(np.bincount(values, minlength=23)[11:]).pvalue > MIN_P


def test_recall_draws_keys_values_and_slots_independently():
    batch = draw(CASES["recall"].task)
    drawn = (batch.inputs[:, 0], batch.targets[:, 0], batch.positions[:, 0])
    for one, other in itertools.combinations(drawn, 2):
        table = stats.contingency.crosstab(one, other).count
        p_value: Any = stats.chi2_contingency(table)[1]
        assert p_value > MIN_P


def test_recall_may_use_every_key_and_every_slot():
    """The tightest row has all keys of the vocabulary and a query in every slot."""
    task = Recall(vocab_size=8, length=12, num_pairs=3)
    batch = draw(task)
    np.testing.assert_array_equal(np.sort(batch.positions), np.tile([6, 8, 10], (ROWS, 1)))
    np.testing.assert_array_equal(np.sort(batch.inputs[:, :6:2]), np.tile([1, 2, 3], (ROWS, 1)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_pairs": 0}, "num_pairs is 0, expected at least 1"),
        ({"vocab_size": 17}, "vocab_size is 17, expected at least 18"),
        ({"length": 65}, "length is 65, expected an even number of at least 32"),
        ({"length": 30}, "length is 30, expected an even number of at least 32"),
        ({"slot_power": 0.0}, "slot_power is 0.0, expected a positive number"),
        ({"slot_power": math.inf}, "slot_power is inf"),
        ({"slot_power": math.nan}, "slot_power is nan"),
    ],
)
def test_recall_refuses_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Recall(**settings)


def test_chance_of_the_synthetic_tasks_is_that_of_the_definition():
    """Measured: always guess one answer that the rest of the row does not rule out."""
    assert Induction().chance() == (1 / 16, 4.0)
    assert Recall().chance() == pytest.approx((1 / 121, math.log2(121)))
    task = CASES["recall"].task
    targets = draw(task).targets.tolist()
    guesses = [min(set(range(11, 23)) - set(answers[1:])) for answers in targets]
    right = sum(answers[0] == guess for answers, guess in zip(targets, guesses, strict=True))
    assert task.chance().accuracy == 1 / 8
    assert stats.binomtest(right, ROWS, 1 / 8).pvalue > MIN_P


def test_chance_of_the_real_tasks_is_that_of_the_data():
    text = np.frombuffer(b"aaaabbcd", np.uint8)
    assert RepeatedText().chance(text) == pytest.approx((0.5, 1.75))
    assert RepeatedText().chance(np.full(9, 3, np.uint8)) == (1.0, 0.0)
    labels = np.array([4, 4, 9, 0], np.int32)
    digits = noisy_digits.Digits(np.zeros((4, 8, 8), np.float32), labels)
    assert NoisyDigits().chance(digits) == pytest.approx((0.5, 1.5))


def test_digits_splits_are_disjoint_stratified_and_complete():
    from sklearn.datasets import load_digits

    train, test = NoisyDigits().load("train"), NoisyDigits().load("test")
    pixels, labels = load_digits(return_X_y=True)
    found = np.concatenate([train.labels, test.labels])
    mean, std = (getattr(train.images.astype(np.float64), m)() for m in ("mean", "std"))
    assert (mean, std) == pytest.approx((0, 1), abs=1e-5)
    both = np.concatenate([train.images, test.images]).reshape(1797, 64)
    restored = np.round((both - both.min()) / (both.max() - both.min()) * 16)
    assert Counter(map(tuple, np.column_stack([restored, found]))) == Counter(
        map(tuple, np.column_stack([pixels, labels]))
    )
    assert not set(map(bytes, train.images)) & set(map(bytes, test.images))
    share = np.bincount(test.labels) / np.bincount(found)
    np.testing.assert_allclose(share, 0.2, atol=0.006)


def test_digits_are_drawn_evenly():
    task = CASES["noisy_digits"].task
    share = np.bincount(task.load("train").labels) / len(task.load("train").labels)
    assert stats.chisquare(np.bincount(draw(task).targets[:, 0]), ROWS * share).pvalue > MIN_P


def test_noise_is_standard_normal_and_independent_of_all_else():
    batch = draw(CASES["noisy_digits"].task)
    noise = batch.inputs[:, 8:].reshape(ROWS, 24)
    assert stats.kstest(noise.ravel(), "norm").pvalue > MIN_P
    everything = np.column_stack([noise, np.eye(10)[batch.targets[:, 0]]])
    correlation = np.asarray(np.corrcoef(everything, rowvar=False))[:24]
    correlation[:, :24] -= np.eye(24)
    assert np.abs(correlation).max() < 6 / np.sqrt(ROWS)


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    noisy_digits._read.cache_clear()
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        noisy_digits._read()


def test_digits_ask_for_their_data():
    with pytest.raises(ValueError, match="expected what load returns"):
        NoisyDigits().sample(jax.random.key(0), 1)


def write(folder, **texts):
    for name, text in texts.items():
        (folder / name).write_bytes(text)
    return str(folder)


def text_of(data):
    return data.tobytes().decode("ascii")


def test_text_windows_start_anywhere_uniformly():
    data = np.arange(12, dtype=np.uint8)
    batch = sample(RepeatedText(num_characters=4), jax.random.key(0), data)
    counts = np.bincount(np.asarray(batch.inputs[:, 0]), minlength=9)
    assert len(counts) == 9
    assert stats.chisquare(counts).pvalue > MIN_P


def test_text_is_asked_at_every_position_for_the_next_character():
    batch = draw(CASES["repeated_text"].task)
    np.testing.assert_array_equal(batch.targets[:, :-1], batch.inputs[:, 1:])
    np.testing.assert_array_equal(batch.distances[:, 6:], 6)
    np.testing.assert_array_equal(batch.distances[:, :6], NO_SOURCE)


def test_text_of_one_file_holds_out_its_last_tenth(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"0123456789abcdefghij")
    for path in (tmp_path / "a.txt", tmp_path):
        task = RepeatedText(num_characters=2, path=str(path))
        assert text_of(task.load("train")) == "0123456789abcdefgh"
        assert text_of(task.load("test")) == "ij"


def test_text_of_a_folder_holds_out_every_tenth_file(tmp_path):
    letters = "abcdefghijklm"
    path = write(tmp_path, **{letter: 2 * letter.encode() for letter in letters})
    task = RepeatedText(num_characters=2, path=path)
    assert text_of(task.load("test")) == "aakk"
    assert text_of(task.load("train")) == "bbccddeeffgghhiijjllmm"
    assert "13 files, 26 characters, sha256 " in task.describe()


def test_text_files_are_found_in_subfolders_and_told_from_others(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    write(tmp_path, image=b"\x89PNG\0\0", empty=b"")
    write(tmp_path, **{".dotfile": b"secret", "z": b"last"})
    write(tmp_path / ".hidden", x=b"hidden")
    write(tmp_path / "deep" / "er", y=b"first")
    task = RepeatedText(num_characters=2, path=str(tmp_path))
    assert (text_of(task.load("test")), text_of(task.load("train"))) == ("first", "last")


def test_text_outside_ascii_becomes_substitutes(tmp_path):
    """One code for a character that is not ASCII and for bytes that are not UTF-8."""
    (tmp_path / "a").write_bytes("naïve €🙂\r\n".encode() + b"\xff\x7fabcdefghi")
    data = RepeatedText(num_characters=2, path=str(tmp_path / "a")).load("train")
    assert text_of(data)[:11] == "na\x1ave \x1a\x1a\n\x1a\x7f"


def test_text_hash_depends_on_the_text_alone(tmp_path):
    def digest(text, folder):
        (tmp_path / folder).mkdir()
        path = write(tmp_path / folder, a=text)
        return RepeatedText(path=path).describe().split("sha256 ")[1]

    first = digest(b"some text", "one")
    assert len(first.rstrip(")")) == 12
    assert first == digest(b"some text", "two") != digest(b"some tent", "three")


def test_standard_library_is_the_default_text():
    task = RepeatedText()
    train, test = task.load("train"), task.load("test")
    assert train.dtype == np.uint8
    assert train.max() < 128
    assert "def __init__(self" in text_of(train)
    assert test.size > 50_000
    assert "the standard library of Python" in task.describe()


def test_missing_standard_library_sources_name_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(repeated_text.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(FileNotFoundError, match=r"holds 0 \*\.py files .*--task\.path"):
        repeated_text._find_files("")


def test_text_errors_name_the_field(tmp_path):
    with pytest.raises(ValueError, match="num_characters is 1, expected at least 2"):
        RepeatedText(num_characters=1)
    with pytest.raises(FileNotFoundError, match=r"path is .*absent.*: no such path"):
        RepeatedText(path=str(tmp_path / "absent")).load("train")
    with pytest.raises(ValueError, match=r"path is .*: no text found"):
        RepeatedText(path=str(tmp_path)).load("train")
    (tmp_path / "binary").write_bytes(b"\0\1\2")
    with pytest.raises(ValueError, match=r"path is .*: no text found"):
        RepeatedText(path=str(tmp_path / "binary")).load("train")
    (tmp_path / "short").write_bytes(b"x" * 100)
    task = RepeatedText(num_characters=11, path=str(tmp_path / "short"))
    assert task.load("train").size == 90
    with pytest.raises(ValueError, match=r"num_characters is 11, but the test split .* 10 char"):
        task.load("test")
    with pytest.raises(ValueError, match=r"num_characters is 11, but data .* 0 characters"):
        task.sample(jax.random.key(0), 1)
