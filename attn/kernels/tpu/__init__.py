"""The two passes of first order for TPU."""

from typing import Any

import jax.numpy as jnp

from attn.kernels.call import Call
from attn.kernels.lacking import dtypes_of, refuse_lacking
from attn.kernels.tpu.backward import backward
from attn.kernels.tpu.forward import forward
from attn.overrides import Refused
from attn.spread import shares_of

__all__ = ["backward", "check", "forward"]

LANES = 128
"""Of a register: sides of tiles are multiples."""
MOST_TILES = 2**17
"""As many as a list of them has room for, where a kernel can read it."""
MOST_DISTANCES = 2**19
"""As many sums along diagonals as there is room for in a chip's fast memory."""


HAS = frozenset(
    """
    abs add add_any and atan2 broadcast_in_dim ceil clamp clz convert_element_type cos div eq erf
    erf_inv exp exp2 floor ge gt integer_pow is_finite le log log1p logistic lt max min mul ne neg
    nextafter not or population_count pow reduce_sum rem reshape round rsqrt select_n shift_left
    shift_right_arithmetic shift_right_logical sign sin sqrt square squeeze stop_gradient sub tan
    tanh threefry2x32 xor
    """.split()  # noqa: SIM905
)
"""Operations on pairs that Mosaic has for TPUs, as of jax 0.10."""
DTYPES = "bool", "int32", "uint32", "float32", "bfloat16"
"""Of numbers that it computes with."""


def check(call: Call) -> None:
    """Raises ``Refused`` if the hardware cannot take the call; interpreted, all is taken."""
    if call.interpret:
        return
    grid = call.plan.grid
    sides = grid.query_side, grid.key_side
    if any(side % LANES for side in sides):
        raise Refused(f"its tiles are of {sides[0]} x {sides[1]}, no multiples of {LANES}")
    if call.dtype != jnp.float32:
        raise Refused(f"it is computed in {call.dtype}")
    refuse_lacking(call, lack)
    rows, columns = (share.count for share in shares_of(grid, call.plan.ring))
    if rows * columns > MOST_TILES:
        raise Refused(f"it has more than {MOST_TILES} tiles")
    distances = call.pairs.distances.count * sum(sides)
    if distances > MOST_DISTANCES and any(x.is_diagonal for x in call.pairs.inputs):
        raise Refused(f"its tiles have more than {MOST_DISTANCES} distances")


def lack(equation: Any) -> str | None:
    """Returns the name of what an equation has that a kernel has not; None if it has all."""
    name = equation.primitive.name
    others = sorted(dtypes_of(equation) - {*DTYPES})
    return name if name not in HAS else f"{name} of {', '.join(others)}" if others else None
