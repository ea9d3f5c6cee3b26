"""Language modelling of characters, by how many stand before.

Command   python -m experiments.run configs/full/characters.py
For one GPU or TPU; it has not been run. The settings are ours: there is no paper.
"""

from experiments.config import Config, EvaluateConfig, ModelConfig, SweepConfig, TrainConfig
from experiments.tasks import Characters


def get_config() -> Config:
    """Returns the config of language modelling of characters."""
    return Config(
        claim=(
            "With every character that it has read, attention says the next one better, up to a "
            "thousand; a window's loss stays where its reach ends."
        ),
        task=Characters(num_characters=1024),
        models=(
            "attention,position=rotary",
            "attention",
            "window,position=rotary",
            "ssd",
            "delta_rule",
            "gru",
            "lstm",
        ),
        model=ModelConfig(width=256, num_layers=4, num_heads=4, mlp_ratio=4),
        sweep=SweepConfig(tuning_seeds=1, seeds=3),
        train=TrainConfig(steps=10_000, batch_size=32, checkpoint_every=1000),
        evaluate=EvaluateConfig(num_answers=500_000, batch_size=16, num_probe_rows=4),
    )
