"""Seconds: attention finds a token again at any distance, a window of 4 does not.

Command   python -m experiments.run configs/smoke.py
Minutes   1, on two cores of a shared Intel Xeon, most of them compilation
Expected  attention 100 % from both seeds, window 17 %: chance (6.2 %) beyond its reach of 10.
"""

from experiments.config import Config, EvaluateConfig, ModelConfig, SweepConfig, TrainConfig
from experiments.tasks import Induction


def get_config() -> Config:
    """Returns the config of the run that tests and continuous integration train."""
    return Config(
        claim="Attention completes a pattern wherever it first stood; a window of 4 does not.",
        task=Induction(length=32),
        model=ModelConfig(num_heads=1, window=4),
        train=TrainConfig(steps=150, stop_accuracy=0.999, checkpoint_every=50),
        sweep=SweepConfig(learning_rates=(3e-3, 1e-2), tuning_seeds=1, seeds=2),
        evaluate=EvaluateConfig(num_answers=2000),
    )
