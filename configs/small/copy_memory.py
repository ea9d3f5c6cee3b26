"""Copy memory: ten symbols, a long blank, then the ten symbols.

Command   python -m experiments.run configs/small/copy_memory.py
Minutes   10, on two shared cores
Expected  at 99 % of seeds 200 to 203 (commit c2da298): 4 of 4 by attention (rotary or learned
          positions), long convolution, and SSD and delta rule with learned positions; without them
          .62 and .78, GRU .78 (learned .87), window .12: chance.
"""

from experiments.config import Config, EvaluateConfig, OptimizerConfig, SweepConfig, TrainConfig
from experiments.tasks import CopyMemory


def get_config() -> Config:
    """Returns the config of the copy memory task."""
    return Config(
        claim=(
            "Attention with rotary positions recalls ten symbols after a blank of 50 tokens; so "
            "may whatever counts: a recurrence, a long convolution. A window of 16 does not reach "
            "that far."
        ),
        task=CopyMemory(delay=50),
        models=(
            "attention,position=rotary",
            "attention,position=learned",
            "window,position=rotary",
            "ssd,num_heads=1",
            "ssd,num_heads=1,position=learned",
            "delta_rule,num_heads=1",
            "delta_rule,num_heads=1,position=learned",
            "gru",
            "gru,position=learned",
            "long_convolution",
        ),
        optimizer=OptimizerConfig(decay_share=0.3),
        sweep=SweepConfig(learning_rates=(1e-3, 3e-3, 1e-2, 3e-2), tuning_seeds=1, seeds=4),
        train=TrainConfig(steps=500, batch_size=32, stop_accuracy=0.9999, checkpoint_every=250),
        evaluate=EvaluateConfig(),
    )
