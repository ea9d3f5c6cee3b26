"""Leading axes of a tile, as a kernel has them: it is in one lane at a time.

So what is of pairs may have other leading axes than the scores only where it is the same for all,
or where rows, key heads and the queries that share one stay what they are.
"""

import math
from typing import NamedTuple

from attn.overrides import Refused


class Lanes(NamedTuple):
    """Those of scores."""

    sizes: tuple[int, ...]
    """``(*B, K, G)``"""
    is_grouped: bool = False
    """Whether the last two may also be one, ``(*B, N)``."""

    def of(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Returns the leading axes of ``[..., t, s]`` as sizes here; None if they are others.

        Args:
          shape: of a tile, with 1 along the axes on which it repeats.
        """
        lanes, every = shape[:-2], self.sizes
        if math.prod(lanes) == 1:
            return (1,) * len(every)
        if self.is_grouped and len(lanes) < len(every):
            heads = {1: (1, 1), math.prod(every[-2:]): every[-2:]}.get(lanes[-1], ())
            lanes = *lanes[:-1], *heads
        lanes = *(1,) * (len(every) - len(lanes)), *lanes
        is_of_scores = len(lanes) == len(every) and all(
            n in (1, size) for n, size in zip(lanes, every, strict=True)
        )
        return lanes if is_of_scores else None

    def check(self, name: str, before: tuple[int, ...] | None, after: tuple[int, ...]) -> None:
        """Raises ``Refused`` unless an operation on pairs leaves leading axes what they are.

        Args:
          name: of the operation.
          before: the shape of its operand, where it may move them; else None.
          after: that of its result.
        """
        found = self.of(after)
        if found is None or (before is not None and self.of(before) != found):
            raise Refused(f"its function of pairs has other leading axes than scores: {name}")
