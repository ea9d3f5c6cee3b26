"""Run folders made by hand: what figures and pages are drawn from, without any training."""

import json

import numpy as np

from experiments.config import Config, EvaluateConfig, ModelConfig, SweepConfig, TrainConfig
from experiments.evaluate import Answers, summarise
from experiments.models.decoder import receptive_field, state_bytes
from experiments.probes import packed
from experiments.records import RunFolder
from experiments.runs import Run
from experiments.tasks import NO_SOURCE, Induction
from experiments.train import StepMetrics

ENVIRONMENT = {
    "device": "cpu (cpu)",
    "devices": 1,
    "processes": 1,
    "cores": 2,
    "machine": "Linux x86_64",
    "python": "3.12.1",
    "packages": {"jax": "0.10.0"},
    "commit": "0123456789ab",
    "command": ["run.py", "configs/a b.py", "--seed", "3"],
}
STATUS = {"finished": 1, "reached": 2, "diverged": 3}


def small_config(**changes):
    """Two models, three seeds, two lengths, a search over two rates."""
    settings = {
        "claim": "Attention finds it <everywhere>; a window | does not.",
        "task": Induction(length=16),
        "models": ("attention", "window"),
        "model": ModelConfig(window=4),
        "sweep": SweepConfig(learning_rates=(1e-3, 1e-2), tuning_seeds=2, seeds=3),
        "train": TrainConfig(steps=40, batch_size=8, steps_per_dispatch=10, checkpoint_every=20),
        "evaluate": EvaluateConfig(lengths=(16, 32), cost_lengths=(16, 32), num_probe_rows=2),
        **changes,
    }
    return Config(**settings)


def answers(accuracy, length, *, rows=50, rng=None, sources="all"):
    """Answers of which exactly this share is right (to 1 / (4 rows)), at every distance."""
    rng = rng or np.random.default_rng(0)
    shape = (rows, 4)
    right = np.arange(rows * 4).reshape(shape) % (rows * 4) < round(accuracy * rows * 4)
    right = rng.permutation(right.ravel()).reshape(shape)
    positions = np.broadcast_to(np.arange(length - 4, length), shape)
    distances = rng.integers(1, length - 4, shape)
    distances[0] = 1
    if sources == "none":
        distances = np.full(shape, NO_SOURCE)
    elif sources == "half":
        distances[:, :2] = NO_SOURCE
    loss = np.where(right, 0.1, 3.0)
    return Answers(right, loss, np.ones(shape, bool), positions, distances)


def inside(config, model, length):
    """What the probes would see of a model that has weights."""
    settings = config.model_of(model)
    rng = np.random.default_rng(1)
    maps = rng.random((settings.num_layers, settings.num_heads, length, length))
    maps = np.tril(maps**4)
    maps = maps / maps.sum(-1, keepdims=True)
    wrong, right = (1.0, 1.05), (0.5, 0.53)
    if config.task.num_classes is not None:
        wrong, right = "dx", "ee"
    example = {
        "tokens": [chr(97 + i % 26) for i in range(length)],
        "answers": [
            {"position": length - 1, "source": 3, "target": wrong[0], "predicted": wrong[1]},
            {
                "position": length - 2,
                "source": NO_SOURCE,
                "target": right[0],
                "predicted": right[1],
            },
        ],
        "source_width": 1,
        "maps": packed(maps),
    }
    mass = rng.random((settings.num_layers, settings.num_heads))
    layer, head = (int(i) for i in np.unravel_index(mass.argmax(), mass.shape))
    reach = receptive_field(settings) or length
    decay = [0.2 * 0.9**d if d <= reach else 0.0 for d in range(length)]
    uniform = {"uniform": 0.0625}
    seen = {
        "attention": None,
        "blocked": None,
        "gradient": {
            "initial": {"share_at_source": 0.05, "norm": 0.5, "by_distance": decay} | uniform,
            "trained": {"share_at_source": 0.45, "norm": 7.0, "by_distance": decay[::-1]} | uniform,
        },
    }
    if settings.mixer in ("attention", "window"):
        best = {"layer": layer, "head": head, "mass": float(mass.max())}
        seen["attention"] = {"mass_on_source": mass.tolist(), "uniform": 0.0625, "best": best}
        blocked = {"open": 0.9, "source": 0.125, "hidden": 0.0625, "elsewhere": 0.875}
        seen["blocked"] = {"answers": 4} | blocked
        seen["examples"] = [example, example]
    return seen


def make_run(
    parent,
    config,
    accuracies,
    *,
    name="induction",
    statuses=None,
    sources="all",
    finished=True,
):
    """Returns the folder of a run whose models reached these accuracies, seed by seed."""
    folder = RunFolder.of(config, name, parent)
    folder.write_config(config)
    folder.begin(ENVIRONMENT)
    for model, of_seeds in accuracies.items():
        record = folder.model(model)
        of_status = (statuses or {}).get(model, ["finished"] * len(of_seeds))
        rates = config.sweep.learning_rates
        if len(rates) > 1:
            tried = [Run(seed, rate) for rate in rates for seed in config.tuning_seeds]
            fill(record.stage("search", tried), config, [0.5] * len(tried))
            middle = sorted(of_seeds)[len(of_seeds) // 2]
            of_rates = dict.fromkeys(rates, 0.5) | {rates[-1]: middle}
            scores = [
                {
                    **run._asdict(),
                    "status": "finished",
                    "steps": 40,
                    "accuracy": of_rates[run.learning_rate],
                    "loss": 1.5,
                }
                for run in tried
            ]
            record.write_search({"runs": scores, "chosen": rates[-1]})
        runs = [Run(seed, rates[-1]) for seed in config.reported_seeds]
        stage = record.stage("fresh", runs)
        fill(stage, config, of_seeds, of_status)
        settings = config.model_of(model)
        rng = np.random.default_rng(2)
        evaluation = {
            "model": model,
            "parameters": 1234,
            "state_bytes": state_bytes(settings, config.task.length),
            "reach": receptive_field(settings),
            "learning_rate": rates[-1],
            "runs": [
                {
                    **run._asdict(),
                    "status": status,
                    "steps": config.train.steps,
                    "steps_to_threshold": stage.steps_to(config.evaluate.success_accuracy, i),
                    "lengths": {
                        str(n): summarise(answers(accuracy, n, rng=rng, sources=sources))
                        for n in config.evaluation_lengths
                    },
                }
                for i, (run, status, accuracy) in enumerate(
                    zip(runs, of_status, of_seeds, strict=True)
                )
            ],
            "inside": [
                {"seed": run.seed, **inside(config, model, config.task.length)} for run in runs
            ],
        }
        cost = [
            {"length": n, "milliseconds": n / 10, "temporary_bytes": 1000.0 * n}
            for n in config.evaluate.cost_lengths
        ]
        seconds = {"train": 12.3, "evaluate": 4.5}
        record.write_evaluation(evaluation, {"cost": cost, "seconds": seconds})
    if finished:
        floors = {
            str(length): {
                name: floor._asdict()
                for name, floor in config.task.with_length(length).floors(()).items()
            }
            for length in config.evaluation_lengths
        }
        folder.finish({"floors": floors, "seconds": 60.0})
    return folder


def fill(stage, config, accuracies, statuses=None):
    """Writes learning curves that rise to these accuracies; a diverged run stops half way."""
    dispatch, steps = config.train.steps_per_dispatch, config.train.steps
    statuses = statuses or ["finished"] * len(accuracies)
    for step in range(dispatch, steps + 1, dispatch):
        stopped = [status == "diverged" and step > steps / 2 for status in statuses]
        reached = np.array(accuracies) * step / steps
        reached = np.where(stopped, np.nan, reached)
        codes = [STATUS[status] if step == steps else 0 for status in statuses]
        stage.append(
            StepMetrics(
                step=np.full(len(accuracies), step),
                status=np.array(codes),
                loss=3 - 2 * reached,
                accuracy=reached,
                gradient_norm=np.ones(len(accuracies)),
            )
        )


def rewrite(folder, model, change):
    """Applies a change to the evaluation of a model as it stands on the disk."""
    path = folder.path / model / "evaluation.json"
    evaluation = json.loads(path.read_text())
    change(evaluation)
    path.write_text(json.dumps(evaluation))
