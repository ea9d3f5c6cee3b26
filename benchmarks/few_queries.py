"""Few queries of many keys, as where tokens are generated: milliseconds, ours beside ``jax.nn``.

    python -m benchmarks.few_queries [--keys 32768] [--repeats 5]

The floor is to read keys and values once, those that are asked for, at the rate of a copy here.
"""

import argparse
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.device_check.implementations import implementations
from benchmarks.machine import copy_rate, machine
from benchmarks.programs import compiled
from benchmarks.timing import take_turns

BATCHES, QUERIES = (1, 8), (1, 16, 128)
HEADS = (16, 16), (32, 4)
"""Of queries and of keys."""
WIDTH = 128
SEEN = 1.0, 0.5
"""Which part of the keys: all, or those before a length, the rest being room for more."""
TURN_SECONDS = 0.02


def peers() -> dict[str, Callable[..., Any]]:
    """Returns functions of query, key, value and, as ``key_value_seq_lengths``, lengths."""
    found = {f"attn {n}": f for n, f in implementations(_dtype()).items()}
    of_jax: Any = jax.nn.dot_product_attention
    names = ("xla", "cudnn") if jax.default_backend() == "gpu" else ("xla",)
    return found | {f"jax.nn {n}": functools.partial(of_jax, implementation=n) for n in names}


def _dtype() -> str:
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line for every shape."""
    parser = argparse.ArgumentParser("python -m benchmarks.few_queries", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--keys", type=int, default=32768, help="S")
    parser.add_argument("--repeats", type=int, default=5, help="turns that count")
    options = parser.parse_args(arguments)
    rate, every, dtype = copy_rate(2**28, TURN_SECONDS), peers(), jnp.dtype(_dtype())
    print(f"{machine()['device']}, jax {jax.__version__}, {dtype}; a copy: {rate / 1e9:.0f} GB/s\n")
    print("|", " | ".join(("B", "T", "S", "seen", "N", "K", "H", "floor, ms", *every)), "|")
    print("|", " | ".join(["---"] * (8 + len(every))), "|")
    for (num_heads, of_keys), batch, num_queries, seen in itertools.product(
        HEADS, BATCHES, QUERIES, SEEN
    ):
        shapes = [(batch, num_queries, num_heads, WIDTH)]
        shapes += [(batch, options.keys, of_keys, WIDTH)] * 2
        keys = jax.random.split(jax.random.key(0), 3)
        arrays = [jax.random.normal(key, x, dtype) for key, x in zip(keys, shapes, strict=True)]
        length = int(options.keys * seen)
        given = {} if seen == 1 else {"key_value_seq_lengths": jnp.full(batch, length, jnp.int32)}
        calls = {}
        for name, attend in every.items():
            try:
                calls[name] = compiled(functools.partial(attend, **given), *arrays)
            except ValueError:  # It is not for this call.
                continue
        seconds = take_turns(calls, options.repeats, TURN_SECONDS)
        floor = 2 * batch * length * of_keys * WIDTH * dtype.itemsize / rate
        figures = (f"{1e3 * seconds[name]:.3g}" if name in seconds else "-" for name in every)
        shape = batch, num_queries, options.keys, length, num_heads, of_keys, WIDTH
        cells = *map(str, shape), f"{1e3 * floor:.3g}", *figures
        print("|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
