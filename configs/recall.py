"""Attention recalls the value of a key at every distance; a window of 16 up to its reach.

Command   python -m experiments.run configs/recall.py
"""

from experiments.config import Config, EvaluateConfig, ModelConfig, OptimizerConfig, TrainConfig
from experiments.tasks import Recall


def get_config() -> Config:
    """Returns the config of multi-query associative recall (MQAR)."""
    return Config(
        claim=(
            "Asked for the value of a key, attention recalls it at every distance; the same model "
            "with a window of 16 tokens does so within its receptive field and not beyond."
        ),
        task=Recall(vocab_size=256, length=64, num_pairs=8),
        model=ModelConfig(num_heads=1),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        train=TrainConfig(steps=1200, batch_size=64),
        evaluate=EvaluateConfig(num_answers=40_000),
    )
