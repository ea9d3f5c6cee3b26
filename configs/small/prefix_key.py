"""A string whose key comes first: a counter-example, which a recurrence can solve as it reads.

Command   python -m experiments.run configs/small/prefix_key.py
Minutes   17, on two shared cores
Expected  median accuracy of a letter at 32, 64 and 128 letters, seeds 200 to 203 (commits 0545cb7,
          c2da298): attention .988, .971, .924; ALiBi .985, .959, .618; rotary .983, .820, .401;
          delta rule .792, .625, .403; GRU .698, .396, .167; SSD .614, .450, .269. That a bounded
          state does better is not shown.
"""

from experiments.config import Config, EvaluateConfig, OptimizerConfig, SweepConfig, TrainConfig
from experiments.tasks import PrefixKeyCopy


def get_config() -> Config:
    """Returns the config of n-gram lookup with the key first."""
    return Config(
        claim=(
            "Where the key comes before the string, a model with a bounded state can copy "
            "as it reads, and may do so at lengths at which attention without a position "
            "code does not."
        ),
        task=PrefixKeyCopy(),
        models=(
            "attention",
            "attention,position=alibi",
            "attention,position=rotary",
            "ssd,num_heads=1",
            "delta_rule,num_heads=1",
            "gru",
        ),
        optimizer=OptimizerConfig(decay_share=0.3),
        sweep=SweepConfig(learning_rates=(1e-3, 3e-3, 1e-2, 3e-2), tuning_seeds=1, seeds=4),
        train=TrainConfig(steps=3000, batch_size=32, stop_accuracy=0.9999, checkpoint_every=500),
        evaluate=EvaluateConfig(lengths=(41, 73, 137)),
    )
