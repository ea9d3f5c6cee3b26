"""Induction heads at a million tokens, as in Mamba, table 11, by what reads on at a fixed cost.

Command   python -m experiments.run configs/full/induction_recurrent.py
For one GPU or TPU; it has not been run. The task, its lengths, layers and width are the paper's
(arXiv 2312.00752, appendix E.1); steps, batch and rates are ours. configs/full/induction.py has
attention, whose cost grows with the square of the length, up to 16,384 tokens.
"""

from experiments.config import Config, EvaluateConfig, SweepConfig, TrainConfig
from experiments.tasks import Induction


def get_config() -> Config:
    """Returns the config of induction heads by recurrences, far beyond the length of training."""
    return Config(
        claim=(
            "Trained on 256 tokens, recurrences complete a pattern at lengths thousands of times "
            "as great; where they stop, their state has forgotten it."
        ),
        task=Induction(length=256),
        models=("ssd", "delta_rule", "gru", "lstm"),
        sweep=SweepConfig(tuning_seeds=2, seeds=5),
        train=TrainConfig(steps=20_000, batch_size=64, stop_accuracy=0.9999, checkpoint_every=1000),
        evaluate=EvaluateConfig(
            num_answers=256, batch_size=1, lengths=(256, 2**12, 2**16, 2**20), num_probe_rows=0
        ),
    )
