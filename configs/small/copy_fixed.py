"""String copy, all strings of 48 letters: what a rotary code learns of one length, and only of it.

Command   python -m experiments.run configs/small/copy_fixed.py
Minutes   10, on two shared cores
Expected  seeds 200 to 203 (commit 0545cb7): attention with a rotary code copies all strings of 48
          whole in 4 of 4, and is at chance on strings of 96 (.036); without a code .969 of letters,
          .934 at 96; delta rule .682, SSD .538, GRU .125, window .048.
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
