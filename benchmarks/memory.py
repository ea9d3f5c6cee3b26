"""Memory of attention from the compiled program: temporary bytes, which have no noise.

    python -m benchmarks.memory [--lengths 2048 8192 32768]

Nothing is run. Shapes: one row, N = 4 heads, H = 64, float32, causal.
"""

import dataclasses

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Table

import attn
from benchmarks.programs import derivatives, temporary_bytes

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
                inputs = [jax.ShapeDtypeStruct((1, length, *SHAPE), jnp.float32)] * 3
                figures = (temporary_bytes(f, *inputs) for f in derivatives(attend).values())
                table.add_row(name, str(length), *(f"{x / 1e6:.0f}" for x in figures))
    Console().print(table)


if __name__ == "__main__":
    main()
