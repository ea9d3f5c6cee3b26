"""String copy, all strings of 48 letters: what a rotary code learns of one length, and only of it.

Command   python -m experiments.run configs/small/copy_fixed.py
"""

from experiments.config import Config, EvaluateConfig, OptimizerConfig, SweepConfig, TrainConfig
from experiments.tasks import StringCopy


def get_config() -> Config:
    """Returns the config of copying strings of one length."""
    return Config(
        claim=(
            "Where all strings are of 48 letters, attention with a rotary code copies them whole: "
            "it learns the distance. At any other length that is of no use, and the same model "
            "without a position code, which goes by the letters, copies more."
        ),
        task=StringCopy(min_characters=48, max_characters=48),
        models=(
            "attention,position=rotary",
            "attention",
            "window,position=rotary",
            "ssd,num_heads=1",
            "delta_rule,num_heads=1",
            "gru",
        ),
        optimizer=OptimizerConfig(decay_share=0.3),
        sweep=SweepConfig(learning_rates=(1e-3, 3e-3, 1e-2, 3e-2), tuning_seeds=1, seeds=4),
        train=TrainConfig(steps=300, batch_size=32, stop_accuracy=0.9999, checkpoint_every=150),
        evaluate=EvaluateConfig(lengths=(98, 194)),
    )
