"""The prefix key of Repeat After Me: a counter-example, where bounded states generalise.

Command   python -m experiments.run configs/full/prefix_key.py
For one GPU or TPU; it has not been run. The task is the paper's (arXiv 2402.01032); models, steps,
batch and rates are ours.
"""

from experiments.config import Config, EvaluateConfig, ModelConfig, SweepConfig, TrainConfig
from experiments.tasks import PrefixKeyCopy


def get_config() -> Config:
    """Returns the config of n-gram lookup with the key first, at the lengths of the paper."""
    return Config(
        claim=(
            "Where the key comes before the string, mixers with a bounded state look it up as they "
            "read, at lengths at which attention without a position code or with ALiBi does not."
        ),
        task=PrefixKeyCopy(max_characters=50),
        models=(
            "attention",
            "attention,position=alibi",
            "attention,position=rotary",
            "ssd",
            "delta_rule",
            "gru",
            "lstm",
        ),
        model=ModelConfig(width=256, num_layers=4, num_heads=4, mlp_ratio=4),
        sweep=SweepConfig(tuning_seeds=2, seeds=5),
        train=TrainConfig(steps=20_000, batch_size=64, stop_accuracy=0.9999, checkpoint_every=1000),
        evaluate=EvaluateConfig(batch_size=16, lengths=(59, 109, 209, 409, 1009)),
    )
