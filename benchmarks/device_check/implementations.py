"""The implementations of attention that run here."""

import functools
from collections.abc import Callable

import jax

import attn

ONLY_IF_NAMED = "runs if it is named"
"""What ``attn.explain`` says of an implementation that runs here and is not the default."""


def implementations(dtype: str = "float32") -> dict[str, Callable]:
    """Returns ``attn.dot_product_attention`` by what is named: "default", and the others.

    Args:
      dtype: of the arrays that each of them is to take.
    """
    x = jax.ShapeDtypeStruct((1, 1024, 4, 64), dtype)
    refused = attn.explain(x, x, x, is_causal=True).refused
    named = [name for name, reason in refused.items() if ONLY_IF_NAMED in reason]
    of_name = functools.partial(functools.partial, attn.dot_product_attention)
    return {"default": of_name()} | {name: of_name(implementation=name) for name in named}


def in_linear_memory(dtype: str = "float32") -> dict[str, Callable]:
    """Returns those that make no map of T x S."""
    found = implementations(dtype)
    found.pop("reference", None)
    return found
