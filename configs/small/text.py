"""Real text read twice: what the second reading recalls, and what the first does not.

Command   python -m experiments.run configs/small/text.py
Minutes   10, on two shared cores
Expected  median bits a character on the second reading, seeds 200 to 203 (commit 52d38d8): long
          convolution 0.021, attention 0.032 (accuracy .998 both), SSD 2.52, GRU 2.54, delta rule
          2.69, window 2.74.
"""

from experiments.config import Config, EvaluateConfig, OptimizerConfig, SweepConfig, TrainConfig
from experiments.tasks import RepeatedText


def get_config() -> Config:
    """Returns the config of repeated text."""
    return Config(
        claim=(
            "Reading a text for the second time, attention recalls it from 95 characters back. "
            "At equal width, a window of 16 does not, and a mixer with a bounded state as far as "
            "that holds the text; on the first reading they may be the better."
        ),
        task=RepeatedText(num_characters=96),
        models=(
            "attention,position=rotary",
            "window,position=rotary",
            "ssd,num_heads=1,position=learned",
            "delta_rule,num_heads=1,position=learned",
            "gru,position=learned",
            "long_convolution",
        ),
        optimizer=OptimizerConfig(decay_share=0.5),
        sweep=SweepConfig(learning_rates=(1e-3, 3e-3, 1e-2, 3e-2), tuning_seeds=1, seeds=4),
        train=TrainConfig(steps=400, batch_size=16, stop_accuracy=None, checkpoint_every=200),
        evaluate=EvaluateConfig(num_answers=50_000),
    )
