"""What a check found: a line for every law."""

import dataclasses
from typing import Literal

from attn.testing.laws import Law

PASSED, FAILED, NOT_OFFERED = "passed", "failed", "not offered"


@dataclasses.dataclass(frozen=True)
class Result:
    """Of one law."""

    law: Law
    status: Literal["passed", "failed", "not offered"]
    reason: str = ""
    """One line: what is wrong, with figures, or how it is known that it is not offered."""
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Report:
    """Of one function. ``str`` of it, or ``print``, is a table."""

    name: str
    results: tuple[Result, ...]

    @property
    def passed(self) -> list[Result]:
        """Results of the laws that hold."""
        return self._with(PASSED)

    @property
    def failed(self) -> list[Result]:
        """Results of the laws that do not."""
        return self._with(FAILED)

    @property
    def not_offered(self) -> list[Result]:
        """Results of the laws that need what the function does not take."""
        return self._with(NOT_OFFERED)

    @property
    def ok(self) -> bool:
        """Whether some law holds and none fails."""
        return bool(self.passed) and not self.failed

    def raise_if_failed(self) -> None:
        """Raises AssertionError, with the laws that fail, unless ``ok``."""
        if not self.ok:
            raise AssertionError("\n".join([self.summary, *map(_line, self.failed)]))

    @property
    def summary(self) -> str:
        """The numbers of laws in one line."""
        found = self.passed, self.failed, self.not_offered
        counts = ", ".join(
            f"{len(results)} {status}"
            for results, status in zip(found, (PASSED, FAILED, NOT_OFFERED), strict=True)
        )
        return f"{self.name}: {counts}, {sum(r.seconds for r in self.results):.0f} s"

    def __str__(self) -> str:
        lines, group = [], None
        for result in self.results:
            if result.law.group != group:
                group = result.law.group
                lines += ["", group]
            lines.append(_line(result))
        return "\n".join([self.summary, *lines])

    def _with(self, status: str) -> list[Result]:
        return [result for result in self.results if result.status == status]


def _line(result: Result) -> str:
    line = f"  {result.status:<11}  {result.law.name}"
    return f"{line:<58}  {result.reason}".rstrip()
