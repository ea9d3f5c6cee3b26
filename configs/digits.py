"""Attention classifies a real digit after 120 rows of noise; a window of 16 cannot.

Command   python -m experiments.run configs/digits.py
Minutes   4, on two cores of a shared Intel Xeon
Expected  trained on rows of 128: attention 92 % at 128 and 92 to 94 % at 64, 32 and 16; window at
          chance (10 %) at all, for it had nothing to learn from at the length of training. Seed 0.
"""

from experiments.config import Config, EvaluateConfig, ModelConfig, OptimizerConfig, TrainConfig
from experiments.tasks import NoisyDigits


def get_config() -> Config:
    """Returns the config of noise-padded digits."""
    return Config(
        claim=(
            "Attention classifies a digit whose pixels stand 120 rows of noise before the "
            "question; the same model with a window of 16 rows cannot."
        ),
        task=NoisyDigits(length=128),
        model=ModelConfig(num_heads=1),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        train=TrainConfig(steps=800, batch_size=32),
        # As many answers as there are test images, which are drawn with replacement: the interval
        # must not be narrower than they allow.
        evaluate=EvaluateConfig(num_answers=355, batch_size=71, lengths=(16, 32, 64, 128)),
    )
