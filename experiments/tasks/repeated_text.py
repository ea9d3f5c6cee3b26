"""Repeated text: characters of real text, read twice; the second reading can be recalled."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from numpy.typing import NDArray

from experiments.tasks import corpus
from experiments.tasks.task import NO_SOURCE, Batch, Floor, Split


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

    The text is that of ``experiments.tasks.corpus``.

    References:
        Olsson et al., In-context learning and induction heads (arXiv 2209.11895), which scores
        models on the second reading of random tokens; here the text is real.

    Example:
        A text of five characters has only one window; a source of -1 is ``NO_SOURCE``.

        >>> import jax
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
        return corpus.load(self.path, split, self.num_characters)

    def describe(self) -> str:
        """One line: what a row is, and the text's origin, size and hash."""
        text = corpus.read(self.path)
        return f"repeated text: {self.num_characters} characters read twice, from {text}"

    def spell(self, token: int) -> str:
        """The character."""
        return chr(token)

    def floors(self, data: Any) -> dict[str, Floor]:
        """Guessing by how often each character occurs, in all of ``data`` or in the row alone.

        "any character of the row" is over the windows of ``data`` that do not overlap.
        """
        text, n = np.asarray(data), self.num_characters
        windows = text[: text.size // n * n].reshape(-1, n)
        size, rows = self.vocab_size, np.arange(len(windows))[:, None]
        counts = np.bincount((rows * size + windows).ravel(), minlength=len(windows) * size)
        shares = counts.reshape(-1, size) / n
        surprise = -shares * np.log2(np.where(shares > 0, shares, 1))
        return {
            "chance": Floor.of_counts(np.bincount(text)),
            "any character of the row": Floor(
                float(shares.max(axis=1).mean()), float(surprise.sum(axis=1).mean())
            ),
        }

    def sample(self, rng: PRNGKeyArray, batch_size: int, data: Any = ()) -> Batch:
        """``batch_size`` windows of ``data`` with an answer at every position (A = L)."""
        n = self.num_characters
        window = corpus.windows(rng, batch_size, n, data)
        row = jnp.concatenate([window, window], axis=1)
        t = jnp.arange(self.length, dtype=jnp.int32)
        shape = (batch_size, self.length)
        return Batch(
            inputs=row[:, :-1],
            positions=jnp.broadcast_to(t, shape),
            targets=row[:, 1:],
            sources=jnp.broadcast_to(jnp.where(t >= n - 1, t + 1 - n, NO_SOURCE), shape),
        )
