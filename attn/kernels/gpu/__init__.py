"""The two passes of first order for Hopper GPUs, in Pallas's Mosaic."""

from attn.kernels.call import Call
from attn.kernels.gpu.backward import backward
from attn.kernels.gpu.forward import forward
from attn.kernels.gpu.lists import SIDE_BITS
from attn.kernels.gpu.operations import OPERATIONS
from attn.kernels.gpu.walk import GROUPS, ROWS, num_splits_of, walks_of
from attn.kernels.lacking import refuse_lacking
from attn.overrides import Refused
from attn.spread import shares_of
from attn.target import target
from attn.tiles import TileSizes

__all__ = ["backward", "check", "fitting", "forward", "num_splits_of"]

DTYPES = "bfloat16", "float16", "float32"
"""Of arrays that these kernels take."""
WIDEST = 256
"""Heads of which a sum fits in the registers of a group of warps."""
HOPPER = "9.0"
"""The compute capability of GPUs that have the products of these kernels."""


def check(call: Call) -> None:
    """Raises ``Refused`` if these kernels, or the hardware if it is to run them, cannot."""
    if call.interpret:
        return
    if (reason := _refusal_here(call.plan.named)) is not None:
        raise Refused(reason)
    grid, block = call.plan.grid, ROWS * GROUPS
    sides = grid.query_side, grid.key_side
    if any(side % block for side in sides):
        raise Refused(f"its tiles are of {sides[0]} x {sides[1]}, no multiples of {block}")
    if max(share.count for share in shares_of(grid, call.plan.ring)) > 2**SIDE_BITS:
        raise Refused(f"it has more than {2**SIDE_BITS} rows or columns of tiles")
    if call.plan.dtype not in DTYPES:
        raise Refused(f"it is of {call.plan.dtype}; sums are of float32")
    if max(call.widths) > WIDEST:
        raise Refused(f"its heads are {max(call.widths)} wide, more than {WIDEST}")
    walks_of(call)
    refuse_lacking(call, OPERATIONS.lack)


def fitting(call: Call) -> TileSizes:
    """Returns sides of tiles for which there is room: what registers have not goes to memory."""
    return TileSizes(call.plan.grid.query_side, call.plan.grid.key_side)


def _refusal_here(named: str | None) -> str | None:
    """Returns why these kernels do not run on this machine; None if they do.

    They may be compiled for a GPU that is not here, if they are named.
    """
    here = target().capability
    if here == HOPPER or (here is None and named is not None):
        return None
    return f"its products are of compute capability {HOPPER}; this is {here or 'another machine'}"
