"""Induction heads: after the trigger comes again, say what came after it the first time."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from experiments.tasks.bag import bag_of_tokens
from experiments.tasks.task import Batch, Floor, Split

NUM_ORDINARY = 16
"""Ordinary tokens are 0..15."""
TRIGGER = 16
"""The one token that is not ordinary; it stands twice in every row."""


@dataclasses.dataclass(frozen=True)
class Induction:
    """Induction heads, asked once, at the end of the row.

    A row is L - 2 ordinary tokens, uniform and independent, and two triggers: one at a place f
    uniform on 0..L-3, one at L - 1. With x the row, counted from 0::

        asked at  L - 1        answer    x[f + 1], an ordinary token
        source    f + 1        distance  L - 2 - f, uniform on 1..L-2

    The rule does not depend on L, so a model trained at one length is scored at others
    (``with_length``). Answers share the tokens' numbering, hence ``num_classes == vocab_size``,
    though the trigger is never an answer.

    References:
        Gu and Dao, Mamba (arXiv 2312.00752), appendix E.1.

    Example:
        The trigger, 16, stands at place 2 and at the end; the token after the first one is 9.

        >>> batch = Induction(length=8).sample(jax.random.key(0), batch_size=1)
        >>> print(batch.inputs[0])
        [15  9 16  9  2  0  1 16]
        >>> for name in ("positions", "targets", "sources", "distances"):
        ...     print(name, getattr(batch, name)[0])
        positions [7]
        targets [9]
        sources [3]
        distances [4]
    """

    length: int = 64
    """L, the tokens of a row, both triggers included; at least 3."""

    # Not annotated: constants of the task, not settings.
    vocab_size = NUM_ORDINARY + 1
    num_classes = NUM_ORDINARY + 1
    source_width = 1

    def __post_init__(self):
        """Refuse rows too short for a trigger, its answer and the trigger again."""
        if self.length < 3:
            raise ValueError(
                f"length is {self.length}, expected at least 3: "
                "a trigger, its answer and the trigger again"
            )

    def with_length(self, length: int) -> "Induction":
        """The same task on rows of ``length`` tokens, at least 3."""
        return dataclasses.replace(self, length=length)

    def load(self, split: Split) -> tuple[()]:
        """Nothing: every row is made up, and different random keys make the splits."""
        return ()

    def describe(self) -> str:
        """One line: what a row is."""
        return (
            f"induction heads: {self.length} tokens, {NUM_ORDINARY} ordinary ones and a trigger; "
            "at the end, name the token that followed the first trigger"
        )

    def floors(self, data: Any = ()) -> dict[str, Floor]:
        """A uniform guess, and the row's most frequent token.

        The second knows every ordinary token of the row but not which follows the trigger: each
        of the L - 2 is the answer equally often.
        """
        return {
            "chance": Floor(accuracy=1 / NUM_ORDINARY, loss=math.log2(NUM_ORDINARY)),
            "most frequent token of the row": bag_of_tokens(self.length - 2, NUM_ORDINARY),
        }

    def sample(self, rng: PRNGKeyArray, batch_size: int, data: Any = ()) -> Batch:
        """``batch_size`` rows with one answer each (A = 1)."""
        rng_tokens, rng_trigger = jax.random.split(rng)
        shape = (batch_size, self.length)
        tokens = jax.random.randint(rng_tokens, shape, 0, NUM_ORDINARY, jnp.int32)
        trigger = jax.random.randint(rng_trigger, (batch_size, 1), 0, self.length - 2, jnp.int32)
        place = jnp.arange(self.length, dtype=jnp.int32)[None, :]
        inputs = jnp.where((place == trigger) | (place == self.length - 1), TRIGGER, tokens)
        sources = trigger + 1
        return Batch(
            inputs=inputs,
            positions=jnp.full_like(sources, self.length - 1),
            targets=jnp.take_along_axis(inputs, sources, axis=1),
            sources=sources,
        )
