"""Recall from a context longer than a chip's memory: the sequence is spread over chips.

Command   python -m experiments.run configs/full/long_context.py
          (with --mesh.sequence 256 --task.length 1048576: a million tokens on 256 chips)
Minutes   not run: how it fits, chip by chip, is in benchmarks/README.md (Many chips)
Expected  not run
"""

from experiments.config import Config, EvaluateConfig, ModelConfig, SweepConfig, TrainConfig
from experiments.tasks import Recall


def get_config() -> Config:
    """Returns the config of recall at a length that the command line chooses."""
    return Config(
        claim=(
            "A decoder recalls pairs from anywhere in its context, at any length for which there "
            "are chips: attention goes round them as a ring. A window does not reach them."
        ),
        task=Recall(vocab_size=8192, length=8192, num_pairs=64),
        models=("attention", "window,window=1024"),
        model=ModelConfig(
            width=1024, num_layers=8, num_heads=8, mlp_ratio=4, position="rotary", dtype="bfloat16"
        ),
        sweep=SweepConfig(learning_rates=(3e-4,), seeds=1),
        train=TrainConfig(steps=10_000, batch_size=1, checkpoint_every=500),
        evaluate=EvaluateConfig(num_answers=1_000, batch_size=1, num_probe_rows=0),
    )
