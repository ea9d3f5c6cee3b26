"""The tasks by name; a new task is one new file beside this one and one line in ``TASKS``."""

from experiments.tasks.induction import Induction
from experiments.tasks.noisy_digits import NoisyDigits
from experiments.tasks.recall import Recall
from experiments.tasks.repeated_text import RepeatedText
from experiments.tasks.task import NO_SOURCE, Batch, Chance, Split, Task

TASKS: dict[str, type] = {
    "repeated_text": RepeatedText,
    "noisy_digits": NoisyDigits,
    "recall": Recall,
    "induction": Induction,
}

__all__ = [
    "NO_SOURCE",
    "TASKS",
    "Batch",
    "Chance",
    "Induction",
    "NoisyDigits",
    "Recall",
    "RepeatedText",
    "Split",
    "Task",
]
