"""In which dtype things are computed."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike


def accumulated(dtype: DTypeLike) -> np.dtype:
    """Returns the dtype of scores, softmax and sums: float64 for float64 inputs, else float32."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)
