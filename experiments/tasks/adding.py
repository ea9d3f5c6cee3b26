"""The adding problem: two of many numbers are marked; at the end, say their sum."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from experiments.tasks.task import Batch, Floor, Split


@dataclasses.dataclass(frozen=True)
class Adding:
    """The sum of two marked numbers, wherever they stand: the one task whose answer is a number.

    A row is T pairs (u[t], m[t]): numbers u[t] uniform on [0, 1) and independent, marks m[t] zero
    but for two ones, at p uniform on 0..T//2-1 and q uniform on T//2..T-1::

        asked at  T - 1        answer    u[p] + u[q]
        source    p            distance  T - 1 - p

    An answer has two sources. ``Batch.sources`` names the earlier one, p: who reaches that far
    reaches q too. The loss is the squared error; an answer off by less than ``tolerance`` counts
    as right.

    References:
        Hochreiter and Schmidhuber, Long short-term memory (1997), section 5.4; in this form
        Bai et al. (arXiv 1803.01271), with T = 200, 600.

    Example:
        The numbers 0.23 and 0.12 are marked, at places 2 and 3.

        >>> batch = Adding(length=6).sample(jax.random.key(0), batch_size=1)
        >>> for number, mark in batch.inputs[0]:
        ...     print(f"{number:.2f} {mark:.0f}")
        0.84 0
        0.18 0
        0.23 1
        0.12 1
        0.19 0
        0.72 0
        >>> print(f"{batch.targets[0, 0]:.2f}")
        0.35
        >>> for name in ("positions", "sources", "distances"):
        ...     print(name, getattr(batch, name)[0])
        positions [5]
        sources [2]
        distances [3]
    """

    length: int = 200
    """T, the pairs of a row; at least 2."""
    tolerance: float = 0.04
    """How far off an answer may be and still count as right; above 0, at most 1/2."""

    # Not annotated: constants of the task, not settings.
    vocab_size = None
    num_features = 2
    num_classes = None
    source_width = 1

    def __post_init__(self):
        """Refuse rows with a half too short for a mark, and tolerances that accept a guess."""
        if self.length < 2:
            raise ValueError(f"length is {self.length}, expected at least 2, one mark in each half")
        if not 0 < self.tolerance <= 0.5:
            raise ValueError(
                f"tolerance is {self.tolerance}, expected a number above 0 and at most 0.5"
            )

    def with_length(self, length: int) -> "Adding":
        """The same task on ``length`` pairs, at least 2."""
        return dataclasses.replace(self, length=length)

    def load(self, split: Split) -> tuple[()]:
        """Nothing: every row is made up, and different random keys make the splits."""
        return ()

    def describe(self) -> str:
        """One line: what a row is."""
        return (
            f"adding problem: {self.length} numbers in [0, 1), one marked in each half; "
            f"at the end, their sum (right if off by less than {self.tolerance})"
        )

    def floors(self, data: Any = ()) -> dict[str, Floor]:
        """Always 1, the mean; and the later marked number plus 1/2, the mean of the other.

        The error of the first has a triangular law on [-1, 1], of the second a uniform one on
        [-1/2, 1/2]: their variances are 1/6 and 1/12.
        """
        triangular = 1 - (1 - self.tolerance) ** 2
        uniform = 2 * self.tolerance
        return {
            "chance": Floor(accuracy=triangular, loss=1 / 6),
            "later number alone": Floor(accuracy=uniform, loss=1 / 12),
        }

    def sample(self, rng: PRNGKeyArray, batch_size: int, data: Any = ()) -> Batch:
        """``batch_size`` rows with one answer each (A = 1)."""
        rng_numbers, rng_earlier, rng_later = jax.random.split(rng, 3)
        numbers = jax.random.uniform(rng_numbers, (batch_size, self.length), jnp.float32)
        half, shape = self.length // 2, (batch_size, 1)
        earlier = jax.random.randint(rng_earlier, shape, 0, half, jnp.int32)
        later = jax.random.randint(rng_later, shape, half, self.length, jnp.int32)
        place = jnp.arange(self.length, dtype=jnp.int32)[None, :]
        marks = ((place == earlier) | (place == later)).astype(jnp.float32)
        both = jnp.concatenate([earlier, later], axis=1)
        return Batch(
            inputs=jnp.stack([numbers, marks], axis=2),
            positions=jnp.full(shape, self.length - 1, jnp.int32),
            targets=jnp.take_along_axis(numbers, both, axis=1).sum(axis=1, keepdims=True),
            sources=earlier,
        )
