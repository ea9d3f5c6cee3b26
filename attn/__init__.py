"""attn: exact attention for JAX that every transform can go through, at linear memory."""

from typing import TYPE_CHECKING

from attn import masks, positions
from attn.dot_product import attention_scores, attention_weights, dot_product_attention
from attn.version import __version__ as __version__

if TYPE_CHECKING:
    from attn.multi_head import MultiHeadAttention


__all__ = [
    "MultiHeadAttention",
    "attention_scores",
    "attention_weights",
    "dot_product_attention",
    "masks",
    "positions",
]


def __getattr__(name: str):
    # Flax takes as long to import as JAX: whoever only needs the functions does not wait for it.
    if name == "MultiHeadAttention":
        from attn.multi_head import MultiHeadAttention

        return MultiHeadAttention
    raise AttributeError(f"module 'attn' has no attribute {name!r}")
