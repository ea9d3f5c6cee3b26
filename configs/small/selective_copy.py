"""Selective copying: tokens at random places among noise, recalled in order.

Command   python -m experiments.run configs/small/selective_copy.py
Minutes   12, on two shared cores
Expected  median accuracy, seeds 200 to 203 (commit c2da298): SSD with learned positions .985 (1 of
          4 at 99 %), attention .964 (learned .959), delta rule .759 (learned .952, 2 of 4 at 99 %),
          GRU .80 (learned .85), SSD .67, long convolution .65, window .42.
"""

from experiments.config import Config, EvaluateConfig, OptimizerConfig, SweepConfig, TrainConfig
from experiments.tasks import SelectiveCopy


def get_config() -> Config:
    """Returns the config of selective copying."""
    return Config(
        claim=(
            "What is to be remembered stands at random places, so a mixer whose weights "
            "depend on the input is needed; a fixed long convolution is not enough."
        ),
        task=SelectiveCopy(length=64, num_tokens=8),
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
        train=TrainConfig(steps=600, batch_size=32, stop_accuracy=0.9999, checkpoint_every=300),
        evaluate=EvaluateConfig(),
    )
