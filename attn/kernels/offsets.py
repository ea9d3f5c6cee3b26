"""What goes by how far a key is from a query, and by nothing else of a pair: where its pairs are.

A function of pairs may look a distance up in a table, or ask a small network what it makes of it.
Neither is elementwise; but what it says of a distance it says of every pair that is so far apart,
so it is computed outside, once for each distance, in the place of a tile's pairs. That holds if
each number of the result belongs to one pair, whose axes are followed here from operation to
operation. What is not known to keep pairs apart has no axes.
"""

import math
from collections.abc import Sequence
from typing import Any

from attn.kernels.values import ELEMENTWISE, JOINS, PLACINGS, RESHAPES, Axes, Value

SHIFTED = frozenset(("sub", "eq", "ne", "lt", "le", "gt", "ge"))
"""What is the same of two integers as of both and one number more."""
REDUCTIONS = frozenset(
    ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or")
)


def axes_of(x: Value) -> Axes:
    """Returns the axes of queries and of keys."""
    return x.axes or (len(x.shape) - 2, len(x.shape) - 1)


def followed(
    name: str, params: dict[str, Any], operands: Sequence[Value], shape: tuple[int, ...]
) -> Axes | None:
    """Returns the axes of the pairs of a result; None if they are not known.

    Args:
      name: of the operation.
      params: of the operation.
      operands: of it; what is not of pairs depends on nothing.
      shape: of the result.
    """
    axes = {axes_of(x) for x in operands if x.depends}
    if len(axes) != 1:
        return None
    ((query, key),) = axes
    if name in ELEMENTWISE | PLACINGS | JOINS:
        rest = [x for x in operands if x.shape and not x.depends]
        if not all(x.narrow[query] == x.narrow[key] == 1 for x in rest):
            return None
        if name == "stack":
            return query + (query >= params["axis"]), key + (key >= params["axis"])
        return None if params.get("dimension") in (query, key) else (query, key)
    if name == "broadcast_in_dim":
        after: Any = params["broadcast_dimensions"]
        return after[query], after[key]
    if name == "transpose":
        after = params["permutation"]
        return after.index(query), after.index(key)
    if name in RESHAPES:
        return _reshaped(operands[0].shape, shape, (query, key))
    if name == "slice":
        is_whole = all(shape[axis] == operands[0].shape[axis] for axis in (query, key))
        return (query, key) if is_whole else None
    if name in REDUCTIONS:
        left = [n for n in range(len(operands[0].shape)) if n not in params["axes"]]
        return (left.index(query), left.index(key)) if {query, key} <= {*left} else None
    if name == "gather" and not operands[0].depends:
        numbers = params["dimension_numbers"]
        if {query, key} & {*numbers.start_indices_batching_dims}:
            return None
        lanes = [n for n in range(len(shape)) if n not in numbers.offset_dims]
        return lanes[query], lanes[key]
    if name == "dot_general" and not (operands[0].depends and operands[1].depends):
        return _multiplied(params["dimension_numbers"], operands, (query, key))
    return None


def _reshaped(before: tuple[int, ...], after: tuple[int, ...], axes: Axes) -> Axes | None:
    """An axis stays if it is as long, and as many numbers are before it.

    Of several of length 1 the last that the keys come after, and of theirs the first.
    """

    def places(axis):
        first = math.prod(before[:axis])
        same = (math.prod(after[:n]) == first for n in range(len(after)))
        return [n for n, x in enumerate(same) if x and after[n] == before[axis]]

    queries, keys = map(places, axes)
    pairs = [(query, key) for query in reversed(queries) for key in keys if query < key]
    return pairs[0] if pairs else None


def _multiplied(numbers: Any, operands: Sequence[Value], axes: Axes) -> Axes | None:
    """Axes of a product are those of the batch, then the free ones of both sides."""
    contracted, batch = numbers
    free = [
        [n for n in range(len(x.shape)) if n not in (*contracted[side], *batch[side])]
        for side, x in enumerate(operands)
    ]
    which = 0 if operands[0].depends else 1
    if not {*axes} <= {*free[which]}:
        return None
    first = len(batch[which]) + (len(free[0]) if which else 0)
    query, key = (first + free[which].index(axis) for axis in axes)
    return query, key
