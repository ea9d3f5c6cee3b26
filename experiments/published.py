"""What others have published on the tasks of this laboratory, as data to draw beside our own.

Rates are shares in 0..1, whatever the paper prints. Every row names its source and how the number
was taken from it: one read off a figure is known to ``Source.reading`` only. Their budgets, sizes
and learning rates are not ours, so a published point is a yardstick and never a baseline.
"""

from typing import NamedTuple


class Source(NamedTuple):
    """Where numbers come from.

    ``reading`` is how far a number taken from here can be off, 0 where it is printed.
    """

    paper: str
    arxiv: str
    place: str
    reading: float = 0.0


class RecallScore(NamedTuple):
    """Accuracy of one model of one width on recall of ``pairs`` pairs in rows of ``length``."""

    length: int
    pairs: int
    model: str
    width: int
    accuracy: float
    source: Source


class ExtrapolationScore(NamedTuple):
    """Accuracy at ``length`` of a model that was trained at ``trained_length``."""

    model: str
    trained_length: int
    length: int
    accuracy: float
    source: Source


class Score(NamedTuple):
    """One number of one model on one task."""

    task: str
    model: str
    metric: str
    value: float
    source: Source


class Claim(NamedTuple):
    """A finding that is a sentence rather than a number."""

    task: str
    words: str
    source: Source


ZOOLOGY = Source(
    "Arora et al., Zoology: measuring and improving recall in efficient language models",
    "2312.04927",
    "figure 2",
    reading=0.02,
)
MAMBA = Source(
    "Gu & Dao, Mamba: linear-time sequence modeling with selective state spaces",
    "2312.00752",
    "table 11",
)
BAI = Source(
    "Bai et al., An empirical evaluation of generic convolutional and recurrent networks for "
    "sequence modeling",
    "1803.01271",
    "table 1, adding problem, T = 600",
)
LONG_RANGE_ARENA = Source(
    "Tay et al., Long Range Arena: a benchmark for efficient transformers",
    "2011.04006",
    "table 1, ListOps",
)
ANTISYMMETRIC = Source(
    "Chang et al., AntisymmetricRNN: a dynamical system view on recurrent neural networks",
    "1902.09689",
    "noise-padded CIFAR-10",
)
REPEAT_AFTER_ME = Source(
    "Jelassi et al., Repeat after me: transformers are better than state space models at copying",
    "2402.01032",
    "string copying",
)

RECALL_WIDTHS = (64, 128, 256, 512)

# By (length, pairs) and model: accuracy at each of RECALL_WIDTHS.
_RECALL = {
    (64, 4): {
        "attention": (1.00, 1.00, 1.00, 1.00),
        "H3": (0.93, 1.00, 0.99, 0.98),
        "RWKV-4": (0.76, 0.94, 0.97, 0.99),
        "BaseConv": (0.70, 0.94, 0.97, 1.00),
        "Hyena": (0.52, 0.76, 0.85, 0.87),
    },
    (128, 8): {
        "attention": (1.00, 1.00, 1.00, 1.00),
        "H3": (0.25, 0.74, 0.92, 0.77),
        "RWKV-4": (0.18, 0.50, 0.76, 0.94),
        "BaseConv": (0.38, 0.62, 0.85, 0.97),
        "Hyena": (0.18, 0.65, 0.74, 0.85),
    },
    (256, 16): {
        "attention": (1.00, 1.00, 1.00, 1.00),
        "H3": (0.08, 0.65, 0.62, 0.68),
        "RWKV-4": (0.05, 0.06, 0.68, 0.80),
        "BaseConv": (0.14, 0.34, 0.82, 0.94),
        "Hyena": (0.05, 0.14, 0.54, 0.69),
    },
    (512, 64): {
        "attention": (1.00, 1.00, 1.00, 1.00),
        "H3": (0.02, 0.02, 0.03, 0.10),
        "RWKV-4": (0.01, 0.02, 0.15, 0.37),
        "BaseConv": (0.02, 0.02, 0.10, 0.72),
        "Hyena": (0.02, 0.03, 0.10, 0.18),
    },
}

RECALL = tuple(
    RecallScore(length, pairs, model, width, accuracy, ZOOLOGY)
    for (length, pairs), models in _RECALL.items()
    for model, accuracies in models.items()
    for width, accuracy in zip(RECALL_WIDTHS, accuracies, strict=True)
)
"""Multi-query associative recall: the best learning rate of each width."""

INDUCTION_TRAINED_LENGTH = 256
INDUCTION_LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)

# In percent, as printed, at each of INDUCTION_LENGTHS.
_INDUCTION = {
    "MHA-Abs": (58.6, 26.6, 18.8, 9.8, 10.9, 7.8),
    "MHA-RoPE": (83.6, 31.3, 18.4, 8.6, 9.0, 5.5),
    "MHA-xPos": (99.6, 67.6, 25.4, 7.0, 9.0, 7.8),
    "H3": (80.9, 39.5, 23.8, 14.8, 8.2, 5.9),
    "Hyena": (100.0, 44.1, 12.5, 6.6, 5.1, 7.0),
    "Mamba": (100.0, 100.0, 100.0, 100.0, 100.0, 100.0),
}

INDUCTION = tuple(
    ExtrapolationScore(model, INDUCTION_TRAINED_LENGTH, length, percent / 100, MAMBA)
    for model, percents in _INDUCTION.items()
    for length, percent in zip(INDUCTION_LENGTHS, percents, strict=True)
)
"""Induction heads beyond the length of training; MHA is attention with the code named after it."""

ADDING = (
    Score("adding", "TCN", "mean squared error", 5.8e-5, BAI),
    Score("adding", "GRU", "mean squared error", 5.3e-5, BAI),
    Score("adding", "LSTM", "mean squared error", 0.164, BAI),
)
"""The adding problem at T = 600; always answering 1 scores 1/6."""

LISTOPS = (Score("listops", "Transformer", "accuracy", 0.3637, LONG_RANGE_ARENA),)
"""Never to be shown without the floors of the task, which are about as high."""

NOISY_IMAGES = (Score("noise-padded CIFAR-10", "LSTM", "accuracy", 0.116, ANTISYMMETRIC),)
"""On CIFAR-10, whose chance is .1; our task has the protocol and not the images."""

COPY_CLAIMS = (
    Claim(
        "copy",
        "Attention learns to copy strings from about 100 times fewer samples than the best gated "
        "state-space model.",
        REPEAT_AFTER_ME,
    ),
    Claim(
        "copy by prefix key",
        "On the prefix-key variant gated state-space models generalise to longer strings, better "
        "than attention without a position code or with ALiBi.",
        REPEAT_AFTER_ME,
    ),
)
"""Both directions: the second is a counter-example to the first."""
