"""Numbers of float32 as sums of bfloat16, of which tensor cores multiply.

    x = x_0 + x_1 + ...      x_n = bfloat16(x - x_0 - ... - x_{n - 1})
    a b = sum of a_i b_j over i + j < n

Of n = 2 parts the error of a product is below 3 2^-18 (TF32, which XLA takes for float32 unless
``jax_default_matmul_precision`` asks for more, has 2^-10), of n = 3 below that of float32 itself.
Henry et al., arXiv 1904.06376, section 2.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from attn.kernels.call import Call

PART = jnp.dtype(jnp.bfloat16)
EXACT = ("highest", "float32", "BF16_BF16_F32_X6", "BF16_BF16_F32_X9", "F32_F32_F32", "F64_F64_F64")
"""Precisions of products that ask for three parts."""


def num_parts(call: Call) -> int:
    """Returns how many parts an array of the call is in; 1 is the array itself."""
    if call.plan.dtype != jnp.float32:
        return 1
    config: Any = jax.config
    return 3 if config.jax_default_matmul_precision in EXACT else 2


def parts_of(call: Call, x: Float[Array, "..."]) -> list[Float[Array, "..."]]:
    """Returns the parts of an array, outside of a kernel."""
    if num_parts(call) == 1:
        return [x]
    most, found = float(jnp.finfo(PART).max), []
    for _ in range(num_parts(call)):
        # XLA takes a conversion there and back for none, but not this; nor is it to overflow.
        part = lax.reduce_precision(jnp.clip(x, -most, most), 8, 7)
        found.append(part.astype(PART))
        x = x - part
    return found


def inner_parts_of(
    call: Call, x: Float[Array, "r c"], like: Sequence[Any]
) -> list[Float[Array, "r c"]]:
    """Returns as many parts of what is in registers as there are ``like`` it, in their dtype."""
    if num_parts(call) == 1:
        return [x.astype(like[0].dtype)]
    found = []
    for ref in like:
        # Interpreted, XLA would take a conversion there and back for none.
        part = (lax.reduce_precision(x, 8, 7) if call.interpret else x).astype(ref.dtype)
        found.append(part)
        x = x - part.astype(x.dtype)
    return found


def pairs_of(a: Sequence[Any], b: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Returns the parts whose products are summed, the least first."""
    orders = [(i, j) for i in range(len(a)) for j in range(len(b)) if i + j < len(a)]
    return [(a[i], b[j]) for i, j in sorted(orders, key=sum, reverse=True)]
