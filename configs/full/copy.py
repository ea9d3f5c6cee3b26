"""String copy as in Repeat After Me: up to 50 letters, asked at 50 to 1,000.

Command   python -m experiments.run configs/full/copy.py
For one GPU or TPU; it has not been run. The task and its lengths are the paper's (arXiv
2402.01032); models, steps, batch and rates are ours.
"""

from experiments.config import Config, EvaluateConfig, ModelConfig, SweepConfig, TrainConfig
from experiments.tasks import StringCopy


def get_config() -> Config:
    """Returns the config of string copying at the lengths of the paper."""
    return Config(
        claim=(
            "Attention copies whole strings from few examples; mixers with a bounded state "
            "need many more."
        ),
        task=StringCopy(max_characters=50),
        models=(
            "attention",
            "attention,position=rotary",
            "attention,position=alibi",
            "ssd",
            "delta_rule",
            "gru",
            "lstm",
        ),
        model=ModelConfig(width=256, num_layers=4, num_heads=4, mlp_ratio=4),
        sweep=SweepConfig(tuning_seeds=2, seeds=5),
        train=TrainConfig(steps=20_000, batch_size=64, stop_accuracy=0.9999, checkpoint_every=1000),
        evaluate=EvaluateConfig(batch_size=16, lengths=(102, 202, 402, 1002, 2002)),
    )
