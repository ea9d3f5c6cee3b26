"""Where a figure was measured."""

import os
import platform
from typing import Any

import jax


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
