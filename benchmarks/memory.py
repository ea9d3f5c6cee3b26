"""Memory of attention from the compiled program: temporary bytes, which have no noise.

    python -m benchmarks.memory [--lengths 2048 8192 32768]

Nothing is run. Shapes: one row, N = 4 heads, H = 64, float32, causal.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Table

import attn

SHAPE = (4, 64)


@dataclasses.dataclass(frozen=True)
class Options:
    """What is compiled."""

    lengths: tuple[int, ...] = (2048, 8192, 32768)
    """T = S, the lengths of a row."""
    dense_up_to: int = 8192
    """The greatest length at which ``jax.nn.dot_product_attention`` is compiled too."""


def main() -> None:
    """Prints a line for every function and length."""
    options = tyro.cli(Options, description=__doc__)
    names = list(derivatives(attn.dot_product_attention))
    table = Table("function", "T", *names, title="temporary memory, MB", caption=jax.__version__)
    for name, attend, limit in (
        ("attn", attn.dot_product_attention, max(options.lengths)),
        ("jax.nn", jax.nn.dot_product_attention, options.dense_up_to),
    ):
        for length in options.lengths:
            if length <= limit:
                figures = (temporary_bytes(f, length) for f in derivatives(attend).values())
                table.add_row(name, str(length), *(f"{x / 1e6:.0f}" for x in figures))
    Console().print(table)


def derivatives(attend: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """Returns the function and its derivatives, each of query, key and value."""
    forward = functools.partial(attend, is_causal=True)

    def loss(*inputs):
        return jnp.sum(forward(*inputs) ** 2)

    gradient = jax.grad(loss, (0, 1, 2))

    def gradient_dot_inputs(*inputs):
        return sum(jnp.vdot(g, x) for g, x in zip(gradient(*inputs), inputs, strict=True))

    return {
        "forward": forward,
        "gradient": gradient,
        "jvp": lambda *inputs: jax.jvp(forward, inputs, inputs),
        "Hessian-vector": lambda *inputs: jax.jvp(gradient, inputs, inputs)[1],
        "grad-of-grad": jax.grad(gradient_dot_inputs, (0, 1, 2)),
    }


def temporary_bytes(function: Callable[..., Any], length: int) -> int:
    """Returns what the compiled function allocates beside its arguments and results."""
    inputs = [jax.ShapeDtypeStruct((1, length, *SHAPE), jnp.float32)] * 3
    return jax.jit(function).lower(*inputs).compile().memory_analysis().temp_size_in_bytes


if __name__ == "__main__":
    main()
