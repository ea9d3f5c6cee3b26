"""String copy: strings of up to 32 letters, asked at 32, 64 and 128.

Command   python -m experiments.run configs/small/copy.py
Minutes   13, on two shared cores
Expected  median accuracy of a letter at 32, 64 and 128 letters, seeds 200 to 203 (commit 0545cb7):
          attention .976, .949, .897; with ALiBi .976, .948, .887; rotary .989, .633, .335; delta
          rule .861, .580, .235; SSD .749, .529, .311; GRU .257, .136, .065; window .087 (rotary
          .144), chance beyond.

Of 31 pairs of letters in a row, drawn from 676, half of all strings of 32 have one twice, so a
model that goes by the last two letters copies few strings whole; small/copy_fixed.py is the other
case.
"""

from experiments.config import Config, EvaluateConfig, OptimizerConfig, SweepConfig, TrainConfig
from experiments.tasks import StringCopy


def get_config() -> Config:
    """Returns the config of string copying."""
    return Config(
        claim=(
            "Attention copies nearly all letters of strings of up to 32; at equal width, a mixer "
            "with a bounded state copies as many as that holds."
        ),
        task=StringCopy(),
        models=(
            "attention,position=rotary",
            "attention",
            "attention,position=alibi",
            "window",
            "window,position=rotary",
            "ssd,num_heads=1",
            "delta_rule,num_heads=1",
            "gru",
        ),
        optimizer=OptimizerConfig(decay_share=0.3),
        sweep=SweepConfig(learning_rates=(1e-3, 3e-3, 1e-2, 3e-2), tuning_seeds=1, seeds=4),
        train=TrainConfig(steps=500, batch_size=32, stop_accuracy=0.9999, checkpoint_every=250),
        evaluate=EvaluateConfig(lengths=(66, 130, 258)),
    )
