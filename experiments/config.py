"""What a run is made of: frozen dataclasses, and the one place where a default is written.

A file in ``configs/`` returns a ``Config``; the command line may replace any field of it
(``--model.num-heads 8``). A task's own settings are the fields of its class in
``experiments/tasks/``, where they stand beside its definition.
"""

import dataclasses
import math
from typing import Any, Literal, Union, get_args

from experiments.models import MIXERS
from experiments.tasks import TASKS, Induction

AnyTask = Union[tuple(TASKS.values())]  # noqa: UP007 - built from the registry
PositionCode = Literal["none", "learned", "sinusoidal", "rotary"]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The decoder; all mixers of a run share it."""

    width: int = 64
    """D, the width of an embedded token."""
    num_layers: int = 2
    """Layers, each a mixer and, if mlp_ratio is above 0, an MLP."""
    num_heads: int = 2
    """N, the heads of an attention mixer."""
    position: PositionCode = "none"
    """Position code; a causal mixer with a short convolution needs none."""
    short_convolution: int = 3
    """Tokens seen by the causal convolution before every mixer; 0 for no convolution."""
    window: int = 16
    """Keys that a windowed mixer sees from a position, its own included."""
    mlp_ratio: int = 0
    """Width of the MLP's hidden layer over the model width; 0 for no MLP."""

    def __post_init__(self):
        _check(self, "width num_layers num_heads window", lambda x: x >= 1, "1 or more")
        _check(self, "short_convolution mlp_ratio", lambda x: x >= 0, "0 or more")
        _check(self, "width", lambda x: x % self.num_heads == 0, "a multiple of num_heads")
        positions = get_args(PositionCode)
        _check(self, "position", lambda x: x in positions, f"one of {', '.join(positions)}")
        if self.position in ("sinusoidal", "rotary"):
            even = "even (width, and width / num_heads for rotary) for this position code"
            divisor = self.num_heads * 2 if self.position == "rotary" else 2
            _check(self, "width", lambda x: x % divisor == 0, even)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam with decoupled weight decay; the rate warms up linearly and falls to 0 as a cosine."""

    learning_rate: float = 3e-3
    """The peak rate."""
    warmup_steps: int = 50
    """Steps in which the rate rises from 0 to its peak."""
    weight_decay: float = 0.0
    """Decoupled weight decay, per step and unit of learning rate."""
    clip_norm: float = 1.0
    """Gradients of greater global norm are scaled down to this one."""

    def __post_init__(self):
        _check(self, "learning_rate", lambda x: 0 < x < math.inf, "above 0")
        _check(self, "clip_norm", lambda x: x > 0, "above 0")
        _check(self, "warmup_steps weight_decay", lambda x: 0 <= x < math.inf, "0 or more")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, on how much, and how often the state is written."""

    steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 64
    """Rows a step; every row is fresh."""
    steps_per_dispatch: int = 25
    """Steps that run on the device without coming back to the host."""
    checkpoint_every: int = 100
    """Steps between checkpoints: at most so much is computed again after a kill."""

    def __post_init__(self):
        fields = "steps batch_size steps_per_dispatch checkpoint_every"
        _check(self, fields, lambda x: x >= 1, "1 or more")
        divides = "a multiple of steps_per_dispatch"
        _check(self, "steps checkpoint_every", lambda x: x % self.steps_per_dispatch == 0, divides)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """What the trained model is asked."""

    num_answers: int = 10_000
    """Answers asked at each length, at least."""
    batch_size: int = 64
    """Rows evaluated at once."""
    lengths: tuple[int, ...] = ()
    """Row lengths to evaluate at; empty for the task's own."""
    num_maps: int = 16
    """Rows whose attention maps are taken, to see the weight on each answer's source."""

    def __post_init__(self):
        _check(self, "num_answers batch_size num_maps", lambda x: x >= 1, "1 or more")
        _check(self, "lengths", lambda x: all(length >= 1 for length in x), "lengths of 1 or more")


@dataclasses.dataclass(frozen=True)
class Config:
    """One run: a task, the mixers compared on it, and everything that determines their numbers."""

    claim: str = ""
    """What the run is to show, in one sentence."""
    task: AnyTask = dataclasses.field(default_factory=Induction)  # pyright: ignore
    """The task and its settings."""
    mixers: tuple[str, ...] = ("attention", "window")
    """What is compared, the first being the claim's subject; names of experiments.models.MIXERS."""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    """The decoder that all mixers share."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    """How it learns."""
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    """How long it learns."""
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)
    """What it is asked then."""
    seed: int = 0
    """Determines initial parameters and the order of the data."""

    def __post_init__(self):
        known = f"one or more of {', '.join(MIXERS)}, each once"
        _check(
            self,
            "mixers",
            lambda names: names and set(names) <= set(MIXERS) and len(set(names)) == len(names),
            known,
        )
        _check(self, "seed", lambda x: 0 <= x < 2**31 - 1, "in [0, 2^31 - 1)")
        for length in self.evaluation_lengths:
            self.task.with_length(length)
        if self.model.position == "learned" and max(self.evaluation_lengths) > self.task.length:
            raise ValueError(
                f"evaluate.lengths is {self.evaluate.lengths}; expected none above the task's "
                f"{self.task.length}, for a learned position code knows no others"
            )

    @property
    def evaluation_lengths(self) -> tuple[int, ...]:
        """Row lengths that evaluation asks for."""
        return self.evaluate.lengths or (self.task.length,)

    @property
    def tokens(self) -> int:
        """Tokens that each mixer is trained on."""
        return self.train.steps * self.train.batch_size * self.task.length


def to_dict(config: Config) -> dict[str, Any]:
    """Returns the config as plain values, the task with its name in the registry."""
    names = {task: name for name, task in TASKS.items()}
    plain = dataclasses.asdict(config)
    plain["task"] = {"name": names[type(config.task)], **plain["task"]}
    return plain


def _check(config: Any, names: str, accept: Any, expected: str) -> None:
    for name in names.split():
        value = getattr(config, name)
        if not accept(value):
            raise ValueError(f"{name} is {value!r}; expected {expected}")
