"""How far apart tiles of queries and of keys are, counted."""

import dataclasses
import math
from typing import Any


@dataclasses.dataclass(frozen=True)
class Distances:
    """How far apart tiles are: the first key of tile j less the first query of tile i.

    For all i and j it is one of ``count`` numbers, ``step`` apart from each other.
    """

    counts: tuple[int, int]
    """Tiles of queries and of keys."""
    sides: tuple[int, int]
    """Of a tile."""

    @property
    def step(self) -> int:
        """The greatest number that divides all."""
        return math.gcd(*self.sides)

    @property
    def least(self) -> int:
        """That of the last tile of queries and the first of keys."""
        return -(self.counts[0] - 1) * self.sides[0]

    @property
    def count(self) -> int:
        """How many there are, from the least to the greatest."""
        return ((self.counts[1] - 1) * self.sides[1] - self.least) // self.step + 1

    def index(self, i: Any, j: Any) -> Any:
        """Returns which of them is that of a tile."""
        of_query, of_key = (side // self.step for side in self.sides)
        return j * of_key - i * of_query - self.least // self.step
