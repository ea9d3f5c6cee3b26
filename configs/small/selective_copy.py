"""Selective copying: tokens at random places among noise, recalled in order.

Command   python -m experiments.run configs/small/selective_copy.py
"""

from experiments.config import Config, EvaluateConfig, ModelConfig, SweepConfig, TrainConfig
from experiments.tasks import SelectiveCopy


def get_config() -> Config:
    """Returns the config of selective copying."""
    return Config(
        claim=(
            "What is to be remembered stands at random places, so a mixer whose weights "
            "depend on the input is needed; a fixed long convolution is not enough."
        ),
        task=SelectiveCopy(length=96, num_tokens=8),
        models=(
            "attention,position=rotary",
            "attention",
            "window",
            "ssd",
            "delta_rule",
            "gru",
            "lstm",
            "long_convolution",
        ),
        model=ModelConfig(num_heads=1),
        sweep=SweepConfig(tuning_seeds=1, seeds=3),
        train=TrainConfig(steps=800, batch_size=32, stop_accuracy=0.9999, checkpoint_every=400),
        evaluate=EvaluateConfig(),
    )
