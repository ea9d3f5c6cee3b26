"""Real text for the tasks that read it: which files, as which codes, in which splits.

The text is one file, or all text files of a folder: those that are not empty and hold no NUL byte
in their first 8 KiB, names that begin with a dot left out. By default it is the top-level ``*.py``
files of the running Python's standard library. Files are joined in the order of their names, so
a window may run from one into the next. Of several files every tenth, from the first on, is in the
test split, every tenth from the sixth on in the validation split; of a single file the last tenth
is the test split, the one before it the validation split.
"""

import functools
import hashlib
import platform
import sysconfig
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from experiments.tasks.task import Split

SUBSTITUTE = 26
"""The code of every character outside ASCII: ASCII's own "substitute"."""


class Corpus(NamedTuple):
    """A text in its splits, as ASCII codes."""

    origin: str
    num_files: int
    digest: str
    splits: dict[str, NDArray[np.uint8]]

    def __str__(self) -> str:
        """Its origin, size and hash."""
        size = sum(codes.size for codes in self.splits.values())
        return (
            f"{self.origin} ({self.num_files} files, {size} characters, sha256 {self.digest[:12]})"
        )


def is_text(file: Path) -> bool:
    """Returns whether a file is not empty and its first 8 KiB hold no NUL byte."""
    with file.open("rb") as stream:
        head = stream.read(8192)
    return bool(head) and b"\0" not in head


def find_files(path: str) -> list[Path]:
    """Returns the text files that ``path`` names, sorted by name; see the module docstring."""
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
    files = [root / name for name in visible if (root / name).is_file() and is_text(root / name)]
    if not files:
        raise ValueError(f"path is {path!r}, expected a text file or a folder: no text found")
    return files


def encode(file: Path) -> NDArray[np.uint8]:
    """Returns the codes of a file's characters, those outside ASCII as ``SUBSTITUTE``."""
    text = file.read_text(encoding="utf-8", errors="replace")
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    return np.where(codes < 128, codes, SUBSTITUTE).astype(np.uint8)


@functools.lru_cache(maxsize=8)
def read(path: str) -> Corpus:
    """Returns the text that ``path`` names, others than ASCII as ``SUBSTITUTE``.

    Raises:
        FileNotFoundError: ``path`` is not there, or the standard library has no sources.
        ValueError: ``path`` holds no text.
    """
    texts = [encode(file) for file in find_files(path)]
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
    return Corpus(origin, len(texts), digest, splits)


def load(path: str, split: Split, num_characters: int) -> NDArray[np.uint8]:
    """Returns a split of the text; ValueError if it is shorter than a window."""
    corpus = read(path)
    codes = corpus.splits[split]
    check_enough(num_characters, codes.size, f"the {split} split of {corpus.origin}")
    return codes


def check_enough(num_characters: int, size: int, where: str) -> None:
    """Raises ValueError if a window does not fit into what there is."""
    if size < num_characters:
        raise ValueError(
            f"num_characters is {num_characters}, but {where} holds {size} characters: "
            "ask for fewer, or name more text with --task.path"
        )


def windows(rng: Any, batch_size: int, num_characters: int, data: Any) -> Any:
    """Returns windows of ``data`` at uniform starts, ``[batch_size, num_characters]``, int32."""
    text = jnp.asarray(data)
    check_enough(num_characters, text.size, "data (pass what load returns)")
    most = text.size - num_characters + 1
    start = jax.random.randint(rng, (batch_size, 1), 0, most, jnp.int32)
    return text[start + jnp.arange(num_characters, dtype=jnp.int32)[None, :]].astype(jnp.int32)
