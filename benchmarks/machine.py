"""Where a figure was measured, and what that machine can do."""

import os
import platform
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.programs import compiled
from benchmarks.timing import take_turns


def machine() -> dict[str, Any]:
    """Returns the device, the cores that this process may use, and the version of JAX."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return {
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "cores": cores,
        "jax": jax.__version__,
    }


def matrix_product_rate(
    side: int = 2048, dtype: Any = jnp.float32, turn_seconds: float = 0.0
) -> float:
    """Returns the operations a second of a large matrix product here: the peak."""
    x = jax.random.normal(jax.random.key(0), (side, side), dtype)
    seconds = take_turns({"product": compiled(jnp.matmul, x, x)}, 7, turn_seconds)
    return 2 * side**3 / seconds["product"]


def copy_rate(num_bytes: int, turn_seconds: float = 0.0) -> float:
    """Returns the bytes a second that are read and written, each counted, in a copy."""
    x = jnp.ones(num_bytes // 4, jnp.float32)
    seconds = take_turns({"copy": compiled(jnp.negative, x)}, 7, turn_seconds)
    return 2 * x.nbytes / seconds["copy"]
