"""String copy as in Repeat After Me, figure 5: how many examples until 99 % of letters are right?

Command   python -m experiments.run configs/full/copy_samples.py
For one GPU or TPU; it has not been run. The task, strings of up to 300 letters, is the paper's
(arXiv 2402.01032); models, steps, batch and rates are ours. Examples are steps times 64 rows.
"""

from experiments.config import Config, EvaluateConfig, ModelConfig, SweepConfig, TrainConfig
from experiments.tasks import StringCopy


def get_config() -> Config:
    """Returns the config of copying long strings, which stops once they are copied."""
    return Config(
        claim=(
            "Attention copies strings of up to 300 letters after a hundredth of the examples that "
            "a mixer with a bounded state needs, if that ever does."
        ),
        task=StringCopy(max_characters=300),
        models=("attention", "attention,position=rotary", "ssd", "delta_rule", "gru", "lstm"),
        model=ModelConfig(width=256, num_layers=4, num_heads=4, mlp_ratio=4),
        sweep=SweepConfig(tuning_seeds=1, seeds=3),
        train=TrainConfig(steps=50_000, batch_size=64, stop_accuracy=0.99, checkpoint_every=1000),
        evaluate=EvaluateConfig(batch_size=16, num_probe_rows=4),
    )
