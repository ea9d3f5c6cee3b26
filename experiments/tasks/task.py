"""What a task is: a sampler whose every answer knows where it can be read.

Letters, as everywhere in the laboratory: B rows of a batch, L positions of a row, A answers
asked of a row, F features of a real-valued input.

A task is a frozen dataclass: its fields are its settings (they appear on the command line as
``--task.FIELD``), its methods are pure. Randomness enters through ``rng`` alone and data through
``data`` alone, so ``sample`` can be jitted, vmapped over seeds and run inside a training step.

Two things are for figures, and may be left out: ``spell(token) -> str``, how a token reads, and a
property ``parts``, the name of each stretch of a row, to its first and last position.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

Split = Literal["train", "valid", "test"]
"""What is learned from, what the learning rate is chosen on, what is reported."""

NO_SOURCE = -1
"""The source of an answer that can be read nowhere in its row."""
UNASKED = -1
"""The target of a place among the answers that this row does not use: rows of fewer answers are
filled up with it; it counts in no loss and no score, and its position is any valid one."""


class Batch(NamedTuple):
    """Rows with their questions: at ``positions`` the model is asked for ``targets``.

    The model may look at ``inputs[:, :position + 1]`` to answer at ``position``.
    """

    inputs: Int[Array, "B L"] | Float[Array, "B L F"]
    """Tokens in ``[0, vocab_size)``, or real-valued rows of F features."""
    positions: Int[Array, "B A"]
    """Where each answer is asked, in ``[0, L)``."""
    targets: Int[Array, "B A"] | Float[Array, "B A"]
    """The right answers: classes in ``[0, num_classes)`` or ``UNASKED``; numbers if
    ``num_classes`` is None."""
    sources: Int[Array, "B A"]
    """Where each answer can be read: the last position of its source, or ``NO_SOURCE``."""

    @property
    def distances(self) -> Int[Array, "B A"]:
        """How far back each answer lies, in tokens: ``position - source``, or ``NO_SOURCE``."""
        return jax.numpy.where(self.sources >= 0, self.positions - self.sources, NO_SOURCE)


class Floor(NamedTuple):
    """What a trivial predictor reaches: one that does not relate the question to its source."""

    accuracy: float
    """Share of right answers, in [0, 1]."""
    loss: float
    """Cross-entropy of an answer in bits; mean squared error where answers are numbers."""

    @classmethod
    def of_counts(cls, counts: Int[np.ndarray, "C"]) -> "Floor":
        """The score of knowing only how often each answer occurs: its mode, its entropy."""
        shares = counts[counts > 0] / counts.sum()
        return cls(float(shares.max()), float(-np.sum(shares * np.log2(shares))))

    @classmethod
    def mean(cls, floors: Sequence["Floor"], weights: Sequence[float]) -> "Floor":
        """The score over rows of several kinds, each kind with its floor and its weight."""
        accuracy, loss = np.average(np.array(floors), axis=0, weights=weights)
        return cls(float(accuracy), float(loss))


@runtime_checkable
class Task(Protocol):
    """What training and evaluation need to know of a task; see the module docstring."""

    @property
    def length(self) -> int:
        """L, the positions of a row."""
        ...

    @property
    def vocab_size(self) -> int | None:
        """How many different tokens a row may hold; None if inputs are real-valued.

        A task of real-valued inputs has ``num_features``, F.
        """
        ...

    @property
    def num_classes(self) -> int | None:
        """How many different answers there are; None if answers are numbers.

        A task whose answers are numbers has a ``tolerance``: one is right if it is off by less.
        """
        ...

    @property
    def source_width(self) -> int:
        """How many positions a source spans; it ends at ``Batch.sources``."""
        ...

    def with_length(self, length: int) -> "Task":
        """The same task on rows of another length; ValueError if it has none such.

        Of its own length it is the task itself or, where rows are filled up, the one whose rows
        are all full. The error reads ``length is GOT, expected ...``.
        """
        ...

    def load(self, split: Split) -> Any:
        """The arrays that ``sample`` draws from; ``()`` if the task is synthetic.

        They are read once (``functools.cache``): the same objects every time.
        """
        ...

    def describe(self) -> str:
        """One line for a person: what a row is, and for real data its origin and its hash."""
        ...

    def floors(self, data: Any) -> dict[str, Floor]:
        """What trivial predictors reach, by name, computed from the definition or the data.

        The first is ``"chance"``: guessing without reading the row. Others read the row without
        relating the question to its source (any value that stands there; the root operator).
        """
        ...

    def sample(self, rng: PRNGKeyArray, batch_size: int, data: Any = ()) -> Batch:
        """``batch_size`` fresh rows; the same ``rng`` gives the same rows."""
        ...
