"""The adding problem: two marked numbers among 100, their sum; a counter-example.

Command   python -m experiments.run configs/small/adding.py
"""

from experiments.config import Config, EvaluateConfig, ModelConfig, SweepConfig, TrainConfig
from experiments.tasks import Adding


def get_config() -> Config:
    """Returns the config of the adding problem."""
    return Config(
        claim=(
            "Attention adds two numbers wherever they stand, and so do gated recurrences: "
            "their state need hold one number."
        ),
        task=Adding(length=100),
        models=("attention", "window", "ssd", "delta_rule", "gru", "lstm", "long_convolution"),
        model=ModelConfig(num_heads=1),
        sweep=SweepConfig(tuning_seeds=1, seeds=3),
        train=TrainConfig(steps=600, batch_size=32, stop_accuracy=None, checkpoint_every=400),
        evaluate=EvaluateConfig(num_answers=4_000),
    )
