"""No mixing, the leak detector: ``y_t = 0``.

What the decoder can then answer, it answers from the token at the position that is asked: the short
convolution feeds the mixer, and is not seen either. No parameters.
"""

from typing import TYPE_CHECKING

import jax.numpy as jnp
from jaxtyping import Array, Float

from experiments.models.mixer import Mixer

if TYPE_CHECKING:
    from experiments.config import ModelConfig


class NoMixing(Mixer):
    """Takes nothing from anywhere."""

    is_blind = True

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """Returns zeros."""
        return jnp.zeros_like(x)

    @staticmethod
    def reach(config: "ModelConfig") -> int | None:
        """Returns 0."""
        del config
        return 0

    @staticmethod
    def state_bytes(config: "ModelConfig", length: int) -> int:
        """Returns 0."""
        del config, length
        return 0
