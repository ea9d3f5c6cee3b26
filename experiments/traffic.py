"""What the devices of a compiled program send each other: read from its text, loops counted.

Of a collective between n devices with a result of b bytes on each, a device sends at least

    collective-permute  b              all-gather, all-to-all   b (n - 1) / n
    reduce-scatter      b (n - 1)      all-reduce             2 b (n - 1) / n

A collective in the body of a loop is sent as often as the loop goes round: as XLA writes beside the
loop, or else as its condition says, if that compares a counter, from 0 on, with a constant. A loop
of unknown length counts once; of branches the one that sends most.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "collective-permute": lambda n: 1,
}
"""By collective between n devices: bytes sent for a byte of its result."""

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_DEVICES = re.compile(r"^HloModule .*num_partitions=(\d+)")
_GROUPS = re.compile(r"replica_groups=(?:\[\d+,(\d+)\]<=|\{\{([\d,]+)\})")
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^{]*\))? \{([^}]*)\}")
_AXIS = re.compile(r"'([^']+)'=(\d+)")
_AXIS_OF_GROUP = re.compile(r"'([^']+)'(?::\(\d+\)(\d+))?")
_OPERATION = re.compile(r"^\s*(?:ROOT )?%?[\w.-]+ = (.*?) ([a-z][\w-]*)\(")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"condition=%?([\w.-]+)")
_CONSTANT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
_CALLED = re.compile(r"(?:calls|to_apply|body|computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"(?:branch_computations=\{([^}]*)\}|_computation=%?([\w.-]+))")


class Traffic(NamedTuple):
    """Of one device: collectives by name, how many there are and the bytes it sends for them."""

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
    devices = _DEVICES.match(program)
    most = 1 if devices is None else int(devices[1])
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
            every = [(line, _of_line(line, of, most)) for line in bodies.get(name, ())]
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


def _of_line(line: str, of: Callable[[str], Traffic], devices: int) -> Traffic:
    found = _OPERATION.match(line)
    if found is None:
        return Traffic(Counter(), Counter())
    result, operation = found.groups()
    name = operation.removesuffix("-start")
    if name in SENT:
        devices = _group_size(line) or devices
        if operation != name != "all-reduce":  # Of what has begun: operands, results, and more.
            result = _parts(result)[1]
        return Traffic(Counter({name: 1}), Counter({name: _size(result) * SENT[name](devices)}))
    if operation == "conditional":
        groups = _BRANCHES.findall(line)
        names = [x.strip().lstrip("%") for pair in groups for x in ",".join(pair).split(",") if x]
        return max((of(x) for x in names if x), key=lambda x: x.total)
    return _sum([of(x) for x in _CALLED.findall(line)])


def _group_size(line: str) -> int | None:
    """Returns how many devices take part in one collective; None if the line does not say.

    They are listed, or are those along some axes of a mesh, of an axis perhaps a part.
    """
    if (found := _GROUPS.search(line)) is not None:
        return int(found[1]) if found[1] else len(found[2].split(","))
    if (found := _MESH_GROUPS.search(line)) is None:
        return None
    sizes = dict(_AXIS.findall(found[1]))
    return math.prod(int(part or sizes[name]) for name, part in _AXIS_OF_GROUP.findall(found[2]))


def _times(x: Traffic, trips: int) -> Traffic:
    return Traffic(*(Counter({k: n * trips for k, n in of.items()}) for of in x))


def _sum(every: list[Traffic]) -> Traffic:
    count, size = Counter(), Counter()
    for x in every:
        count.update(x.count)
        size.update(x.bytes)
    return Traffic(count, size)


def _parts(result: str) -> list[str]:
    """Returns the elements of a tuple."""
    parts, depth = [""], 0
    for letter in result:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 1:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _size(result: str) -> int:
    """Returns the bytes of an array, or of all of a tuple."""
    return sum(
        math.prod(int(n) for n in shape.split(",") if n) * (int(bits) if bits else 8) // 8
        for _, bits, shape in _ARRAY.findall(result)
    )
