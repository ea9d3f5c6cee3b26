"""Copy memory: ten symbols, a long blank, then the ten symbols.

Command   python -m experiments.run configs/small/copy_memory.py
"""

from experiments.config import Config, EvaluateConfig, ModelConfig, SweepConfig, TrainConfig
from experiments.tasks import CopyMemory


def get_config() -> Config:
    """Returns the config of the copy memory task."""
    return Config(
        claim=(
            "Attention with rotary positions and gated recurrences recall ten symbols after "
            "a blank of 50 tokens; a window of 16 cannot."
        ),
        task=CopyMemory(delay=50),
        models=(
            "attention,position=rotary",
            "attention",
            "window,position=rotary",
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
