"""What a task is: a sampler whose every answer knows where it can be read.

Letters, as everywhere in the laboratory: B rows of a batch, L positions of a row, A answers
asked of a row, F features of a real-valued input.

A task is a frozen dataclass: its fields are its settings (they appear on the command line as
``--task.FIELD``), its methods are pure. Randomness enters through ``rng`` alone and data through
``data`` alone, so ``sample`` can be jitted, vmapped over seeds and run inside a training step.
"""

from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

Split = Literal["train", "test"]

NO_SOURCE = -1
"""The source of an answer that can be read nowhere in its row."""


class Batch(NamedTuple):
    """Rows with their questions: at ``positions`` the model is asked for ``targets``.

    The model may look at ``inputs[:, :position + 1]`` to answer at ``position``.
    """

    inputs: Int[Array, "B L"] | Float[Array, "B L F"]
    """Tokens in ``[0, vocab_size)``, or real-valued rows of F features."""
    positions: Int[Array, "B A"]
    """Where each answer is asked, in ``[0, L)``."""
    targets: Int[Array, "B A"]
    """The right answers, in ``[0, num_classes)``."""
    sources: Int[Array, "B A"]
    """Where each answer can be read: the last position of its source, or ``NO_SOURCE``."""

    @property
    def distances(self) -> Int[Array, "B A"]:
        """How far back each answer lies, in tokens: ``position - source``, or ``NO_SOURCE``."""
        return jax.numpy.where(self.sources >= 0, self.positions - self.sources, NO_SOURCE)


class Chance(NamedTuple):
    """What guessing reaches: knowing how answers are distributed, without reading the source."""

    accuracy: float
    """Share of right answers, in [0, 1]."""
    bits: float
    """Cross-entropy of an answer, in bits."""

    @classmethod
    def of_counts(cls, counts: Int[np.ndarray, "C"]) -> "Chance":
        """The score of knowing only how often each answer occurs: its mode, its entropy."""
        shares = counts[counts > 0] / counts.sum()
        return cls(float(shares.max()), float(-np.sum(shares * np.log2(shares))))


@runtime_checkable
class Task(Protocol):
    """What training and evaluation need to know of a task; see the module docstring."""

    @property
    def length(self) -> int:
        """L, the positions of a row."""
        ...

    @property
    def vocab_size(self) -> int | None:
        """How many different tokens a row may hold; None if inputs are real-valued."""
        ...

    @property
    def num_classes(self) -> int:
        """How many different answers there are."""
        ...

    @property
    def source_width(self) -> int:
        """How many positions a source spans; it ends at ``Batch.sources``."""
        ...

    def with_length(self, length: int) -> "Task":
        """The same task on rows of another length; ValueError if it has none such."""
        ...

    def load(self, split: Split) -> Any:
        """The arrays that ``sample`` draws from; ``()`` if the task is synthetic."""
        ...

    def describe(self) -> str:
        """One line for a person: what a row is, and for real data its origin and its hash."""
        ...

    def chance(self, data: Any) -> Chance:
        """The score of guessing without the source, computed from the definition or the data."""
        ...

    def sample(self, rng: PRNGKeyArray, batch_size: int, data: Any = ()) -> Batch:
        """``batch_size`` fresh rows; the same ``rng`` gives the same rows."""
        ...
