"""The records of a run as its figures and pages read them: by model, seed and length.

A *score* of a run is that of the answers that have a source (``with_source``), or of all answers
where none has. The *own* length is the one that the models were trained at or, if evaluation did
not ask for that, the first that it asked for.
"""

import dataclasses
import functools
from typing import Any

from experiments import statistics
from experiments.config import Config, ModelConfig
from experiments.models.decoder import receptive_field
from experiments.records import ModelRecord, RunFolder
from experiments.tasks import Floor

WIDER = 2.0
"""How much wider than for normal values the interval of a mean of seeds is. So 95 % of the means of
the small suite are inside that was made again, with other seeds at the same rates (README)."""

Evaluation = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Results:
    """What one run folder holds, read once."""

    name: str
    """Of the run, without the digest of its config."""
    folder: RunFolder
    config: Config
    floors_by_length: dict[int, dict[str, Floor]]
    """Of trivial predictors on the rows that are asked; empty until the run has finished."""
    evaluations: dict[str, Evaluation]
    """Of the models that have been evaluated, in the order of ``config.models``."""

    @classmethod
    def load(cls, folder: RunFolder) -> "Results":
        """Returns the results of a folder; of one that has not finished, what is there."""
        config = folder.config
        records = {model: ModelRecord(folder.path / model) for model in config.models}
        floors = (folder.finished or {}).get("floors", {})
        return cls(
            name=folder.path.resolve().name.rpartition("-")[0] or folder.path.resolve().name,
            folder=folder,
            config=config,
            floors_by_length={
                int(length): {name: Floor(**floor) for name, floor in of_length.items()}
                for length, of_length in floors.items()
            },
            evaluations={m: r.evaluation for m, r in records.items() if r.is_evaluated},
        )

    @property
    def models(self) -> list[str]:
        """The models that have been evaluated."""
        return list(self.evaluations)

    @property
    def lengths(self) -> list[int]:
        """The lengths of rows that were asked."""
        return list(self.config.evaluation_lengths)

    @property
    def length(self) -> int:
        """The own length of the run; see the module docstring."""
        own = self.config.task.length
        return own if own in self.lengths else self.lengths[0]

    @property
    def floors(self) -> dict[str, Floor]:
        """Those of rows of the own length."""
        return self.floors_by_length.get(self.length, {})

    @property
    def is_number(self) -> bool:
        """Whether answers are numbers, and losses squared errors rather than bits."""
        return self.config.task.num_classes is None

    @property
    def tolerance(self) -> float:
        """By how much less than this a number may be off and still be right."""
        return self.config.task.tolerance  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def loss_unit(self) -> str:
        """What a loss is measured in."""
        return "squared error" if self.is_number else "bits / answer"

    @property
    def threshold(self) -> float:
        """The accuracy from which on a run has succeeded."""
        return self.config.evaluate.success_accuracy

    @property
    def seeds(self) -> int:
        """How many seeds a model is reported on."""
        return self.config.sweep.seeds

    def settings(self, model: str) -> ModelConfig:
        """Returns what a model is made of."""
        return self.config.model_of(model)

    def reach(self, model: str) -> int | None:
        """Returns the distance beyond which a model cannot see, None if there is none."""
        return receptive_field(self.settings(model))

    def runs(self, model: str) -> list[dict[str, Any]]:
        """Returns what each fresh run of a model reached."""
        return self.evaluations[model]["runs"]

    def asked(self, model: str, length: int | None = None) -> list[dict[str, Any]]:
        """Returns what each fresh run of a model answered at a length, by default the own one."""
        key = str(self.length if length is None else length)
        return [run["lengths"][key] for run in self.runs(model)]

    def scores(self, model: str, metric: str, length: int | None = None) -> list[float]:
        """Returns ``accuracy`` or ``loss`` of each fresh run of a model."""
        return [main_score(asked)[metric] for asked in self.asked(model, length)]

    def median(self, model: str, metric: str = "accuracy", length: int | None = None) -> float:
        """Returns the median of ``scores``."""
        return statistics.median(self.scores(model, metric, length))

    def success(self, model: str) -> statistics.SuccessRate:
        """Returns how many runs of a model succeeded at the own length; no diverged one has."""
        reached = [
            0.0 if run["status"] == "diverged" else accuracy
            for run, accuracy in zip(self.runs(model), self.scores(model, "accuracy"), strict=True)
        ]
        return statistics.success_rate(reached, self.threshold)

    def steps_to_threshold(self, model: str) -> statistics.Survival:
        """Returns the estimated shares of runs that are not at the threshold yet, by step.

        A run that has diverged would never have got there: it counts to the last step.
        """
        times, observed = [], []
        for run in self.runs(model):
            reached, followed = run["steps_to_threshold"], run["steps"]
            if run["status"] == "diverged":
                followed = self.config.train.steps
            times.append(followed if reached is None else reached)
            observed.append(reached is not None)
        return statistics.kaplan_meier(times, observed)

    def mean(
        self,
        model: str,
        metric: str = "accuracy",
        length: int | None = None,
        group: str = "",
        wider: float = WIDER,
    ) -> tuple[float, tuple[float, float]]:
        """Returns the mean of a model's seeds, and where that of as many other seeds falls.

        The interval is ``statistics.repeated_mean_interval``, and of accuracy at least Wilson's
        over all their answers, which seeds that happen to agree would fall below. Of one seed it
        is that over test rows, which says nothing of other seeds.

        Args:
          model: one of ``models``.
          metric: ``accuracy`` or ``loss``.
          length: of rows; the own one by default.
          group: ``with_source`` or ``without_source``; by default what a run is scored by.
          wider: than for normal values, by how much the interval is.
        """
        found = [x[group] if group else main_score(x) for x in self.asked(model, length)]
        values = [x[metric] for x in found]
        mean = sum(values) / len(values)
        if len(values) == 1:
            return mean, tuple(found[0][f"{metric}_interval"])
        low, high = statistics.repeated_mean_interval(values, wider=wider)
        if metric == "loss":
            return mean, (max(low, 0.0), high)
        answers = sum(x["answers"] for x in found)
        least, most = statistics.wilson_interval(mean * answers, answers)
        return mean, (max(min(low, least), 0.0), min(max(high, most), 1.0))

    def variants(self) -> dict[str, list[str]]:
        """Returns the models of each mixer, the one that did best in the search first.

        That one a summary shows of a mixer: chosen on rows and seeds that are never reported, as
        its learning rate is. Of several widths, only those of the config's own, at which mixers are
        alike. Where nothing was searched they stand in the order of the config.
        """
        families: dict[str, list[str]] = {}
        for model in self.models:
            families.setdefault(mixer_of(model), []).append(model)
        width = self.config.model.width
        return {
            mixer: sorted(
                [m for m in models if self.settings(m).width == width] or models,
                key=self._validation,
            )
            for mixer, models in families.items()
        }

    def _validation(self, model: str) -> tuple[float, float]:
        """Returns what sorts models by how they did in the search at the rate that was chosen."""
        tried = self.tried(model)
        if not tried:
            return 0.0, 0.0
        accuracy, loss = ([run[x] for run in tried] for x in ("accuracy", "loss"))
        return -statistics.median(accuracy), statistics.median(loss)

    def tried(self, model: str) -> list[dict[str, Any]]:
        """Returns how the runs of the search did at the rate that was chosen, on valid rows."""
        found = self.search(model) or {"runs": [], "chosen": None}
        return [run for run in found["runs"] if run["learning_rate"] == found["chosen"]]

    def rival(self, model: str) -> str | None:
        """Returns what a model is compared with: the first model, at its width if there is one.

        None for what is itself compared with.
        """
        first, width = self.config.models[0], self.settings(model).width
        of_mixer = (m for m in self.config.models if mixer_of(m) == mixer_of(first))
        found = next((m for m in of_mixer if self.settings(m).width == width), first)
        return None if found == model or found not in self.models else found

    @property
    def some_have_no_source(self) -> bool:
        """Whether some answers can be read in their rows and others cannot."""
        asked = self.asked(self.models[0])[0]  # the same rows of every model
        return {"with_source", "without_source"} <= set(asked)

    def blocked(self, model: str) -> dict[str, float] | None:
        """Returns accuracy by what was blocked, the median of seeds; None of what has no weights.

        ``answers`` is of how many each is (``experiments.probes.blocked_accuracy``).
        """
        seen = [x["blocked"] for x in self.evaluations[model]["inside"] if x["blocked"]]
        return {k: statistics.median([x[k] for x in seen]) for k in seen[0]} if seen else None

    def columns(self, model: str, group: str, value: str, length: int | None = None) -> Any:
        """Returns a column of ``by_distance`` or ``by_position`` of each fresh run."""
        return [asked[group][value] for asked in self.asked(model, length)]

    def bins(self) -> list[tuple[int, int]]:
        """Returns the ends of the bins of distance at the own length, the same for every run."""
        if not self.models:
            return []
        found = self.asked(self.models[0])[0]["by_distance"]
        return list(zip(found["from"], found["to"], strict=True))

    @functools.cached_property
    def metrics(self) -> dict[str, dict[str, list[dict[str, Any]]]]:
        """The dispatches of each model's stages."""
        return {
            model: {name: stage.metrics() for name, stage in self._record(model).stages().items()}
            for model in self.models
        }

    def search(self, model: str) -> dict[str, Any] | None:
        """Returns what the search for a model's learning rate found, if there was one."""
        return self._record(model).search

    def seconds(self, model: str) -> tuple[float, float]:
        """Returns the seconds that a model took to train, all starts together, and to evaluate."""
        found = self.evaluations[model]["seconds"]
        return found["train"], found["evaluate"]

    def _record(self, model: str) -> ModelRecord:
        # Not RunFolder.model, which makes the folder: reading leaves no trace.
        return ModelRecord(self.folder.path / model)


def main_score(asked: dict[str, Any]) -> dict[str, Any]:
    """Returns the score of the answers that have a source, or of all if none has."""
    return asked.get("with_source") or asked["without_source"]


def changes(model: str) -> dict[str, str]:
    """Returns in what a model differs from its run's decoder, beside the mixer, by its name."""
    return dict(change.split("=", 1) for change in model.split(",")[1:])


def mixer_of(model: str) -> str:
    """Returns the mixer that a model's name opens with."""
    return model.split(",")[0]
