"""MQAR as in Zoology, figure 2, by width: its hardest panel, and the commands of the others.

Command   python -m experiments.run configs/full/recall.py
          python -m experiments.run configs/full/recall.py --task.length 64 --task.num-pairs 4
          python -m experiments.run configs/full/recall.py --task.length 128 --task.num-pairs 8
          python -m experiments.run configs/full/recall.py --task.length 256 --task.num-pairs 16
For one GPU or TPU; it has not been run. Vocabulary, lengths, pairs, their places, widths and number
of rates are the paper's (arXiv 2312.04927); steps and batch are ours.
"""

from experiments.config import Config, EvaluateConfig, ModelConfig, SweepConfig, TrainConfig
from experiments.tasks import Recall


def get_config() -> Config:
    """Returns the config of recall in rows of 512 tokens."""
    return Config(
        claim=(
            "Attention recalls at every width; what a mixer with a bounded state recalls "
            "grows with its width."
        ),
        task=Recall(vocab_size=8192, length=512, num_pairs=64, slot_power=0.01),
        models=tuple(
            f"{mixer},width={width}"
            for mixer in ("attention", "delta_rule", "ssd", "long_convolution", "gru")
            for width in (64, 128, 256, 512)
        ),
        model=ModelConfig(num_heads=1, mlp_ratio=4),
        sweep=SweepConfig(learning_rates=(1e-4, 4.6e-4, 2.2e-3, 1e-2), tuning_seeds=1, seeds=3),
        train=TrainConfig(
            steps=25_000, batch_size=256, stop_accuracy=0.9999, checkpoint_every=1000
        ),
        evaluate=EvaluateConfig(num_answers=100_000),
    )
