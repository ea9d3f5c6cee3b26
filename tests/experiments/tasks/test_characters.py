"""Characters: every one but the first is an answer, and none has a source."""

import numpy as np
import pytest

from experiments.tasks import Characters
from tests.experiments.tasks.cases import Case, draw


def read_characters(task, row):
    return [(t, row[t + 1], -1) for t in range(len(row) - 1)]


def guess_after(task, batch, data):
    pairs = np.bincount(data[:-1].astype(int) * 128 + data[1:], minlength=128 * 128)
    pairs = pairs.reshape(128, 128)
    return (pairs / np.maximum(pairs.sum(axis=1, keepdims=True), 1))[batch.inputs[:, :-1]]


CASE = Case(
    Characters(num_characters=7),
    read_characters,
    other_length=2,
    bad_length=1,
    guesses={
        "chance": lambda task, batch, data: np.bincount(data, minlength=128) / len(data),
        "the character before alone": guess_after,
    },
    has_sources=False,
)


def test_rows_stand_in_the_text():
    text = CASE.task.load("train").tobytes()
    for row in draw(CASE.task).inputs[:50]:
        assert bytes(row.tolist()) in text


def test_character_errors_name_the_field(tmp_path):
    with pytest.raises(ValueError, match="num_characters is 1, expected at least 2"):
        Characters(num_characters=1)
    (tmp_path / "short").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match=r"num_characters is 11, but the test split .* 10 char"):
        Characters(num_characters=11, path=str(tmp_path / "short")).load("test")


def test_character_floors_are_those_of_the_data():
    floors = Characters().floors(np.frombuffer(b"abacabac", np.uint8))
    # After a comes b or c, alike; after b or c comes a.
    assert floors["the character before alone"] == pytest.approx((3 / 7 + 4 / 14, 4 / 7))
