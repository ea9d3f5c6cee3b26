"""Repeated text: characters of real text, read twice; the second reading can be recalled."""

import dataclasses
import functools
import hashlib
import platform
import sysconfig
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from numpy.typing import NDArray

from experiments.tasks.task import NO_SOURCE, Batch, Floor, Split

SUBSTITUTE = 26
"""The code of every character outside ASCII: ASCII's own "substitute"."""


class _Corpus(NamedTuple):
    origin: str
    num_files: int
    digest: str
    splits: dict[str, NDArray[np.uint8]]

    @property
    def size(self) -> int:
        return sum(codes.size for codes in self.splits.values())


def _is_text(file: Path) -> bool:
    with file.open("rb") as stream:
        head = stream.read(8192)
    return bool(head) and b"\0" not in head


def _find_files(path: str) -> list[Path]:
    """The text files that ``path`` names, sorted by name; see ``RepeatedText``."""
    if not path:
        folder = Path(sysconfig.get_paths()["stdlib"])
        files = sorted(folder.glob("*.py"))
        if len(files) < 10:
            raise FileNotFoundError(
                f"path is empty, which stands for the standard library, but {folder} holds "
                f"{len(files)} *.py files (is it zipped?): "
                "name a text file or a folder with --task.path"
            )
        return files
    root = Path(path).expanduser()
    if not root.exists():
        raise FileNotFoundError(f"path is {path!r}, expected a text file or a folder: no such path")
    names = sorted(f.relative_to(root) for f in root.rglob("*")) if root.is_dir() else [Path()]
    visible = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    files = [root / name for name in visible if (root / name).is_file() and _is_text(root / name)]
    if not files:
        raise ValueError(f"path is {path!r}, expected a text file or a folder: no text found")
    return files


def _encode(file: Path) -> NDArray[np.uint8]:
    text = file.read_text(encoding="utf-8", errors="replace")
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    return np.where(codes < 128, codes, SUBSTITUTE).astype(np.uint8)


@functools.lru_cache(maxsize=8)
def _read(path: str) -> _Corpus:
    texts = [_encode(file) for file in _find_files(path)]
    whole = np.concatenate(texts)
    if len(texts) == 1:
        tenths = [whole.size * 8 // 10, whole.size * 9 // 10]
        train, valid, test = np.split(whole, tenths)
        splits = {"train": train, "valid": valid, "test": test}
    else:
        train = [text for i, text in enumerate(texts) if i % 10 not in (0, 5)]
        parts = {"train": train, "valid": texts[5::10], "test": texts[::10]}
        # Fewer than six files have none for validation: an error of load, not of this one.
        empty = np.zeros(0, np.uint8)
        splits = {name: np.concatenate([empty, *chosen]) for name, chosen in parts.items()}
    for codes in splits.values():
        codes.setflags(write=False)
    origin = path or f"the standard library of Python {platform.python_version()}"
    digest = hashlib.sha256(whole.tobytes()).hexdigest()
    return _Corpus(origin, len(texts), digest, splits)


@dataclasses.dataclass(frozen=True)
class RepeatedText:
    """Character language modelling on a text that is read twice.

    A window ``c[0] ... c[n-1]`` of real text, at a uniform start, is written twice. A row shows
    the first 2n - 1 characters and is asked, at every one, for the next::

        position t in 0..n-2       answer c[t+1],   no source: ordinary language modelling
        position t in n-1..2n-2    answer c[t+1-n], source t + 1 - n, distance n - 1

    Position n - 1 already asks for the second reading: its answer is c[0] once more, which
    nothing but the position itself announces. Every other answer of the second reading can be
    found by its context, n - 1 characters back.

    The text is one file, or all text files of a folder: those that are not empty and hold no
    NUL byte in their first 8 KiB, names that begin with a dot left out. By default it is the
    top-level ``*.py`` files of the running Python's standard library. Files are joined in the
    order of their names, so a window may run from one into the next. Of several files every
    tenth, from the first on, is in the test split, every tenth from the sixth on in the
    validation split; of a single file the last tenth is the test split, the one before it the
    validation split.

    References:
        Olsson et al., In-context learning and induction heads (arXiv 2209.11895), which scores
        models on the second reading of random tokens; here the text is real.

    Example:
        A text of five characters has only one window; a source of -1 is ``NO_SOURCE``.

        >>> data = np.frombuffer(b"tiger", np.uint8)
        >>> batch = RepeatedText(num_characters=5).sample(jax.random.key(0), 1, data)
        >>> "".join(map(chr, batch.inputs[0]))
        'tigertige'
        >>> "".join(map(chr, batch.targets[0]))
        'igertiger'
        >>> print(batch.sources[0])
        [-1 -1 -1 -1  0  1  2  3  4]
        >>> print(batch.distances[0])
        [-1 -1 -1 -1  4  4  4  4  4]
    """

    num_characters: int = 96
    """n, the characters that are read twice; at least 2."""
    path: str = ""
    """A text file, or a folder with its subfolders; "" is the Python standard library."""

    # Not annotated: constants of the task, not settings.
    vocab_size = 128
    num_classes = 128
    source_width = 1

    def __post_init__(self):
        """Refuse a text too short to have a second reading with a context."""
        if self.num_characters < 2:
            raise ValueError(f"num_characters is {self.num_characters}, expected at least 2")

    @property
    def length(self) -> int:
        """L = 2n - 1, always odd."""
        return 2 * self.num_characters - 1

    @property
    def parts(self) -> dict[str, tuple[int, int]]:
        """The two readings, by what is asked at a position."""
        n = self.num_characters
        return {"first reading": (0, n - 2), "second reading": (n - 1, 2 * n - 2)}

    def with_length(self, length: int) -> "RepeatedText":
        """The task of (length + 1) / 2 characters; ``length`` is odd, at least 3."""
        if length < 3 or length % 2 == 0:
            raise ValueError(
                f"length is {length}, expected an odd number of at least 3: "
                "n characters read twice are asked for at 2n - 1 positions"
            )
        return dataclasses.replace(self, num_characters=(length + 1) // 2)

    def load(self, split: Split) -> NDArray[np.uint8]:
        """The text of the split as ASCII codes, others than ASCII as 26 ("substitute").

        Raises:
            FileNotFoundError: ``path`` is not there, or the standard library has no sources.
            ValueError: ``path`` holds no text, or the split less than ``num_characters``.
        """
        corpus = _read(self.path)
        data = corpus.splits[split]
        self._check_enough(data.size, f"the {split} split of {corpus.origin}")
        return data

    def describe(self) -> str:
        """One line: what a row is, and the text's origin, size and hash."""
        corpus = _read(self.path)
        return (
            f"repeated text: {self.num_characters} characters read twice, from {corpus.origin} "
            f"({corpus.num_files} files, {corpus.size} characters, sha256 {corpus.digest[:12]})"
        )

    def spell(self, token: int) -> str:
        """The character."""
        return chr(token)

    def floors(self, data: Any) -> dict[str, Floor]:
        """Guessing by how often each character occurs, in all of ``data`` or in the row alone.

        "any character of the row" is over the windows of ``data`` that do not overlap.
        """
        text, n = np.asarray(data), self.num_characters
        windows = text[: text.size // n * n].reshape(-1, n)
        counts = np.zeros((len(windows), self.vocab_size), np.int64)
        np.add.at(counts, (np.arange(len(windows))[:, None], windows), 1)
        shares = counts / n
        surprise = -shares * np.log2(np.where(shares > 0, shares, 1))
        return {
            "chance": Floor.of_counts(np.bincount(text)),
            "any character of the row": Floor(
                float(shares.max(axis=1).mean()), float(surprise.sum(axis=1).mean())
            ),
        }

    def sample(self, rng: PRNGKeyArray, batch_size: int, data: Any = ()) -> Batch:
        """``batch_size`` windows of ``data`` with an answer at every position (A = L)."""
        n, text = self.num_characters, jnp.asarray(data)
        self._check_enough(text.size, "data (pass what load returns)")
        start = jax.random.randint(rng, (batch_size, 1), 0, text.size - n + 1, jnp.int32)
        window = text[start + jnp.arange(n, dtype=jnp.int32)[None, :]].astype(jnp.int32)
        row = jnp.concatenate([window, window], axis=1)
        t = jnp.arange(self.length, dtype=jnp.int32)
        shape = (batch_size, self.length)
        return Batch(
            inputs=row[:, :-1],
            positions=jnp.broadcast_to(t, shape),
            targets=row[:, 1:],
            sources=jnp.broadcast_to(jnp.where(t >= n - 1, t + 1 - n, NO_SOURCE), shape),
        )

    def _check_enough(self, size: int, where: str) -> None:
        if size < self.num_characters:
            raise ValueError(
                f"num_characters is {self.num_characters}, but {where} holds {size} characters: "
                "ask for fewer, or name more text with --task.path"
            )
