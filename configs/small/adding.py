"""The adding problem: two marked numbers among 100, their sum; a counter-example.

Command   python -m experiments.run configs/small/adding.py
"""

from experiments.config import Config, EvaluateConfig, SweepConfig, TrainConfig
from experiments.tasks import Adding


def get_config() -> Config:
    """Returns the config of the adding problem."""
    return Config(
        claim=(
            "Attention adds two numbers wherever they stand, and so do gated recurrences: "
            "their state need hold one number."
        ),
        task=Adding(length=100),
        models=("attention", "window", "ssd,num_heads=1", "gru", "lstm"),
        sweep=SweepConfig(learning_rates=(1e-3, 3e-3, 1e-2), tuning_seeds=1, seeds=3),
        train=TrainConfig(steps=600, batch_size=32, stop_accuracy=None, checkpoint_every=300),
        evaluate=EvaluateConfig(num_answers=4_000),
    )
