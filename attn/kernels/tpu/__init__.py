"""The two passes of first order for TPU."""

import jax.numpy as jnp

from attn.kernels.call import Call
from attn.kernels.lacking import refuse_lacking
from attn.kernels.tpu import room
from attn.kernels.tpu.backward import backward
from attn.kernels.tpu.forward import forward
from attn.kernels.tpu.operations import OPERATIONS
from attn.overrides import Refused
from attn.spread import shares_of
from attn.tiles import TileSizes

__all__ = ["backward", "check", "fitting", "forward"]

LANES = 128
"""Of a register: sides of tiles are multiples."""
MOST_TILES = 2**17 - 2**12
"""Of which two lists have room in the megabyte that a kernel can read them from, beside others."""
MOST_ROWS = 2**15
"""Or columns, of which a number in such a list has half."""
MOST_DISTANCES = 2**19
"""As many sums along diagonals as there is room for in a chip's fast memory."""


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
    rows, columns = (share.count for share in shares_of(grid, call.plan.ring))
    if rows * columns > MOST_TILES or max(rows, columns) > MOST_ROWS:
        raise Refused(f"it has {rows} x {columns} tiles, more than {MOST_TILES}")
    distances = call.pairs.distances.count * sum(sides)
    if distances > MOST_DISTANCES and any(x.is_diagonal for x in call.pairs.inputs):
        raise Refused(f"its tiles have more than {MOST_DISTANCES} distances")
    refuse_lacking(call, OPERATIONS.lack)
    if fitting(call) is None:
        raise Refused("its function of pairs keeps more than there is room for in a small tile")


def fitting(call: Call) -> TileSizes | None:
    """Returns sides of tiles for which there is room; None if there is for none."""
    grid = call.plan.grid
    if call.interpret:
        return TileSizes(grid.query_side, grid.key_side)
    return room.fitting(call, LANES)
