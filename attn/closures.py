"""Functions without hidden inputs: what a user's function closes over becomes an argument.

A mask or score function may read arrays from around it, traced ones included. JAX's rules for
derivatives and batching see arguments only, so such arrays must be arguments before a rule applies.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun
from jaxtyping import Array


def explicit(function: Callable, *examples: Any) -> tuple[Callable, list[Array]]:
    """Returns ``(f, arrays)``: ``f(arrays, *x)`` is ``function(*x)``, and f closes over nothing.

    Args:
      function: traced once, at the shapes and dtypes of the examples; ``f`` takes no others.
      *examples: pytrees of arrays or ``jax.ShapeDtypeStruct``.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*examples)
    structure = jax.tree.structure(shapes)

    def called(arrays: list[Array], *arguments: Any) -> Any:
        outs = jaxpr_as_fun(closed.replace(consts=arrays))(*jax.tree.leaves(arguments))
        return jax.tree.unflatten(structure, outs)

    return called, [jnp.asarray(x) for x in closed.consts]
