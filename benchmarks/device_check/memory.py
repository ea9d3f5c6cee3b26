"""Memory of the compiled programs, at a length and at twice that; nothing is run."""

import jax

from attn.testing.memory import GROWTH
from benchmarks.device_check.check import Check, OutOfTime
from benchmarks.device_check.implementations import in_linear_memory
from benchmarks.programs import derivatives, temporary_bytes

SHAPE = (4, 64)


def memory(check: Check) -> bool:
    """Returns whether it is linear in T, of every program that there was time for."""
    length, dtype = check.sizes.memory_length, check.sizes.dtype
    wanted = check.sizes.derivatives
    lengths = (length, 2 * length)
    row = check.table("implementation", "of", *(f"MB at T = {n}" for n in lengths), "ratio")
    found = check.found["programs"] = []
    left = 0
    for name, attend in in_linear_memory(dtype).items():
        for kind, function in derivatives(attend).items():
            if wanted is not None and kind not in wanted:
                continue
            if check.is_late():
                row(name, kind, "no time was left", "", "")
                left += 1
                continue
            few, many = (
                temporary_bytes(function, *[jax.ShapeDtypeStruct((1, n, *SHAPE), dtype)] * 3)
                for n in lengths
            )
            ratio = many / max(few, 1)  # A kernel may take nothing at all.
            found.append({"implementation": name, "of": kind, "bytes": [few, many], "ratio": ratio})
            row(name, kind, f"{few / 1e6:.1f}", f"{many / 1e6:.1f}", f"{ratio:.2f}")
    if not found:
        raise OutOfTime
    check.found["left"] = left
    worst = max(found, key=lambda program: program["ratio"])
    check.found["summary"] = (
        f"twice the tokens take up to {worst['ratio']:.2f} times the bytes ({worst['of']} of "
        f"{worst['implementation']}); linear is 2, allowed {GROWTH}; {len(found)} programs"
    )
    return worst["ratio"] <= GROWTH
