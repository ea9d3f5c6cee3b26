"""The device: what it is, and the most that it can be expected to do."""

import jax

from benchmarks.device_check.check import Check
from benchmarks.machine import copy_rate, matrix_product_rate


def device(check: Check) -> None:
    """Measures large matrix products and copies; says what the device is."""
    sizes, first = check.sizes, jax.devices()[0]
    memory = (first.memory_stats() or {}).get("bytes_limit")
    rates = {
        dtype: matrix_product_rate(sizes.matrix_side, dtype, sizes.turn_seconds)
        for dtype in ("bfloat16", "float32")
    }
    copied = copy_rate(sizes.copied_bytes, sizes.turn_seconds)
    check.found |= {"memory_bytes": memory, "flops": rates, "copied_bytes_per_second": copied}
    row = check.table("what", "found")
    row("device", f"{len(jax.devices())} x {first.device_kind} ({jax.default_backend()})")
    row("jax", jax.__version__)
    row("memory for JAX", "not said" if memory is None else f"{memory / 1e9:.1f} GB")
    for dtype, rate in rates.items():
        row(f"matrix product, {dtype}, precision as by default", f"{rate / 1e12:.3g} TFLOP/s")
    row("copy, read and written", f"{copied / 1e9:.0f} GB/s")
    check.found["summary"] = (
        f"{first.device_kind}, jax {jax.__version__}, {rates['bfloat16'] / 1e12:.3g} TFLOP/s in "
        f"bfloat16, {rates['float32'] / 1e12:.3g} in float32, {copied / 1e9:.0f} GB/s"
    )


def peak(check: Check) -> float | None:
    """Returns the rate of matrix products in the dtype of the check, if it was measured."""
    rates = check.record["parts"].get("device", {}).get("flops", {})
    return rates.get(check.sizes.dtype)
