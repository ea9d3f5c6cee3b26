"""Recall against width, with twice the pairs in rows of twice the length of small/width.py.

Command   python -m experiments.run configs/small/width_long.py
Minutes   22, on two shared cores
Expected  at 99 % of seeds 200 to 203 (commit 6777a77), by width 16, 32 and 64: attention 3, 4 and 4
          of 4 (one seed at .06), delta rule 0, 3 and 4 (medians .798, .992, .999), SSD 0, 0 and 2
          (.02, .90, .98).
"""

from experiments.config import Config, EvaluateConfig, OptimizerConfig, SweepConfig, TrainConfig
from experiments.tasks import Recall

MIXERS = ("attention,num_heads=4", "delta_rule,num_heads=1", "ssd,num_heads=1")
WIDTHS = (16, 32, 64)


def get_config() -> Config:
    """Returns the config of recall of many pairs at several widths."""
    return Config(
        claim=(
            "Eight pairs are more than a narrow state holds: what a mixer with a bounded state "
            "recalls of them falls sooner with its width than what attention does."
        ),
        task=Recall(vocab_size=256, length=128, num_pairs=8),
        models=tuple(f"{mixer},width={width}" for mixer in MIXERS for width in WIDTHS),
        optimizer=OptimizerConfig(decay_share=0.3),
        sweep=SweepConfig(learning_rates=(1e-3, 3e-3, 1e-2, 3e-2), tuning_seeds=1, seeds=4),
        train=TrainConfig(steps=600, batch_size=32, stop_accuracy=0.999, checkpoint_every=300),
        evaluate=EvaluateConfig(),
    )
