"""Time of attention, forward and with its gradient, against peers in one run.

    python -m benchmarks.speed [--lengths 1024 4096] [--repeats 7]

Every function is compiled before the clock starts; the functions take turns, and each figure is
the median over the turns. Ratios within a run mean something; milliseconds do not outlive it.
torch joins if it is installed (CPU only); it runs on as many threads as JAX.

Shapes: one row, N = 4 heads, H = 64, float32. A tuple ``(causal, gradient)`` names a case.
"""

import dataclasses
import functools
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import attn
from benchmarks.machine import machine, matrix_product_rate
from benchmarks.programs import compiled, with_gradient
from benchmarks.timing import take_turns

NUM_HEADS, WIDTH = 4, 64


@dataclasses.dataclass(frozen=True)
class Options:
    """What is measured."""

    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192)
    """T = S, the lengths of a row."""
    repeats: int = 7
    """Turns of every function."""
    output: str = ""
    """A file to write the records to, as JSON lines."""


def main() -> None:
    """Prints a line for every length and case."""
    options = tyro.cli(Options, description=__doc__)
    console = Console()
    peers = {"attn": jax_call(attn.dot_product_attention)}
    peers["jax.nn"] = jax_call(jax.nn.dot_product_attention)
    if (torch_call := find_torch()) is not None:
        peers["torch"] = torch_call
    others = [name for name in peers if name != "attn"]
    columns = ["T", "case", *(f"{name}, ms" for name in peers), "floor, ms"]
    table = Table(*columns, *(f"{name} / attn" for name in others), title=str(machine()))
    peak = matrix_product_rate()
    records = []
    for length in options.lengths:
        for causal in (True, False):
            for gradient in (False, True):
                times = measure(peers, length, causal, gradient, options.repeats)
                floor = flops(length, causal, gradient) / peak
                records.append(
                    {
                        **machine(),
                        "length": length,
                        "causal": causal,
                        "gradient": gradient,
                        "seconds": times,
                        "floor_seconds": floor,
                    }
                )
                case = f"{'causal' if causal else 'full'}, {'fwd+bwd' if gradient else 'fwd'}"
                milliseconds = [f"{1e3 * times[name]:.0f}" for name in peers]
                ratios = [f"{times[name] / times['attn']:.2f}" for name in others]
                table.add_row(str(length), case, *milliseconds, f"{1e3 * floor:.0f}", *ratios)
    console.print(table)
    for name in others:
        ratios = [r["seconds"][name] / r["seconds"]["attn"] for r in records if r["gradient"]]
        mean = statistics.geometric_mean(ratios)
        console.print(f"fwd+bwd, geometric mean: attn is {mean:.2f} times as fast as {name}")
    if options.output:
        lines = "".join(json.dumps(record) + "\n" for record in records)
        Path(options.output).write_text(lines)


Case = Callable[[int, bool, bool], Callable[[], Any]]
"""Length, causal, gradient to a function that runs the case once."""


def jax_call(attend: Callable[..., jax.Array]) -> Case:
    """Returns the cases of a function with the signature of ``jax.nn.dot_product_attention``."""

    def prepare(length: int, causal: bool, gradient: bool) -> Callable[[], Any]:
        inputs = [jnp.asarray(x) for x in arrays(length)]
        forward = functools.partial(attend, is_causal=causal)
        return compiled(with_gradient(forward) if gradient else forward, *inputs)

    return prepare


def find_torch() -> Case | None:
    """Returns the cases of torch's scaled dot-product attention, or None without torch."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(machine()["cores"])
    attend = torch.nn.functional.scaled_dot_product_attention

    def prepare(length: int, causal: bool, gradient: bool) -> Callable[[], Any]:
        inputs = [torch.from_numpy(x.swapaxes(1, 2).copy()) for x in arrays(length)]

        def forward():
            with torch.no_grad():
                attend(*inputs, is_causal=causal)

        def both():
            leaves = [x.requires_grad_() for x in inputs]
            output = attend(*leaves, is_causal=causal)
            torch.autograd.grad(output, leaves, output.detach())

        return both if gradient else forward

    return prepare


def measure(
    peers: dict[str, Case], length: int, causal: bool, gradient: bool, repeats: int
) -> dict[str, float]:
    """Returns the median seconds of every peer, which take turns."""
    calls = {name: prepare(length, causal, gradient) for name, prepare in peers.items()}
    return take_turns(calls, repeats)


def arrays(length: int) -> list[np.ndarray]:
    """Returns query, key and value of shape ``[1, T, N, H]``."""
    rng = np.random.default_rng(0)
    shape = (1, length, NUM_HEADS, WIDTH)
    return [rng.standard_normal(shape, np.float32) for _ in range(3)]


def flops(length: int, causal: bool, gradient: bool) -> float:
    """Returns the operations that cannot be avoided: 2 matrix products forward, 5 backward."""
    forward = 4 * NUM_HEADS * length**2 * WIDTH / (2 if causal else 1)
    return forward * (3.5 if gradient else 1)


if __name__ == "__main__":
    main()
