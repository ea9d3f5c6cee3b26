"""Figures are drawn from records alone: records made by hand give pictures with something in."""

import matplotlib.image
import numpy as np

from experiments import plot
from experiments.config import Config, EvaluateConfig, TrainConfig
from experiments.evaluate import Answers, summarise
from experiments.records import RunFolder
from experiments.tasks import NO_SOURCE, Chance, Induction, RepeatedText
from experiments.train import StepMetrics

TRAIN = TrainConfig(steps=10, steps_per_dispatch=5, checkpoint_every=10)
CHANCE = Chance(0.1, 4.0)


def make_evaluation(config, mixer, distances):
    rng = np.random.default_rng(0)
    shape = distances.shape
    positions = np.broadcast_to(np.arange(shape[1]), shape)
    correct = rng.integers(0, 2, shape).astype(np.float32)
    summary = summarise(Answers(correct, rng.gamma(2, 1, shape), positions, distances))
    length = config.task.length
    sources = np.where(distances[0] == NO_SOURCE, NO_SOURCE, length - 1 - distances[0])
    weights = np.tril(np.ones((length, length)))
    attention = {
        "mass_on_source": [[0.1], [0.7]],
        "uniform": 0.1,
        "best": {"layer": 1, "head": 0, "mass": 0.7},
        "example": {
            "map": (weights / weights.sum(1, keepdims=True)).tolist(),
            "positions": [length - 1] * shape[1],
            "sources": sources.tolist(),
            "spans": [0, 2],
        },
    }
    return {
        "mixer": mixer,
        "parameters": 1,
        "lengths": {str(length): summary for length in config.evaluation_lengths},
        "attention": attention if mixer == "attention" else None,
    }


def draw(config, tmp_path, distances):
    folder = RunFolder.of(config, "name", tmp_path)
    losses = np.linspace(3, 1, config.train.steps, dtype=np.float32)
    for mixer in config.mixers:
        folder.mixer(mixer).append(0, StepMetrics(losses, losses, losses))
        folder.mixer(mixer).write_evaluation(make_evaluation(config, mixer, distances))
    names = plot.draw_all(config, folder, CHANCE)
    assert sorted(names) == sorted(path.name for path in folder.figures.iterdir())
    for name in names:
        pixels = matplotlib.image.imread(folder.figures / name)
        assert min(pixels.shape[:2]) > 300
        assert pixels[..., :3].std() > 0.02, f"{name} is empty"
    return {name.removesuffix(".png") for name in names}


def test_a_task_with_many_distances_and_lengths(tmp_path):
    config = Config(
        task=Induction(length=16), train=TRAIN, evaluate=EvaluateConfig(lengths=(16, 32))
    )
    distances = np.arange(1, 15)[:, None]
    assert draw(config, tmp_path, distances) == {
        "headline",
        "accuracy_by_distance",
        "accuracy_by_length",
        "learning_curves",
        "attention_maps",
    }


def test_a_task_with_a_source_for_some_answers(tmp_path):
    config = Config(task=RepeatedText(num_characters=16, path=__file__), train=TRAIN)
    distances = np.full((5, 31), 15)
    distances[:, :15] = NO_SOURCE
    figures = draw(config, tmp_path, distances)
    assert figures == {"headline", "bits_by_position", "learning_curves", "attention_maps"}


def test_no_mixer_with_attention_weights(tmp_path):
    config = Config(task=Induction(length=16), train=TRAIN, mixers=("window",))
    figures = draw(config, tmp_path, np.full((5, 1), 3))
    assert figures == {"learning_curves"}
