"""What a run is made of: frozen dataclasses, and the one place where a default is written.

A file in ``configs/`` returns a ``Config``; the command line may replace any field of it
(``--model.num-heads 8``). A task's own settings are the fields of its class in
``experiments/tasks/``, where they stand beside its definition; where a run is computed is set in
``experiments.mesh`` and ``experiments.processes``.

The models that a run compares are named by what sets them apart: a mixer, and the fields of
``ModelConfig`` in which it differs from ``Config.model``, as in ``attention,position=rotary`` or
``gru,short_convolution=0,width=128``.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any, Literal, Union, get_args

from experiments.checks import check
from experiments.mesh import MeshConfig
from experiments.models import MIXERS, POSITIONS
from experiments.processes import ProcessesConfig
from experiments.tasks import TASKS, Induction

AnyTask = Union[tuple(TASKS.values())]  # noqa: UP007 - built from the registry
PositionCode = Literal[tuple(POSITIONS)]
DType = Literal["float32", "bfloat16"]

MAX_SEED = 2**30
"""Above every seed that a run can be given; the seeds of searches and of tests lie beyond."""
TUNING_SEED = MAX_SEED + 200
"""The first of every search: that of the first results, which were reported on seeds 200 on."""
PARSERS: dict[type, Callable[[str], Any]] = {
    str: str,
    int: int,
    float: float,
    bool: {"True": True, "False": False}.__getitem__,
}
"""Of the values of settings that a model's name changes, by the type of their default."""
NEAR = 1.5
"""Steps that a lower learning rate may take, times those of the soonest, to be chosen."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The decoder. The models of a run share it but for what their names change."""

    mixer: str = "attention"
    """What mixes positions; a name of experiments.models.MIXERS."""
    width: int = 64
    """D, the width of an embedded token."""
    num_layers: int = 2
    """Layers, each a mixer and, if mlp_ratio is above 0, an MLP."""
    num_heads: int = 2
    """N, the heads of an attention mixer."""
    position: PositionCode = "none"  # pyright: ignore
    """Position code; a causal mixer with a short convolution needs none."""
    short_convolution: int = 3
    """Tokens seen by the causal convolution before every mixer; 0 for no convolution."""
    window: int = 16
    """Keys that a windowed mixer sees from a position, its own included."""
    mlp_ratio: int = 0
    """Width of the MLP's hidden layer over the model width; 0 for no MLP."""
    dtype: DType = "float32"
    """Of what a layer passes on and multiplies; parameters, losses and long sums are float32."""

    def __post_init__(self):
        check(self, "width num_layers num_heads window", lambda x: x >= 1, "1 or more")
        check(self, "short_convolution mlp_ratio", lambda x: x >= 0, "0 or more")
        check(self, "width", lambda x: x % self.num_heads == 0, "a multiple of num_heads")
        check(self, "mixer", lambda x: x in MIXERS, f"one of {', '.join(MIXERS)}")
        check(self, "position", lambda x: x in POSITIONS, f"one of {', '.join(POSITIONS)}")
        check(self, "dtype", lambda x: x in get_args(DType), f"one of {', '.join(get_args(DType))}")
        position = POSITIONS[self.position]
        if position.needs_scores:
            takers = [name for name, mixer in MIXERS.items() if mixer.takes_scores]
            expected = f"one of {', '.join(takers)} for the position code {self.position!r}"
            check(self, "mixer", lambda x: x in takers, expected)
        divisor = position.divisor(self.num_heads)
        multiple = f"a multiple of {divisor} for the position code {self.position!r}"
        check(self, "width", lambda x: x % divisor == 0, multiple)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam with decoupled weight decay; the rate rises linearly, stays, and falls as a cosine."""

    warmup_steps: int = 50
    """Steps in which the rate rises from 0 to its peak."""
    decay_share: float = 1.0
    """Share of all steps, the last of them, in which the rate falls to 0; at most all after the
    warm-up."""
    weight_decay: float = 0.0
    """Decoupled weight decay, per step and unit of learning rate."""
    clip_norm: float = 1.0
    """Gradients of greater global norm are scaled down to this one."""

    def __post_init__(self):
        check(self, "clip_norm", lambda x: x > 0, "above 0")
        check(self, "decay_share", lambda x: 0 <= x <= 1, "in [0, 1]")
        check(self, "warmup_steps weight_decay", lambda x: 0 <= x < math.inf, "0 or more")


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """Which runs each model is given: a search for its learning rate, then fresh seeds."""

    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    """Peak rates that are tried; one of them for no search."""
    tuning_seeds: int = 2
    """Runs a rate in the search; their seeds are never reported, and never change."""
    seeds: int = 5
    """Fresh runs at the chosen rate: what is reported."""

    def __post_init__(self):
        check(self, "tuning_seeds seeds", lambda x: x >= 1, "1 or more")
        check(
            self,
            "learning_rates",
            lambda rates: (
                rates
                and all(0 < rate < math.inf for rate in rates)
                and list(rates) == sorted(set(rates))
            ),
            "one or more rates above 0, in rising order",
        )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, on how much, and how often the state is written."""

    steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 64
    """Rows a step, drawn anew; of real data and of ListOps from a pool of rows."""
    steps_per_dispatch: int = 25
    """Steps that run on the device without coming back to the host; metrics are their means."""
    stop_accuracy: float | None = None
    """A run stops once so many of a dispatch's answers with a source are right; None for never."""
    checkpoint_every: int = 100
    """Steps between checkpoints: at most so much is computed again after a kill."""

    def __post_init__(self):
        fields = "steps batch_size steps_per_dispatch checkpoint_every"
        check(self, fields, lambda x: x >= 1, "1 or more")
        divides = "a multiple of steps_per_dispatch"
        check(self, "steps checkpoint_every", lambda x: x % self.steps_per_dispatch == 0, divides)
        check(self, "stop_accuracy", lambda x: x is None or 0 < x <= 1, "in (0, 1], or None")


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """What the trained model is asked."""

    num_answers: int = 10_000
    """Answers asked of each run at each length, at least; of those of the search on the valid
    split."""
    batch_size: int = 64
    """Rows evaluated at once."""
    lengths: tuple[int, ...] = ()
    """Row lengths to evaluate at; empty for the task's own."""
    success_accuracy: float = 0.99
    """A run has succeeded if so many of its test answers are right; the threshold, too, of the
    steps that it took."""
    num_probe_rows: int = 128
    """Rows on which the probes look inside: attention maps, blocked sources, gradients; 0 for no
    probes, where rows are too long for a map."""
    cost_lengths: tuple[int, ...] = ()
    """Row lengths at which time and memory of a training step are measured; empty for none."""

    def __post_init__(self):
        check(self, "num_answers batch_size", lambda x: x >= 1, "1 or more")
        check(self, "num_probe_rows", lambda x: x >= 0, "0 or more")
        check(self, "success_accuracy", lambda x: 0 < x <= 1, "in (0, 1]")
        in_range = "lengths of 1 or more"
        check(self, "lengths cost_lengths", lambda x: all(n >= 1 for n in x), in_range)


@dataclasses.dataclass(frozen=True)
class Config:
    """One run: a task, the models compared on it, and everything that determines their numbers."""

    claim: str = ""
    """What the run is to show, in one sentence."""
    task: AnyTask = dataclasses.field(default_factory=Induction)  # pyright: ignore
    """The task and its settings."""
    models: tuple[str, ...] = ("attention", "window")
    """What is compared, the claim's subject first: a mixer each, and where it differs from
    ``model`` (attention,position=rotary)."""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    """The decoder that all models share, but for what their names change."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    """How they learn."""
    sweep: SweepConfig = dataclasses.field(default_factory=SweepConfig)
    """At which rates, and from how many seeds."""
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    """How long they learn."""
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)
    """What they are asked then."""
    seed: int = 0
    """The first of the reported seeds: of initial parameters and the order of the data."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    """Where it is computed; no part of what is."""
    processes: ProcessesConfig = dataclasses.field(default_factory=ProcessesConfig)
    """By which processes; no part of what is computed."""

    def __post_init__(self):
        check(self, "models", _are_distinct, "one or more, each once")
        end = MAX_SEED - self.sweep.seeds + 1
        check(self, "seed", lambda x: 0 <= x < end, f"in [0, {end})")
        models = [self.model_of(name) for name in self.models]
        for length in self.evaluation_lengths + self.evaluate.cost_lengths:
            self.task.with_length(length)
        self._check_mesh(models)
        longest = max(self.evaluation_lengths + self.evaluate.cost_lengths)
        for position in {model.position for model in models}:
            if not POSITIONS[position].knows_any_length and longest > self.task.length:
                raise ValueError(
                    f"evaluate.lengths or cost_lengths has {longest}; expected none above the "
                    f"task's {self.task.length}, for a {position} position code knows no others"
                )

    def _check_mesh(self, models: list[ModelConfig]) -> None:
        lengths = {self.task.length, *self.evaluation_lengths}
        heads = {model.num_heads for model in models if MIXERS[model.mixer].has_weights}
        for name, divided, sizes in (
            ("data", "train.batch_size", {self.train.batch_size}),
            ("sequence", "the lengths of rows", lengths),
            ("model", "num_heads of attention", heads),
        ):
            parts, sizes = getattr(self.mesh, name), sorted(sizes)
            if any(size % parts for size in sizes):
                every = f"{divided}: {', '.join(map(str, sizes))}"
                raise ValueError(f"mesh.{name} is {parts}; expected a divisor of {every}")

    def model_of(self, name: str) -> ModelConfig:
        """Returns the settings of one of ``models``; ValueError if its name has no meaning."""
        mixer, *changes = name.split(",")
        fields = {field.name: field for field in dataclasses.fields(ModelConfig)}
        settings: dict[str, Any] = {"mixer": mixer}
        for change in changes:
            field, _, value = change.partition("=")
            if field not in fields or field == "mixer":
                known = ", ".join(sorted(set(fields) - {"mixer"}))
                raise ValueError(
                    f"models has {name!r}; expected a mixer and changes FIELD=VALUE after commas, "
                    f"FIELD being one of {known}"
                )
            kind = type(fields[field].default)
            try:
                settings[field] = PARSERS[kind](value)
            except (KeyError, ValueError) as error:
                known = kind.__name__ if kind in PARSERS else "one that can be written in a name"
                raise ValueError(
                    f"models has {name!r}; expected {field} to be of type {known}"
                ) from error
        try:
            return dataclasses.replace(self.model, **settings)
        except ValueError as error:
            raise ValueError(f"models has {name!r}: {error}") from error

    @property
    def evaluation_lengths(self) -> tuple[int, ...]:
        """Row lengths that evaluation asks for."""
        return self.evaluate.lengths or (self.task.length,)

    @property
    def reported_seeds(self) -> tuple[int, ...]:
        """Seeds of the runs that are reported."""
        return tuple(range(self.seed, self.seed + self.sweep.seeds))

    @property
    def tuning_seeds(self) -> tuple[int, ...]:
        """Seeds of the search, apart from all that are reported; none if there is one rate.

        They are the same whatever ``seed`` is: so other seeds are trained at the same rates.
        """
        if len(self.sweep.learning_rates) == 1:
            return ()
        return tuple(range(TUNING_SEED, TUNING_SEED + self.sweep.tuning_seeds))

    @property
    def runs_per_model(self) -> int:
        """Runs that a model is given, those of the search included."""
        return len(self.tuning_seeds) * len(self.sweep.learning_rates) + self.sweep.seeds

    @property
    def tokens_per_run(self) -> int:
        """Tokens that a run is trained on if it does not stop early."""
        return self.train.steps * self.train.batch_size * self.task.length


@dataclasses.dataclass(frozen=True)
class Suite:
    """Several configs that are run one after the other and reported on one page."""

    claim: str
    """What they show together, in one sentence."""
    members: tuple[str, ...]
    """Files of configs, beside the suite's own."""
    add_models: tuple[str, ...] = ()
    """What every member compares besides its own models; those that are done are not done again."""
    quick: bool = False
    """Whether each is cut down (``quick``): every figure in minutes, its numbers rough."""
    seed: int = 0
    """Replaces that of every member, as do the following."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    """Where it is computed."""
    processes: ProcessesConfig = dataclasses.field(default_factory=ProcessesConfig)
    """By which processes."""

    def __post_init__(self):
        def have_names(members: tuple[str, ...]) -> bool:
            return _are_distinct(tuple(pathlib.PurePath(member).stem for member in members))

        check(self, "members", have_names, "one or more, no two of one name")


def quick(config: Config) -> Config:
    """Returns the config with a tenth of its work: one layer, one rate, two seeds, few models.

    Of the first mixer, the first of bounded reach and the first that keeps no weights (a
    recurrence, where there is one), one model of each width; of the first mixer, one of each
    position code where several lengths are asked.
    """
    rates, train, evaluate = config.sweep.learning_rates, config.train, config.evaluate
    steps = max(train.steps // 4 // train.steps_per_dispatch, 1) * train.steps_per_dispatch
    return dataclasses.replace(
        config,
        models=_few_models(config),
        model=dataclasses.replace(config.model, num_layers=1),
        sweep=SweepConfig(learning_rates=(rates[len(rates) // 2],), seeds=2),
        train=dataclasses.replace(train, steps=steps, checkpoint_every=steps),
        evaluate=dataclasses.replace(
            evaluate,
            num_answers=min(evaluate.num_answers, 1000),
            lengths=evaluate.lengths[:3],
            cost_lengths=evaluate.cost_lengths[:2],
        ),
    )


def _few_models(config: Config) -> tuple[str, ...]:
    settings = {name: config.model_of(name) for name in config.models}
    mixers = {model.mixer: MIXERS[model.mixer].reach(model) for model in settings.values()}
    first, *others = mixers
    bounded = [m for m in others if mixers[m] is not None]
    recurrent = [m for m in others if not MIXERS[m].has_weights]
    few: dict[tuple[str, int, str], str] = {}
    for name, model in settings.items():
        position = model.position if model.mixer == first and config.evaluate.lengths[1:] else ""
        if model.mixer in (first, *bounded[:1], *(recurrent or others)[:1]):
            few.setdefault((model.mixer, model.width, position), name)
    return tuple(few.values())


def to_dict(config: Config) -> dict[str, Any]:
    """Returns the config as plain values, the task with its name in the registry.

    Without where and by which processes it is computed: that is the environment's to say.
    """
    names = {task: name for name, task in TASKS.items()}
    plain = dataclasses.asdict(config)
    del plain["mesh"], plain["processes"]
    plain["task"] = {"name": names[type(config.task)], **plain["task"]}
    return plain


def from_dict(plain: dict[str, Any]) -> Config:
    """Returns the config that ``to_dict`` made these plain values of."""
    task = {name: value for name, value in plain["task"].items() if name != "name"}
    parts = {
        "task": TASKS[plain["task"]["name"]](**_tuples(task)),
        "model": ModelConfig(**_tuples(plain["model"])),
        "optimizer": OptimizerConfig(**_tuples(plain["optimizer"])),
        "sweep": SweepConfig(**_tuples(plain["sweep"])),
        "train": TrainConfig(**_tuples(plain["train"])),
        "evaluate": EvaluateConfig(**_tuples(plain["evaluate"])),
    }
    return Config(claim=plain["claim"], models=tuple(plain["models"]), seed=plain["seed"], **parts)


def _tuples(plain: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}


def _are_distinct(names: tuple[str, ...]) -> bool:
    return len(names) > 0 and len(set(names)) == len(names)
