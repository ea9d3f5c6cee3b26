"""Selective copying: a few tokens scattered among blanks; then the tokens in order."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from experiments.tasks.bag import bag_of_tokens
from experiments.tasks.task import Batch, Floor, Split


@dataclasses.dataclass(frozen=True)
class SelectiveCopy:
    """K content tokens at random places among blanks, recalled in order at the end.

    Tokens: 0..V-3 are content, V-2 is blank, V-1 is the signal to copy. A row is a body of
    L - K - 1 tokens, one signal and K blanks. K places p_0 < ... < p_K-1 of the body, a set drawn
    uniformly, hold content c_i, uniform and independent; the others are blank. Content is not
    shown again: it is asked for at the K last blanks. With i in 0..K-1::

        asked at  L - K + i    answer    c_i
        source    p_i          distance  L - K + i - p_i

    Unlike in ``CopyMemory`` distances vary from row to row, so no fixed offset finds a source:
    which tokens matter must be told from the tokens.

    References:
        Gu and Dao, Mamba (arXiv 2312.00752), section 4.1.1: 16 tokens in a row of 4096.
        Poli et al., MAD (arXiv 2403.17844), whose setting is the default here; its code
        places content less evenly (the last one always ends the body).

    Example:
        Content stands at places 2, 7 and 9; 6 is blank, 7 the signal.

        >>> task = SelectiveCopy(vocab_size=8, length=14, num_tokens=3)
        >>> batch = task.sample(jax.random.key(0), batch_size=1)
        >>> print(batch.inputs[0])
        [6 6 1 6 6 6 6 5 6 1 7 6 6 6]
        >>> for name in ("positions", "targets", "sources", "distances"):
        ...     print(name, getattr(batch, name)[0])
        positions [11 12 13]
        targets [1 5 1]
        sources [2 7 9]
        distances [9 5 4]
    """

    vocab_size: int = 16
    """V: V - 2 content tokens, the blank and the signal; at least 3."""
    length: int = 256
    """L, the tokens of a row; at least 2K + 1."""
    num_tokens: int = 16
    """K, the content tokens of a row and the answers asked of it; at least 1."""

    # Not annotated: constants of the task, not settings.
    source_width = 1

    def __post_init__(self):
        """Refuse settings without content or without room for it."""
        if self.vocab_size < 3:
            raise ValueError(
                f"vocab_size is {self.vocab_size}, expected at least 3: "
                "a content token, the blank and the signal"
            )
        if self.num_tokens < 1:
            raise ValueError(f"num_tokens is {self.num_tokens}, expected at least 1")
        if self.length < 2 * self.num_tokens + 1:
            raise ValueError(
                f"length is {self.length}, expected at least {2 * self.num_tokens + 1}: the "
                f"signal and two tokens for each of num_tokens={self.num_tokens}"
            )

    @property
    def num_classes(self) -> int:
        """V: answers share the tokens' numbering, though only content is an answer."""
        return self.vocab_size

    def with_length(self, length: int) -> "SelectiveCopy":
        """The same content among more or fewer blanks; ``length`` at least 2K + 1."""
        return dataclasses.replace(self, length=length)

    def load(self, split: Split) -> tuple[()]:
        """Nothing: every row is made up, and different random keys make the splits."""
        return ()

    def describe(self) -> str:
        """One line: what a row is."""
        return (
            f"selective copying: {self.num_tokens} tokens of {self.vocab_size - 2} kinds "
            f"scattered among blanks, recalled in order ({self.length} tokens)"
        )

    def floors(self, data: Any = ()) -> dict[str, Floor]:
        """A uniform guess among content tokens, and the row's most frequent one."""
        num_kinds = self.vocab_size - 2
        return {
            "chance": Floor(accuracy=1 / num_kinds, loss=math.log2(num_kinds)),
            "most frequent token of the row": bag_of_tokens(self.num_tokens, num_kinds),
        }

    def sample(self, rng: PRNGKeyArray, batch_size: int, data: Any = ()) -> Batch:
        """``batch_size`` rows with K answers each (A = K), in the order of their content."""
        blank, signal = self.vocab_size - 2, self.vocab_size - 1
        body = self.length - self.num_tokens - 1
        rng_content, rng_places = jax.random.split(rng)

        shape = (batch_size, self.num_tokens)
        content = jax.random.randint(rng_content, shape, 0, blank, jnp.int32)
        # The places of the K largest of independent uniform numbers are a uniform set.
        numbers = jax.random.uniform(rng_places, (batch_size, body), jnp.float32)
        places = jnp.sort(jax.lax.top_k(numbers, self.num_tokens)[1], axis=1)

        rows = jnp.arange(batch_size)[:, None]
        inputs = jnp.full((batch_size, self.length), blank, jnp.int32)
        inputs = inputs.at[rows, places].set(content).at[:, body].set(signal)
        asked = jnp.arange(self.length - self.num_tokens, self.length, dtype=jnp.int32)
        return Batch(
            inputs=inputs,
            positions=jnp.broadcast_to(asked, shape),
            targets=content,
            sources=places,
        )
