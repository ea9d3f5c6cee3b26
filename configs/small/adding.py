"""The adding problem: two marked numbers among 200, their sum; a counter-example.

Command   python -m experiments.run configs/small/adding.py
Minutes   17, on two shared cores
Expected  median squared error of seeds 200 to 203 (commit 52d38d8): GRU 0.8e-4, attention 2.0e-4,
          SSD 3.3e-4; at 99 % within .04: GRU 4 of 4, attention 3, SSD none.
"""

from experiments.config import Config, EvaluateConfig, OptimizerConfig, SweepConfig, TrainConfig
from experiments.tasks import Adding


def get_config() -> Config:
    """Returns the config of the adding problem."""
    return Config(
        claim=(
            "Attention adds two numbers wherever they stand, and so do gated recurrences: "
            "their state need hold one number."
        ),
        task=Adding(length=200),
        models=(
            "attention,num_heads=4",
            "ssd,num_heads=1",
            "gru",
        ),
        optimizer=OptimizerConfig(decay_share=0.5),
        sweep=SweepConfig(learning_rates=(1e-3, 3e-3, 1e-2, 3e-2), tuning_seeds=1, seeds=4),
        train=TrainConfig(steps=800, batch_size=32, stop_accuracy=None, checkpoint_every=400),
        evaluate=EvaluateConfig(num_answers=10_000, cost_lengths=(128, 256, 512, 1024)),
    )
