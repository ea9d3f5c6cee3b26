"""Repeated text: what is read, how it is split, and where windows begin."""

import jax
import numpy as np
import pytest
from scipy import stats

from experiments.tasks import NO_SOURCE, RepeatedText, corpus
from tests.experiments.tasks.cases import MIN_P, Case, draw, frequencies, sample


def read_repeated_text(task, row):
    n = task.num_characters
    text = row[:n]
    assert row[n:] == text[:-1]
    answers = [(t, text[t + 1], -1) for t in range(n - 1)]
    return answers + [(n - 1 + i, text[i], i) for i in range(n)]


CASE = Case(
    RepeatedText(num_characters=7),
    read_repeated_text,
    other_length=3,
    bad_length=20,
    guesses={
        "chance": lambda task, batch, data: np.bincount(data, minlength=128) / len(data),
        "any character of the row": lambda task, batch, data: frequencies(batch.inputs[:, :7], 128),
    },
)


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
    batch = draw(CASE.task)
    np.testing.assert_array_equal(batch.targets[:, :-1], batch.inputs[:, 1:])
    np.testing.assert_array_equal(batch.distances[:, 6:], 6)
    np.testing.assert_array_equal(batch.distances[:, :6], NO_SOURCE)


def test_text_of_one_file_holds_out_its_last_two_tenths(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"0123456789abcdefghij")
    for path in (tmp_path / "a.txt", tmp_path):
        task = RepeatedText(num_characters=2, path=str(path))
        assert text_of(task.load("train")) == "0123456789abcdef"
        assert text_of(task.load("valid")) == "gh"
        assert text_of(task.load("test")) == "ij"


def test_text_of_a_folder_holds_out_two_of_ten_files(tmp_path):
    letters = "abcdefghijklm"
    path = write(tmp_path, **{letter: 2 * letter.encode() for letter in letters})
    task = RepeatedText(num_characters=2, path=path)
    assert text_of(task.load("test")) == "aakk"
    assert text_of(task.load("valid")) == "ff"
    assert text_of(task.load("train")) == "bbccddeegghhiijjllmm"
    assert "13 files, 26 characters, sha256 " in task.describe()


def test_text_of_few_files_has_no_validation_split(tmp_path):
    task = RepeatedText(num_characters=2, path=write(tmp_path, a=b"first", b=b"second"))
    assert text_of(task.load("train")) == "second"
    with pytest.raises(ValueError, match=r"num_characters is 2, but the valid split .* 0 char"):
        task.load("valid")


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
    train, valid, test = (task.load(split) for split in ("train", "valid", "test"))
    assert train.dtype == np.uint8
    assert train.max() < 128
    assert "def __init__(self" in text_of(train)
    assert min(valid.size, test.size) > 50_000
    assert "the standard library of Python" in task.describe()


def test_missing_standard_library_sources_name_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(FileNotFoundError, match=r"holds 0 \*\.py files .*--task\.path"):
        corpus.find_files("")


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
    assert task.load("train").size == 80
    with pytest.raises(ValueError, match=r"num_characters is 11, but the test split .* 10 char"):
        task.load("test")
    with pytest.raises(ValueError, match=r"num_characters is 11, but data .* 0 characters"):
        task.sample(jax.random.key(0), 1)


def test_text_floor_is_that_of_the_data():
    text = np.frombuffer(b"aaaabbcd", np.uint8)
    floors = RepeatedText(num_characters=4).floors(text)
    assert floors["chance"] == pytest.approx((0.5, 1.75))
    assert floors["any character of the row"] == pytest.approx(((1 + 1 / 2) / 2, (0 + 1.5) / 2))
    for floor in RepeatedText(num_characters=2).floors(np.full(9, 3, np.uint8)).values():
        assert floor == (1.0, 0.0)
