"""What every mixer is: the protocol in the words of ``experiments.models``, as a class."""

from typing import TYPE_CHECKING, ClassVar

import jax.numpy as jnp
from flax import linen
from jaxtyping import Array, Float

if TYPE_CHECKING:
    from experiments.config import ModelConfig


class Mixer(linen.Module):
    """A causal module from ``[B, L, D]`` to ``[B, L, D]``; unless it says otherwise, of any reach.

    Its result and its products with matrices have the dtype of its input, its parameters float32.

    Letters of all mixers: B rows, L positions, D model width, N heads, H = D / N head width.
    """

    config: "ModelConfig"

    is_blind: ClassVar[bool] = False
    """Whether it takes nothing from its input, whatever the convolution before it has seen."""
    has_weights: ClassVar[bool] = False
    """Whether it has attention weights, sows them, and takes ``blocked``."""
    takes_scores: ClassVar[bool] = False
    """Whether it takes the position codes that act on queries, keys or scores."""

    @staticmethod
    def reach(config: "ModelConfig") -> int | None:
        """Returns the farthest distance, in tokens, that one layer can see; None if unbounded."""
        del config
        return None

    @staticmethod
    def state_bytes(config: "ModelConfig", length: int) -> int:
        """Returns what one layer keeps of ``length`` tokens to read on token by token, float32."""
        raise NotImplementedError


FLOAT_BYTES = 4
"""Of a float32, in which every state is counted."""


def widened(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """Returns the same numbers in float32 at least: for gates, and for sums along a row."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def even_chunk(length: int, most: int) -> int:
    """Returns the tokens of a chunk, at most so many, that cuts ``length`` with least padding."""
    return -(-length // -(-length // most))
