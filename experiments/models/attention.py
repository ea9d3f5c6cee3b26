"""Attention as a mixer: over the whole past, or over a window of it, with the same parameters."""

from typing import TYPE_CHECKING, Any

from flax import linen
from jaxtyping import Array, Float

import attn

if TYPE_CHECKING:
    from experiments.config import ModelConfig


class FullAttention(linen.Module):
    """Causal multi-head self-attention: every token sees all before it.

    Sows the attention weights ``[B, N, L, L]`` as ``weights`` where intermediates are collected.
    """

    config: "ModelConfig"

    @linen.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """Returns what each position takes from those it sees."""
        reach = self.reach(self.config)
        looking = self.is_mutable_collection("intermediates") and not self.is_initializing()
        attend: Any = attn.MultiHeadAttention(
            num_heads=self.config.num_heads,
            rotary=self.config.position == "rotary",
            use_bias=False,
            name="attention",
        )
        options = {
            "is_causal": True,
            "local_window_size": None if reach is None else (reach, 0),
        }
        if not looking:
            return attend(x, **options)
        result, weights = attend(x, return_weights=True, **options)
        self.sow("intermediates", "weights", weights)
        return result

    @staticmethod
    def reach(config: "ModelConfig") -> int | None:
        """Returns None: no distance is too far."""
        del config
        return None


class WindowedAttention(FullAttention):
    """The same module seeing ``config.window`` tokens, its own included."""

    @staticmethod
    def reach(config: "ModelConfig") -> int | None:
        """Returns the distance to the first token of the window."""
        return config.window - 1
