"""Induction heads: trained on 64 tokens, asked on up to 1024, by position code and by mixer.

Command   python -m experiments.run configs/small/induction.py
Minutes   16, on two shared cores
Expected  median accuracy at 64, 256 and 1024 tokens, seeds 200 to 203 (commit 52d38d8): attention
          without a position code and with T5's 1, 1, 1; ALiBi 1, .998, .876; sinusoidal 1, .971,
          .774; rotary 1, .971, .627; GRU and delta rule 1, 1, .9995; SSD 1, 1, .837; LSTM 1, .993,
          .734; long convolution 1, .469, .134; window .536, .185, .093.

Every run is trained to the end of its schedule: one that stopped at the first dispatch without an
error would be asked at other lengths before its rate has fallen.
"""

from experiments.config import Config, EvaluateConfig, OptimizerConfig, SweepConfig, TrainConfig
from experiments.tasks import Induction


def get_config() -> Config:
    """Returns the config of induction heads."""
    return Config(
        claim=(
            "Attention with a short convolution and no position code completes a pattern at "
            "lengths 16 times those it was trained on; position codes but T5's decay beyond them."
        ),
        task=Induction(length=64),
        models=(
            "attention",
            "attention,position=rotary",
            "attention,position=alibi",
            "attention,position=relative",
            "attention,position=sinusoidal",
            "window",
            "ssd,num_heads=1",
            "delta_rule,num_heads=1",
            "gru",
            "lstm",
            "long_convolution",
        ),
        optimizer=OptimizerConfig(decay_share=0.3),
        sweep=SweepConfig(learning_rates=(1e-3, 3e-3, 1e-2, 3e-2), tuning_seeds=1, seeds=4),
        train=TrainConfig(steps=600, batch_size=32, stop_accuracy=None, checkpoint_every=300),
        evaluate=EvaluateConfig(num_answers=2_000, batch_size=20, lengths=(64, 256, 1024)),
    )
