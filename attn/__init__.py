"""attn: exact attention for JAX that every transform can go through, at linear memory."""

from typing import TYPE_CHECKING

from attn import diagnostics, masks, positions, scores, sharded
from attn.dot_product import dot_product_attention
from attn.explanation import explain
from attn.maps import attention_scores, attention_weights
from attn.partial import attend_partial, finish, merge
from attn.target import compiled_for
from attn.version import __version__ as __version__

if TYPE_CHECKING:
    from attn.multi_head import MultiHeadAttention


__all__ = [
    "MultiHeadAttention",
    "attend_partial",
    "attention_scores",
    "attention_weights",
    "compiled_for",
    "diagnostics",
    "dot_product_attention",
    "explain",
    "finish",
    "masks",
    "merge",
    "positions",
    "scores",
    "sharded",
]


def __getattr__(name: str):
    # Flax takes as long to import as JAX: whoever only needs the functions does not wait for it.
    if name == "MultiHeadAttention":
        from attn.multi_head import MultiHeadAttention

        return MultiHeadAttention
    raise AttributeError(f"module 'attn' has no attribute {name!r}")
