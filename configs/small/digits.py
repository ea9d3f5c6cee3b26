"""Attention classifies a real digit after 120 rows of noise, which a window of 16 does not reach.

Command   python -m experiments.run configs/small/digits.py
Minutes   14, on two shared cores
Expected  median accuracy of seeds 200 to 204 (commit 52d38d8): GRU .963, attention .927, delta rule
          .919, SSD .10 (.10 to .90), window .10: chance; at 16 to 64 rows the same.

Each of some 360 test images is asked about 29 times, under other noise: intervals over answers are
too narrow for other images, those over seeds are of these.
"""

from experiments.config import Config, EvaluateConfig, OptimizerConfig, SweepConfig, TrainConfig
from experiments.tasks import NoisyDigits


def get_config() -> Config:
    """Returns the config of noise-padded digits."""
    return Config(
        claim=(
            "Attention classifies a digit whose pixels stand 120 rows of noise before the "
            "question; the same model with a window of 16 rows does not reach them."
        ),
        task=NoisyDigits(length=128),
        models=(
            "attention",
            "window",
            "ssd,num_heads=1",
            "delta_rule,num_heads=1",
            "gru",
        ),
        optimizer=OptimizerConfig(decay_share=0.3),
        sweep=SweepConfig(learning_rates=(1e-3, 3e-3, 1e-2, 3e-2), tuning_seeds=1, seeds=5),
        train=TrainConfig(steps=400, batch_size=32, stop_accuracy=None, checkpoint_every=200),
        evaluate=EvaluateConfig(num_answers=10_295, batch_size=71, lengths=(16, 32, 64, 128)),
    )
