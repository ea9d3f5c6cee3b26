"""Which device programs are for: that which is here, or one that they are compiled for from afar.

Which kernels take a call, and in which tiles, is decided while it is traced: so who compiles for a
device that is not here says so while he traces.
"""

import contextlib
import contextvars
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

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
    """Returns a context in which what is traced and lowered is for a device that need not be here.

    Only who compiles ahead of time for other devices than JAX's own needs it; what JAX has traced
    before it does not trace again. cuDNN is asked whether it is here: where it is not, what would
    be its is of the kernels after it.

    Args:
      platform: "cpu", "gpu" or "tpu".
      capability: the compute capability of a GPU; "9.0" is Hopper. None is not known, and then no
        Pallas kernel runs unasked.

    Raises:
      ValueError: if there is no such platform, or can be no such capability.
      TypeError: if that is no string.

    Example:
      >>> import attn
      >>> import jax
      >>> x = jax.ShapeDtypeStruct((1, 1024, 4, 64), "bfloat16")
      >>> with attn.compiled_for("gpu", "9.0"):
      ...     traced = jax.jit(attn.dot_product_attention).trace(x, x, x)
      ...     lowered = traced.lower(lowering_platforms=("cuda",))
      >>> "mosaic_gpu" in lowered.as_text()
      True
    """
    if platform not in PLATFORMS:
        expected = ", ".join(map(repr, PLATFORMS))
        raise ValueError(f"platform is {platform!r}; expected one of {expected}")
    if capability is not None and platform != "gpu":
        raise ValueError(
            f"capability is {capability!r}; expected None, as platform is {platform!r}"
        )
    if capability is not None and not re.fullmatch(r"[0-9]+\.[0-9]+", str(capability)):
        raise ValueError(f"capability is {capability!r}; expected one such as '9.0', or None")
    if not isinstance(capability, str | None):
        raise TypeError(f"capability is a {type(capability).__name__}; expected a string")
    token = _AFAR.set(Target(platform, capability))
    try:
        yield
    finally:
        _AFAR.reset(token)
