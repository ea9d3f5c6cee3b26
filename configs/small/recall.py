"""Multi-query associative recall by every mixer but the LSTM.

Command   python -m experiments.run configs/small/recall.py
Minutes   27, on two shared cores
Expected  at 99 % of seeds 200 to 209 (commit 0545cb7): attention, delta rule and SSD 10 of 10, all
          others 0. Median accuracy: window 0.26, GRU and long convolution 0.12, which is 1/8: any
          value of the row.
"""

from experiments.config import Config, EvaluateConfig, OptimizerConfig, SweepConfig, TrainConfig
from experiments.tasks import Recall


def get_config() -> Config:
    """Returns the config of multi-query associative recall (MQAR)."""
    return Config(
        claim=(
            "Asked for the value of a key, attention recalls it at every distance. At equal width "
            "and the same sweep, a mixer with a bounded receptive field does not beyond it; of "
            "those with a bounded state the delta rule does, and others may."
        ),
        task=Recall(vocab_size=256, length=64, num_pairs=8),
        models=(
            "attention",
            "window",
            "ssd,num_heads=1",
            "delta_rule,num_heads=1",
            "gru",
            "long_convolution",
            "none",
        ),
        optimizer=OptimizerConfig(decay_share=0.3),
        sweep=SweepConfig(learning_rates=(1e-3, 3e-3, 1e-2, 3e-2), tuning_seeds=1, seeds=10),
        train=TrainConfig(steps=1600, batch_size=32, stop_accuracy=0.999, checkpoint_every=400),
        evaluate=EvaluateConfig(cost_lengths=(256, 1024)),
    )
