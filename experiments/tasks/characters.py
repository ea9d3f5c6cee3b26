"""Characters: language modelling of real text, by how much of it stands before."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from numpy.typing import NDArray

from experiments.tasks import corpus
from experiments.tasks.task import NO_SOURCE, Batch, Floor, Split


@dataclasses.dataclass(frozen=True)
class Characters:
    """Character language modelling: what a longer context is good for, if anything.

    A row is a window ``c[0] ... c[n-1]`` of real text, at a uniform start. It is asked, at every
    character but the last, for the next::

        position t in 0..n-2    answer c[t+1],   no source

    No answer has a place where it can be read, so nothing is said by distance. The loss by
    position says it: where a model's falls no further, it makes nothing of what lies further back.

    The text is that of ``experiments.tasks.corpus``.

    References:
        Khandelwal et al., Sharp Nearby, Fuzzy Far Away (arXiv 1805.04623), loss by context.

    Example:
        A text of five characters has only one window; a source of -1 is ``NO_SOURCE``.

        >>> import jax
        >>> data = np.frombuffer(b"tiger", np.uint8)
        >>> batch = Characters(num_characters=5).sample(jax.random.key(0), 1, data)
        >>> "".join(map(chr, batch.inputs[0])), "".join(map(chr, batch.targets[0]))
        ('tiger', 'iger')
        >>> print(batch.sources[0])
        [-1 -1 -1 -1]
    """

    num_characters: int = 256
    """n, the characters of a row; at least 2."""
    path: str = ""
    """A text file, or a folder with its subfolders; "" is the Python standard library."""

    # Not annotated: constants of the task, not settings.
    vocab_size = 128
    num_classes = 128
    source_width = 1

    def __post_init__(self):
        """Refuse rows without a next character."""
        if self.num_characters < 2:
            raise ValueError(f"num_characters is {self.num_characters}, expected at least 2")

    @property
    def length(self) -> int:
        """L = n."""
        return self.num_characters

    def with_length(self, length: int) -> "Characters":
        """The task on rows of ``length`` characters, at least 2."""
        if length < 2:
            raise ValueError(f"length is {length}, expected at least 2, for one to come next")
        return dataclasses.replace(self, num_characters=length)

    def load(self, split: Split) -> NDArray[np.uint8]:
        """The text of the split as ASCII codes, others than ASCII as 26 ("substitute").

        Raises:
            FileNotFoundError: ``path`` is not there, or the standard library has no sources.
            ValueError: ``path`` holds no text, or the split less than ``num_characters``.
        """
        return corpus.load(self.path, split, self.num_characters)

    def describe(self) -> str:
        """One line: what a row is, and the text's origin, size and hash."""
        return f"characters: {self.num_characters} in a row, from {corpus.read(self.path)}"

    def spell(self, token: int) -> str:
        """The character."""
        return chr(token)

    def floors(self, data: Any) -> dict[str, Floor]:
        """Guessing by how often each character occurs; by how often after the one before it."""
        text = np.asarray(data)
        pairs = np.zeros((self.vocab_size, self.vocab_size), np.int64)
        np.add.at(pairs, (text[:-1], text[1:]), 1)
        counts = pairs[pairs.sum(axis=1) > 0]
        return {
            "chance": Floor.of_counts(np.bincount(text)),
            "the character before alone": Floor.mean(
                [Floor.of_counts(row) for row in counts], counts.sum(axis=1).tolist()
            ),
        }

    def sample(self, rng: PRNGKeyArray, batch_size: int, data: Any = ()) -> Batch:
        """``batch_size`` windows of ``data``; an answer at all but the last place (A = L - 1)."""
        row = corpus.windows(rng, batch_size, self.num_characters, data)
        shape = (batch_size, self.num_characters - 1)
        return Batch(
            inputs=row,
            positions=jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape),
            targets=row[:, 1:],
            sources=jnp.full(shape, NO_SOURCE, jnp.int32),
        )
