"""Selective copying in the setting of MAD: 16 tokens in rows of 256.

Command   python -m experiments.run configs/full/selective_copy.py
For one GPU or TPU; it has not been run. Vocabulary, length, number of tokens and width are the
paper's (arXiv 2403.17844); steps, batch and rates are ours.
"""

from experiments.config import Config, EvaluateConfig, ModelConfig, SweepConfig, TrainConfig
from experiments.tasks import SelectiveCopy


def get_config() -> Config:
    """Returns the config of selective copying."""
    return Config(
        claim=(
            "What is to be remembered stands at random places: mixers whose weights depend on "
            "the input copy it, a fixed convolution does not."
        ),
        task=SelectiveCopy(vocab_size=16, length=256, num_tokens=16),
        models=(
            "attention,position=rotary",
            "attention",
            "ssd",
            "delta_rule",
            "gru",
            "lstm",
            "long_convolution",
        ),
        model=ModelConfig(width=128, num_heads=4, mlp_ratio=2),
        sweep=SweepConfig(tuning_seeds=2, seeds=5),
        train=TrainConfig(steps=20_000, batch_size=64, stop_accuracy=0.9999, checkpoint_every=1000),
        evaluate=EvaluateConfig(num_answers=20_000),
    )
