"""Induction heads as in Mamba, table 11: trained on 256 tokens, asked on up to 16,384.

Command   python -m experiments.run configs/full/induction.py
For one GPU or TPU; it has not been run. The task, its lengths, layers and width are the paper's
(arXiv 2312.00752, appendix E.1); steps, batch and rates are ours.
"""

from experiments.config import Config, EvaluateConfig, ModelConfig, SweepConfig, TrainConfig
from experiments.tasks import Induction


def get_config() -> Config:
    """Returns the config of induction heads at the lengths of the paper."""
    return Config(
        claim=(
            "Attention with a short convolution and no position code completes a pattern at "
            "lengths 64 times those it was trained on; position codes decay beyond them."
        ),
        task=Induction(length=256),
        models=(
            "attention",
            "attention,short_convolution=0,position=sinusoidal",
            "attention,short_convolution=0,position=rotary",
            "attention,position=rotary",
            "attention,position=alibi",
            "attention,position=relative",
            "ssd",
            "delta_rule",
            "long_convolution",
            "gru",
            "lstm",
        ),
        model=ModelConfig(num_heads=2),
        sweep=SweepConfig(tuning_seeds=2, seeds=5),
        train=TrainConfig(steps=20_000, batch_size=64, stop_accuracy=0.9999, checkpoint_every=1000),
        evaluate=EvaluateConfig(
            num_answers=2_000, batch_size=4, lengths=(256, 512, 1024, 2048, 4096, 8192, 16384)
        ),
    )
