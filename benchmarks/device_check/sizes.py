"""How large everything is, by kind of device."""

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured. The defaults are for one GPU or TPU.

    Speed is measured on as many tokens at every length, in heads that are as wide together, as the
    papers of FlashAttention do.
    """

    dtype: str = "bfloat16"
    """In which speed and memory are measured."""
    matrix_side: int = 8192
    """Of the matrix product that is the peak."""
    copied_bytes: int = 2**30
    laws: tuple[str, ...] | None = None
    """Names of laws, or groups of them; all if None."""
    calls: tuple[str, ...] | None = None
    """Names of calls in bfloat16; all if None."""
    ragged_length: int = 1998
    """T where bfloat16 is compared with the dense formula: no multiple of a tile, and even, so that
    cuDNN has its part."""
    memory_length: int = 8192
    """T where memory is measured, and half of the T where it is measured again."""
    derivatives: tuple[str, ...] | None = None
    """Names of derivatives whose memory is measured; all if None."""
    lengths: tuple[int, ...] = (8192, 16384, 1024, 4096, 2048)
    """T = S where speed is measured; the first is where most is measured."""
    widths: tuple[int, ...] = (128, 64)
    """H, likewise."""
    kinds: tuple[str, ...] | None = None
    """Of pairs whose speed is measured; all if None."""
    tokens: int = 16384
    """B T."""
    model_width: int = 2048
    """N H."""
    dense_up_to: int = 8192
    """The greatest length at which ``jax.nn`` is asked for the whole map."""
    window: int = 256
    """Keys that a query sees in the case of a window, its own included."""
    repeats: int = 5
    """Turns of a call that is timed."""
    turn_seconds: float = 0.02
    """How long a turn takes at least."""
    steps: int = 300
    """Of training."""
    least_accuracy: float = 0.9
    """What every seed has to reach in training."""


ACCELERATOR = Sizes()
CPU = Sizes(
    dtype="float32",
    matrix_side=2048,
    copied_bytes=2**27,
    ragged_length=198,
    lengths=(4096, 1024, 2048),
    widths=(64, 128),
    tokens=1,
    model_width=256,
    dense_up_to=4096,
    repeats=3,
    turn_seconds=0.0,
)
"""Of one row, whatever its length."""


def sizes_here() -> Sizes:
    """Returns those for the device that JAX finds."""
    return CPU if jax.default_backend() == "cpu" else ACCELERATOR
