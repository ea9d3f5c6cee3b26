"""Copy memory: symbols, a long blank stretch, a signal; then the symbols in order."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from experiments.tasks.bag import bag_of_tokens
from experiments.tasks.task import Batch, Floor, Split

NUM_KINDS = 8
"""Symbols to remember are 0..7."""
BLANK = 8
"""The token of the delay, and of the places where symbols are asked for."""
DELIMITER = 9
"""The signal to begin recalling."""


@dataclasses.dataclass(frozen=True)
class CopyMemory:
    """The copying memory problem: K symbols, recalled in order T steps later.

    A row is K symbols x[0..K-1], uniform and independent, T - 1 blanks, one delimiter and K
    blanks, so L = T + 2K. It is asked at the K last blanks; the symbols are not shown again, so
    that recalling one does not help with the next. With i in 0..K-1::

        asked at  T + K + i    answer    x[i], one of 8
        source    i            distance  T + K, the same for all

    The original is scored at every position, blanks included, which makes a loss of
    K log 8 / (T + 2K) out of knowing nothing; here only symbols are asked for.

    References:
        Hochreiter and Schmidhuber, Long short-term memory (1997); in this form
        Arjovsky et al. (arXiv 1511.06464), with K = 10.

    Example:
        Three symbols, then T = 4: three blanks, 8, and the delimiter, 9.

        >>> batch = CopyMemory(delay=4, num_symbols=3).sample(jax.random.key(0), batch_size=1)
        >>> print(batch.inputs[0])
        [5 0 0 8 8 8 9 8 8 8]
        >>> for name in ("positions", "targets", "sources", "distances"):
        ...     print(name, getattr(batch, name)[0])
        positions [7 8 9]
        targets [5 0 0]
        sources [0 1 2]
        distances [7 7 7]
    """

    delay: int = 100
    """T, from the last symbol to the delimiter; at least 1."""
    num_symbols: int = 10
    """K, the symbols of a row and the answers asked of it; at least 1."""

    # Not annotated: constants of the task, not settings.
    vocab_size = NUM_KINDS + 2
    num_classes = NUM_KINDS + 2
    source_width = 1

    def __post_init__(self):
        """Refuse rows without a symbol or without room for the delimiter."""
        if self.delay < 1:
            raise ValueError(f"delay is {self.delay}, expected at least 1, the delimiter")
        if self.num_symbols < 1:
            raise ValueError(f"num_symbols is {self.num_symbols}, expected at least 1")

    @property
    def length(self) -> int:
        """L = T + 2K."""
        return self.delay + 2 * self.num_symbols

    def with_length(self, length: int) -> "CopyMemory":
        """The same symbols after a longer or shorter delay; ``length`` above 2K."""
        if length <= 2 * self.num_symbols:
            raise ValueError(
                f"length is {length}, expected more than {2 * self.num_symbols}, "
                f"two tokens for each of num_symbols={self.num_symbols}"
            )
        return dataclasses.replace(self, delay=length - 2 * self.num_symbols)

    def load(self, split: Split) -> tuple[()]:
        """Nothing: every row is made up, and different random keys make the splits."""
        return ()

    def describe(self) -> str:
        """One line: what a row is."""
        return (
            f"copy memory: {self.num_symbols} symbols of {NUM_KINDS} kinds, "
            f"recalled in order {self.delay} steps later ({self.length} tokens)"
        )

    def floors(self, data: Any = ()) -> dict[str, Floor]:
        """A uniform guess, and always the row's most frequent symbol."""
        return {
            "chance": Floor(accuracy=1 / NUM_KINDS, loss=math.log2(NUM_KINDS)),
            "most frequent symbol of the row": bag_of_tokens(self.num_symbols, NUM_KINDS),
        }

    def sample(self, rng: PRNGKeyArray, batch_size: int, data: Any = ()) -> Batch:
        """``batch_size`` rows with K answers each (A = K), in the order of their symbols."""
        shape = (batch_size, self.num_symbols)
        symbols = jax.random.randint(rng, shape, 0, NUM_KINDS, jnp.int32)
        inputs = jnp.full((batch_size, self.length), BLANK, jnp.int32)
        inputs = inputs.at[:, : self.num_symbols].set(symbols)
        inputs = inputs.at[:, self.length - self.num_symbols - 1].set(DELIMITER)
        sources = jnp.broadcast_to(jnp.arange(self.num_symbols, dtype=jnp.int32), shape)
        return Batch(
            inputs=inputs,
            positions=sources + (self.delay + self.num_symbols),
            targets=symbols,
            sources=sources,
        )
