"""Real text read twice, 512 characters.

Command   python -m experiments.run configs/full/text.py
For one GPU or TPU; it has not been run. The settings are ours: there is no paper.
"""

from experiments.config import Config, EvaluateConfig, ModelConfig, SweepConfig, TrainConfig
from experiments.tasks import RepeatedText


def get_config() -> Config:
    """Returns the config of repeated text."""
    return Config(
        claim=(
            "Reading a text for the second time, attention recalls it from 511 characters "
            "back; a window does not, and a bounded state as far as it holds the text."
        ),
        task=RepeatedText(num_characters=512),
        models=(
            "attention,position=rotary",
            "attention",
            "window",
            "ssd",
            "delta_rule",
            "gru",
            "lstm",
        ),
        model=ModelConfig(width=256, num_layers=4, num_heads=4, mlp_ratio=4),
        sweep=SweepConfig(tuning_seeds=1, seeds=3),
        train=TrainConfig(steps=10_000, batch_size=32, checkpoint_every=1000),
        evaluate=EvaluateConfig(num_answers=200_000, batch_size=16, num_probe_rows=16),
    )
