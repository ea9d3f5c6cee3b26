"""Noise-padded digits in rows of 1,024.

Command   python -m experiments.run configs/full/digits.py
          and the same with --task.fold 1, 2, 3 and 4: then every image has been tested once
For one GPU or TPU; it has not been run. The protocol is that of noise-padded CIFAR
(AntisymmetricRNN, arXiv 1902.09689), on other images; models, steps, batch and rates are ours.
"""

from experiments.config import Config, EvaluateConfig, ModelConfig, SweepConfig, TrainConfig
from experiments.tasks import NoisyDigits


def get_config() -> Config:
    """Returns the config of noise-padded digits."""
    return Config(
        claim=(
            "Attention classifies a digit whose pixels stand a thousand rows of noise before "
            "the question."
        ),
        task=NoisyDigits(length=1024),
        models=("attention", "window", "ssd", "delta_rule", "gru", "lstm", "long_convolution"),
        model=ModelConfig(num_heads=1),
        sweep=SweepConfig(tuning_seeds=2, seeds=5),
        train=TrainConfig(steps=5_000, batch_size=64, checkpoint_every=1000),
        evaluate=EvaluateConfig(
            num_answers=10_295, batch_size=71, lengths=(16, 64, 256, 1024), num_probe_rows=4
        ),
    )
