"""The laws of ``attn.testing`` on this device, for every implementation that it runs."""

import concurrent.futures
from collections.abc import Callable

import attn.testing
from benchmarks.device_check.check import Check
from benchmarks.device_check.implementations import implementations
from benchmarks.machine import machine


def laws(check: Check) -> bool:
    """Returns whether all hold of those that there was time for."""
    total, counts = 0, {"passed": 0, "failed": 0, "not offered": 0, "no time": 0}
    row = check.table("implementation", *counts)
    failing = check.found["failing"] = {}
    for name, attend in implementations().items():
        wanted = [law for law in attn.testing.LAWS if _is_wanted(law, name, check.sizes.laws)]
        report = examine(attend, name, wanted, check.is_late)
        done = [len(x) for x in (report.passed, report.failed, report.not_offered)]
        numbers = [*done, len(wanted) - sum(done)]
        counts = {key: counts[key] + n for key, n in zip(counts, numbers, strict=True)}
        total += len(wanted)
        failing |= {f"{name}: {r.law.name}": r.reason for r in report.failed}
        row(name, *map(str, numbers))
    check.found["counts"] = counts
    if failing:
        check.say("", *(f"- {name}: {reason}" for name, reason in failing.items()))
    said = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    names = f" ({'; '.join(failing)})" if failing else ""
    check.found["summary"] = f"of {total}: {said}{names}"
    return not failing and counts["passed"] > 0


def examine(
    attend: Callable, name: str, wanted: list[attn.testing.Law], is_late: Callable[[], bool]
) -> attn.testing.Report:
    """Returns a report of the laws that there was time for.

    Nearly all their time is compilation, so that they are examined side by side, a core each.
    """

    def result(law: attn.testing.Law) -> list[attn.testing.Result]:
        if is_late():
            return []
        return list(attn.testing.check(attend, laws=[law.name], name=name).results)

    with concurrent.futures.ThreadPoolExecutor(machine()["cores"]) as pool:
        results = [found for some in pool.map(result, wanted) for found in some]
    return attn.testing.Report(name, tuple(results))


def _is_wanted(law: attn.testing.Law, implementation: str, names: tuple[str, ...] | None) -> bool:
    """Returns whether a law is to be examined; the reference takes the memory of a map."""
    is_named = names is None or law.name in names or law.group in names
    return is_named and not (implementation == "reference" and law.group == "memory")
