"""Attention as a mixer: over the whole past, or over a window of it, with the same parameters.

    y_t = W_O sum_{s <= t} softmax_s(f(q_t . k_s / sqrt(H))) v_s

with f the score function of the position code (``experiments.models.positions``), or none; rotary
codes turn q and k instead. 4 D^2 parameters, and those of the code.
"""

from typing import TYPE_CHECKING, Any

from flax import linen
from jaxtyping import Array, Bool, Float

import attn
from experiments.mesh import sequence_axis
from experiments.models.mixer import FLOAT_BYTES, Mixer
from experiments.models.positions import POSITIONS

if TYPE_CHECKING:
    from experiments.config import ModelConfig


class FullAttention(Mixer):
    """Causal multi-head self-attention: every token sees all before it.

    Sows the attention weights ``[B, N, L, L]`` as ``weights`` where intermediates are collected.
    """

    has_weights = True
    takes_scores = True

    @linen.compact
    def __call__(
        self, x: Float[Array, "B L D"], blocked: Bool[Array, "B L L"] | None = None
    ) -> Float[Array, "B L D"]:
        """Returns what each position takes from those it sees.

        Args:
          x: the positions.
          blocked: pairs of query and key that take no part; none if None.
        """
        position = POSITIONS[self.config.position]
        reach = self.reach(self.config)
        looking = self.is_mutable_collection("intermediates") and not self.is_initializing()
        attend: Any = attn.MultiHeadAttention(
            num_heads=self.config.num_heads,
            rotary=position.rotary,
            use_bias=False,
            dtype=x.dtype,
            sequence_axis=None if looking else sequence_axis(),
            name="attention",
        )
        options = {
            "is_causal": True,
            "local_window_size": None if reach is None else (reach, 0),
            "mask": None if blocked is None else ~blocked[:, None],
            "score": position.of_scores(self, self.config.num_heads),
        }
        if not looking:
            return attend(x, **options)
        result, weights = attend(x, return_weights=True, **options)
        self.sow("intermediates", "weights", weights)
        return result

    @classmethod
    def state_bytes(cls, config: "ModelConfig", length: int) -> int:
        """Returns the bytes of the keys and values that are still in reach."""
        reach = cls.reach(config)
        kept = length if reach is None else min(reach + 1, length)
        return 2 * kept * config.width * FLOAT_BYTES


class WindowedAttention(FullAttention):
    """The same module seeing ``config.window`` tokens, its own included."""

    @staticmethod
    def reach(config: "ModelConfig") -> int | None:
        """Returns the distance to the first token of the window."""
        return config.window - 1
