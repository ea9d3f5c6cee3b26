"""What the devices of a compiled program send each other: read from its text, loops counted.

A collective in the body of a loop is sent as often as the loop goes round: as XLA writes beside the
loop, or else as its condition says, if that compares a counter, from 0 on, with a constant. A loop
of unknown length counts once; of branches the one that sends most.
"""

import math
import re
from collections import Counter
from typing import NamedTuple

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8}
"""Of an element; 4 of all others."""
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_OPERATION = re.compile(r"^\s*(?:ROOT )?%?[\w.-]+ = (.*?) ([a-z][\w-]*)\(")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"condition=%?([\w.-]+)")
_CONSTANT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
_CALLED = re.compile(r"(?:calls|to_apply|body|computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"(?:branch_computations=\{([^}]*)\}|_computation=%?([\w.-]+))")


class Traffic(NamedTuple):
    """Of one device: collectives by name, how many there are and the bytes of their results."""

    count: Counter
    bytes: Counter

    @property
    def total(self) -> int:
        """Bytes of all of them."""
        return sum(self.bytes.values())

    def __str__(self) -> str:
        found = (f"{self.count[x]:,} {x} {self.bytes[x] / 1e6:,.1f} MB" for x in self.count)
        return ", ".join(found) or "nothing"


def traffic(program: str) -> Traffic:
    """Returns what a device sends in one call of a program.

    Args:
      program: ``compiled.as_text()``.
    """
    bodies: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in program.splitlines():
        found = _COMPUTATION.match(line)
        if found:
            lines = bodies.setdefault(found[1], [])
            entry = found[1] if line.startswith("ENTRY") else entry
        else:
            lines.append(line)
    known: dict[str, Traffic] = {}

    def of(name: str) -> Traffic:
        if name not in known:
            every = [(line, _of_line(line, of)) for line in bodies.get(name, ())]
            known[name] = _sum([_times(x, trips(line)) for line, x in every])
        return known[name]

    def trips(line: str) -> int:
        if (found := _TRIPS.search(line)) is not None:
            return int(found[1])
        condition = _CONDITION.search(line)
        lines = [] if condition is None else bodies.get(condition[1], [])
        constants = [int(found[1]) for x in lines if (found := _CONSTANT.search(x))]
        counts = any("direction=LT" in x for x in lines) and len(constants) == 1
        return constants[0] if counts else 1

    return of(entry)


def _of_line(line: str, of) -> Traffic:
    found = _OPERATION.match(line)
    if found is None:
        return Traffic(Counter(), Counter())
    result, operation = found.groups()
    name = operation.removesuffix("-start")
    if name in COLLECTIVES:
        return Traffic(Counter({name: 1}), Counter({name: _size(result)}))
    if operation == "conditional":
        groups = _BRANCHES.findall(line)
        names = [x.strip().lstrip("%") for pair in groups for x in ",".join(pair).split(",") if x]
        return max((of(x) for x in names if x), key=lambda x: x.total)
    return _sum([of(x) for x in _CALLED.findall(line)])


def _times(x: Traffic, trips: int) -> Traffic:
    return Traffic(*(Counter({k: n * trips for k, n in of.items()}) for of in x))


def _sum(every: list[Traffic]) -> Traffic:
    count, size = Counter(), Counter()
    for x in every:
        count.update(x.count)
        size.update(x.bytes)
    return Traffic(count, size)


def _size(result: str) -> int:
    """Returns the bytes of a result; of the tuple of an operation that has begun, its greatest."""
    sizes = [
        BYTES.get(kind, 4) * math.prod(int(n) for n in shape.split(",") if n)
        for kind, shape in _ARRAY.findall(result)
    ]
    return max(sizes, default=0)
