"""The adding problem at T = 600, as in Bai et al.

Command   python -m experiments.run configs/full/adding.py
For one GPU or TPU; it has not been run. T and the loss are the paper's (arXiv 1803.01271); models,
steps, batch and rates are ours.
"""

from experiments.config import Config, EvaluateConfig, ModelConfig, SweepConfig, TrainConfig
from experiments.tasks import Adding


def get_config() -> Config:
    """Returns the config of the adding problem."""
    return Config(
        claim=(
            "Attention adds two numbers at every distance, and so do gated recurrences: a "
            "counter-example."
        ),
        task=Adding(length=600),
        models=("attention", "window", "ssd", "delta_rule", "gru", "lstm", "long_convolution"),
        model=ModelConfig(num_heads=1),
        sweep=SweepConfig(tuning_seeds=2, seeds=5),
        train=TrainConfig(steps=10_000, batch_size=64, checkpoint_every=1000),
        evaluate=EvaluateConfig(lengths=(600,)),
    )
