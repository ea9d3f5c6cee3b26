"""Trained on rows of 64 tokens, attention without a position code is right on rows of 1024.

Command   python -m experiments.run configs/induction.py
Minutes   5, on two cores of a shared Intel Xeon
Expected  attention 100 % at 64, 128, 256, 512 and 1024 tokens (1,000 answers each, so at least
          99.6 % with 95 % confidence); window 53, 33, 17, 11 and 10 % (chance 6.2 %). Seed 0.
"""

from experiments.config import Config, EvaluateConfig, ModelConfig, OptimizerConfig, TrainConfig
from experiments.tasks import Induction


def get_config() -> Config:
    """Returns the config of induction heads."""
    return Config(
        claim=(
            "Attention with a short convolution and no position code completes a pattern at "
            "lengths 16 times those it was trained on; the same model with a window of 16 does "
            "not even at the length of training."
        ),
        task=Induction(length=64),
        model=ModelConfig(num_heads=1),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        train=TrainConfig(steps=500, batch_size=64),
        evaluate=EvaluateConfig(
            num_answers=1_000, batch_size=20, lengths=(64, 128, 256, 512, 1024)
        ),
    )
