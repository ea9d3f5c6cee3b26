"""Whether a chip's fast memory has room for what the function of a tile's pairs keeps.

A kernel of the backward pass has at once all that ``jax.vjp`` of the function keeps, arrays as
large as the tile, and the cotangents of what the pairs take from outside: a long function has room
in a small tile alone.
"""

import math
from typing import Any

import jax

from attn.closures import is_float
from attn.kernels.call import Call
from attn.kernels.tpu import tile as tiles
from attn.kernels.tpu.operations import OPERATIONS
from attn.kernels.values import KEY
from attn.tiles import TileSizes

MOST = 24 * 2**20
"""Bytes, of the 32 MiB that a kernel has."""
NUMBER = 4
"""Bytes of it in a register, of a boolean too."""


def fitting(call: Call, least: int) -> TileSizes | None:
    """Returns sides for which there is room, those of the call or less; None if there are none.

    Args:
      call: of which it is asked.
      least: a side of a tile, and what all are multiples of.
    """
    grid = call.plan.grid
    rows, columns = grid.query_side, grid.key_side
    if len(call.pairs.inside) * rows * columns * NUMBER > MOST // 2:
        needed = _kept(call) + _moving(call)
        while needed * rows * columns > MOST:
            if max(rows, columns) < 2 * least:
                return None
            if columns > rows:
                columns = columns // 2 // least * least
            else:
                rows = rows // 2 // least * least
    return TileSizes(rows, columns, multiple=least)


def _moving(call: Call) -> int:
    """Returns the bytes, for each pair, of the cotangents that are summed along rows or columns."""
    inputs = (x for x in call.pairs.inputs if not (x.is_cut or x.is_diagonal))
    return NUMBER * sum(map(is_float, inputs)) // 2


def _kept(call: Call) -> int:
    """Returns the bytes, for each pair, that the derivative of the function keeps."""
    sides = rows, columns = 128, 256
    products: Any = jax.ShapeDtypeStruct(sides, call.dtype)
    allowed = jax.ShapeDtypeStruct(sides, bool) if call.is_masked else None

    def shape(x):
        if x.is_cut or x.is_diagonal:
            return sides
        return (rows, 1) if x.depends == KEY else (1, columns)

    given = [jax.ShapeDtypeStruct(shape(x), x.dtype) for x in call.pairs.inputs]

    def kept(products, allowed, given):
        known = dict(zip(call.pairs.inputs, given, strict=True))
        moving = [x for x in known if is_float(x)]

        def scores_of(products, some):
            here = known | dict(zip(moving, some, strict=True))
            return tiles.scores_of(call, tile._replace(given=here), products, allowed)

        tile, some = tiles.Tile(products, products, products, known), [known[x] for x in moving]
        return OPERATIONS.done(lambda *x: jax.vjp(scores_of, *x)[1], products, some)

    program = jax.make_jaxpr(kept)(products, allowed, given).jaxpr
    # What only repeats a row or a column is repeated again.
    repeats = (x.outvars for x in program.eqns if x.primitive.name == "broadcast_in_dim")
    repeated = {id(x) for several in repeats for x in several}
    found = {id(x): x.aval for x in program.outvars if id(x) not in repeated}
    return NUMBER * sum(math.prod(x.shape) == rows * columns for x in found.values())
