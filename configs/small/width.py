"""Recall against width: how wide must a model be, and how large its state?

Command   python -m experiments.run configs/small/width.py
Minutes   10, on two shared cores
Expected  at 99 % of seeds 200 to 203 (commit 0545cb7), by width 16, 32 and 64: attention 2, 3 and 4
          of 4 (one seed at .11, one at .22), delta rule 0, 0 and 4 (medians .913, .982, .992), SSD
          0 (.05, .71, .98), GRU 0 (.14, .23, .25).
"""

from experiments.config import Config, EvaluateConfig, OptimizerConfig, SweepConfig, TrainConfig
from experiments.tasks import Recall

MIXERS = ("attention", "delta_rule,num_heads=1", "ssd,num_heads=1", "gru")
WIDTHS = (16, 32, 64)


def get_config() -> Config:
    """Returns the config of recall at several widths."""
    return Config(
        claim=(
            "Attention can recall at every width that holds the vocabulary apart, if not from "
            "every seed; what a mixer with a bounded state recalls grows with its width."
        ),
        task=Recall(vocab_size=256, length=64, num_pairs=4),
        models=tuple(f"{mixer},width={width}" for mixer in MIXERS for width in WIDTHS),
        optimizer=OptimizerConfig(decay_share=0.3),
        sweep=SweepConfig(learning_rates=(1e-3, 3e-3, 1e-2, 3e-2), tuning_seeds=1, seeds=4),
        train=TrainConfig(steps=400, batch_size=32, stop_accuracy=0.999, checkpoint_every=200),
        evaluate=EvaluateConfig(),
    )
