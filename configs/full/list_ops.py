"""ListOps as in the Long Range Arena: 500 to 2,000 tokens, trees of depth ten.

Command   python -m experiments.run configs/full/list_ops.py
For one GPU or TPU; it has not been run. The rows are drawn by the law of arXiv 2011.04006, from a
pool of 16,384 in the place of 96,000, of which a run sees each about twenty times; models, steps,
batch and rates are ours.
The root operator alone and the majority class stand beside every score (the floors).
"""

from experiments.config import Config, EvaluateConfig, ModelConfig, SweepConfig, TrainConfig
from experiments.tasks import ListOps


def get_config() -> Config:
    """Returns the config of ListOps."""
    return Config(
        claim=(
            "No claim: this task says little of long range, for the root operator alone "
            "scores as well as a Transformer."
        ),
        task=ListOps(),
        models=("attention,position=sinusoidal", "attention", "ssd", "delta_rule", "gru", "lstm"),
        model=ModelConfig(width=128, num_layers=4, num_heads=4, mlp_ratio=4),
        sweep=SweepConfig(tuning_seeds=1, seeds=3),
        train=TrainConfig(steps=10_000, batch_size=32, checkpoint_every=1000),
        evaluate=EvaluateConfig(num_answers=4_096, batch_size=16, num_probe_rows=2),
    )
