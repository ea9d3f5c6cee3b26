"""The tasks by name; a new task is one new file beside this one and one line in ``TASKS``."""

from experiments.tasks.adding import Adding
from experiments.tasks.characters import Characters
from experiments.tasks.copy_memory import CopyMemory
from experiments.tasks.induction import Induction
from experiments.tasks.list_ops import ListOps
from experiments.tasks.noisy_digits import NoisyDigits
from experiments.tasks.prefix_key import PrefixKeyCopy
from experiments.tasks.recall import Recall
from experiments.tasks.repeated_text import RepeatedText
from experiments.tasks.selective_copy import SelectiveCopy
from experiments.tasks.string_copy import StringCopy
from experiments.tasks.task import NO_SOURCE, UNASKED, Batch, Floor, Split, Task

TASKS: dict[str, type] = {
    "repeated_text": RepeatedText,
    "characters": Characters,
    "noisy_digits": NoisyDigits,
    "recall": Recall,
    "induction": Induction,
    "string_copy": StringCopy,
    "prefix_key": PrefixKeyCopy,
    "copy_memory": CopyMemory,
    "selective_copy": SelectiveCopy,
    "adding": Adding,
    "list_ops": ListOps,
}

__all__ = [
    "NO_SOURCE",
    "TASKS",
    "UNASKED",
    "Adding",
    "Batch",
    "Characters",
    "CopyMemory",
    "Floor",
    "Induction",
    "ListOps",
    "NoisyDigits",
    "PrefixKeyCopy",
    "Recall",
    "RepeatedText",
    "SelectiveCopy",
    "Split",
    "StringCopy",
    "Task",
]
