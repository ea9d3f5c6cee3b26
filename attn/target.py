"""Which device programs are for: that which is here, or one that they are compiled for from afar.

Which kernels take a call, and in which tiles, is decided while it is traced: so who compiles for a
device that is not here says so while he traces.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from attn.arguments import check_choice

PLATFORMS = "cpu", "gpu", "tpu"


class Target(NamedTuple):
    """A kind of device."""

    platform: str
    """One of ``PLATFORMS``."""
    capability: str | None = None
    """Of a GPU, what it can do, as in "9.0"; None if it is not known."""


_AFAR: contextvars.ContextVar[Target | None] = contextvars.ContextVar("target", default=None)


def target() -> Target:
    """Returns the kind of device that programs are for."""
    if (afar := _AFAR.get()) is not None:
        return afar
    platform, first = jax.default_backend(), jax.devices()[0]
    capability: Any = getattr(first, "compute_capability", None) if platform == "gpu" else None
    return Target(platform, capability)


@contextlib.contextmanager
def compiled_for(platform: str, capability: str | None = None) -> Iterator[None]:
    """What is traced and lowered inside is for a device that need not be here.

    Args:
      platform: "cpu", "gpu" or "tpu".
      capability: of a GPU, as in "9.0".

    Raises:
      ValueError: if there is no such platform.
    """
    check_choice("platform", platform, PLATFORMS)
    token = _AFAR.set(Target(platform, capability))
    try:
        yield
    finally:
        _AFAR.reset(token)
