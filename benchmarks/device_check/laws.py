"""The laws of ``attn.testing`` on this device, for every implementation that it runs."""

import itertools

import attn.testing
from benchmarks.device_check.check import Check, OutOfTime
from benchmarks.device_check.implementations import implementations
from benchmarks.device_check.workers import side_by_side


def laws(check: Check) -> bool:
    """Returns whether all hold of those that there was time for."""
    total, counts = 0, {"passed": 0, "failed": 0, "not offered": 0, "no time": 0}
    row = check.table("implementation", *counts)
    failing = check.found["failing"] = {}
    every = {
        name: [law.name for law in attn.testing.LAWS if _is_wanted(law, name, check.sizes.laws)]
        for name in implementations()
    }
    items = [(name, law) for name, of_name in every.items() for law in of_name]
    results = side_by_side(examine, items, check.until, _lost)
    for name, wanted in every.items():
        found = (result for some in itertools.islice(results, len(wanted)) for result in some or ())
        report = attn.testing.Report(name, tuple(found))
        done = [len(x) for x in (report.passed, report.failed, report.not_offered)]
        numbers = [*done, len(wanted) - sum(done)]
        counts = {key: counts[key] + n for key, n in zip(counts, numbers, strict=True)}
        total += len(wanted)
        failing |= {f"{name}: {r.law.name}": r.reason for r in report.failed}
        row(name, *map(str, numbers))
    check.found |= {"counts": counts, "left": counts["no time"]}
    if counts["no time"] == total:
        raise OutOfTime
    if failing:
        check.say("", *(f"- {name}: {reason}" for name, reason in failing.items()))
    said = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    names = f" ({'; '.join(failing)})" if failing else ""
    check.found["summary"] = f"of {total}: {said}{names}"
    return not failing and counts["passed"] > 0


def examine(implementation: str, law: str) -> list[attn.testing.Result]:
    """Returns whether a law holds of an implementation."""
    attend = implementations()[implementation]
    return list(attn.testing.check(attend, laws=[law], name=implementation).results)


def _lost(_: str, law: str, why: str) -> list[attn.testing.Result]:
    """Returns what is known of a law whose worker was lost."""
    (found,) = (x for x in attn.testing.LAWS if x.name == law)
    return [attn.testing.Result(found, "failed", why)]


def _is_wanted(law: attn.testing.Law, implementation: str, names: tuple[str, ...] | None) -> bool:
    """Returns whether a law is to be examined; the reference takes the memory of a map."""
    is_named = names is None or law.name in names or law.group in names
    return is_named and not (implementation == "reference" and law.group == "memory")
