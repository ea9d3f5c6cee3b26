"""Recall by four mixers without the short convolution before them.

Command   python -m experiments.run configs/small/no_convolution.py
Minutes   12, on two shared cores
Expected  at 99 % of seeds 200 to 203 (commit 52d38d8): attention with learned positions 4 of 4,
          delta rule with and without them 3 (the fourth .26 and .29), SSD and GRU 0. Median
          accuracy: attention without positions .977, SSD and GRU with learned ones .25, which is
          1/4: any value of the row.

Smaller than small/recall.py, where attention without the convolution is still naming any value of
the row after 1,600 steps, whatever its position code.
"""

from experiments.config import (
    Config,
    EvaluateConfig,
    ModelConfig,
    OptimizerConfig,
    SweepConfig,
    TrainConfig,
)
from experiments.tasks import Recall


def get_config() -> Config:
    """Returns the config of recall without short convolutions."""
    return Config(
        claim=(
            "Without the short convolution before it attention still learns recall, from learned "
            "positions."
        ),
        task=Recall(vocab_size=64, length=32, num_pairs=4),
        models=(
            "attention,position=learned",
            "attention",
            "ssd,num_heads=1,position=learned",
            "delta_rule,num_heads=1,position=learned",
            "delta_rule,num_heads=1",
            "gru,position=learned",
        ),
        model=ModelConfig(short_convolution=0),
        optimizer=OptimizerConfig(decay_share=0.3),
        sweep=SweepConfig(learning_rates=(1e-3, 3e-3, 1e-2, 3e-2), tuning_seeds=1, seeds=4),
        train=TrainConfig(steps=1500, batch_size=64, stop_accuracy=0.999, checkpoint_every=500),
        evaluate=EvaluateConfig(),
    )
