"""A training step of the laboratory's decoder: against peers' attention, its floor, and in a sweep.

    python -m benchmarks.training [--repeats 5]

- the decoder at two lengths with our attention, with ``jax.nn.dot_product_attention`` and with
  ``flax.linen.MultiHeadDotProductAttention``: the same parameters, the same rows;
- four seeds x four rates as one program against one run alone.

Calls that are compared take turns; medians are printed, and their ratios. The floor is the matrix
products of a step, forward and backward, at the speed of a large one measured beside them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import linen

from benchmarks.machine import machine
from benchmarks.timing import take_turns
from experiments.config import Config, ModelConfig, SweepConfig, TrainConfig
from experiments.models import MIXERS
from experiments.models.decoder import build_decoder
from experiments.models.mixer import Mixer
from experiments.runs import Run, places_for, stack_runs
from experiments.tasks import Recall
from experiments.train import build_program, initial_state, mean_answer


@dataclasses.dataclass(frozen=True)
class Options:
    """What is measured."""

    repeats: int = 5
    """Turns of every call."""
    lengths: tuple[int, ...] = (512, 2048)
    """Tokens of a row."""
    batch_size: int = 8
    """Rows of a step."""


class JaxAttention(Mixer):
    """Attention of the same parameters by ``jax.nn.dot_product_attention``."""

    @linen.compact
    def __call__(self, x):
        """Returns what each position takes from those before it."""
        heads = (self.config.num_heads, self.config.width // self.config.num_heads)
        query, key, value = (
            linen.DenseGeneral(heads, use_bias=False, name=name)(x)
            for name in ("query", "key", "value")
        )
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        return linen.DenseGeneral(x.shape[-1], axis=(-2, -1), use_bias=False, name="out")(mixed)


class LinenAttention(Mixer):
    """Attention of the same parameters by ``flax.linen.MultiHeadDotProductAttention``."""

    @linen.compact
    def __call__(self, x):
        """Returns what each position takes from those before it."""
        mask = linen.make_causal_mask(x[..., 0])
        attend = linen.MultiHeadDotProductAttention(self.config.num_heads, use_bias=False)
        return attend(x, mask=mask)


PEERS = {"jax.nn": JaxAttention, "flax.linen": LinenAttention}


def main() -> None:
    """Prints a table for every comparison."""
    options = tyro.cli(Options, description=__doc__)
    print(machine())
    MIXERS.update(PEERS)
    for length in options.lengths:
        against_peers(length, options)
    sweep_against_its_runs(options)


def against_peers(length: int, options: Options) -> None:
    """Prints the step with our attention, with peers', and its floor."""
    task = Recall(vocab_size=256, length=length, num_pairs=8)
    batch = task.sample(jax.random.key(0), options.batch_size)
    calls: dict[str, Callable[[], Any]] = {}
    for mixer in ("attention", *PEERS):
        decoder = build_decoder(task, ModelConfig(mixer=mixer, num_heads=1))
        params = decoder.lazy_init(jax.random.key(0), batch.inputs, batch.positions)["params"]
        step = jax.jit(jax.grad(lambda p, d=decoder: mean_answer(task, d, p, batch)[0]))
        calls[mixer] = lambda step=step, params=params: step(params)
    side = 2048
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(side, side)), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    calls["product"] = lambda: product(matrix)
    seconds = take_turns(calls, options.repeats)
    speed = 2 * side**3 / seconds.pop("product")
    # Two layers: four projections of D^2, and half the square of scores, twice, of width D.
    width, tokens = 64, options.batch_size * length
    forward = 2 * (2 * tokens * 4 * width**2 + 4 * tokens * (length / 2) * width)
    floor = 3 * forward / speed
    print(f"\nT = {length}, {options.batch_size} rows, forward and backward")
    for name, each in seconds.items():
        ratio = each / seconds["attention"]
        print(f"  {name:<12} {1e3 * each:8.1f} ms   {ratio:5.2f} times ours")
    print(f"  {'floor':<12} {1e3 * floor:8.1f} ms   {floor / seconds['attention']:5.2f} times ours")


def sweep_against_its_runs(options: Options) -> None:
    """Prints a dispatch of four seeds x four rates against that of one run, sixteen times."""
    config = Config(
        task=Recall(),
        models=("attention",),
        model=ModelConfig(num_heads=1),
        sweep=SweepConfig(tuning_seeds=4, seeds=4),
        train=TrainConfig(steps=10_000, batch_size=32, steps_per_dispatch=5, checkpoint_every=10),
    )
    runs = [Run(seed, rate) for seed in range(4) for rate in config.sweep.learning_rates]

    def dispatches(runs: list[Run]) -> Callable[[], Any]:
        places = places_for(config.mesh, len(runs))
        program = build_program(config, "attention", places, ())
        of_runs = stack_runs(runs, places)
        state = [initial_state(program, runs)]

        def call() -> Any:
            state[0], metrics = program.dispatch(state[0], *of_runs, ())
            return metrics

        return call

    seconds = take_turns(
        {"sweep": dispatches(runs), "alone": dispatches(runs[:1])}, options.repeats
    )
    steps = config.train.steps_per_dispatch
    print(f"\n16 runs as one program, {len(jax.local_devices())} devices")
    print(f"  a step of one run alone {1e3 * seconds['alone'] / steps:8.1f} ms")
    print(f"  a step of each, together {1e3 * seconds['sweep'] / steps / 16:7.1f} ms a run")
    print(f"  together / sum of runs  {seconds['sweep'] / seconds['alone'] / 16:8.2f}")


if __name__ == "__main__":
    main()
