"""Matrix products as XLA on CPU computes them fastest.

Letters: ``*B`` leading axes, H the axis that is summed over, Q queries, s keys of a tile.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Literal
from jaxtyping import Array, Float


def scores_of(query: Float[Array, "*B H Q"], key: Float[Array, "*B H s"]) -> Float[Array, "*B Q s"]:
    """Returns ``q k^T``, positions being the last axis of both; O(Q s H) time."""
    batch = tuple(range(query.ndim - 2))
    width = query.ndim - 2
    return lax.dot_general(query, key, (((width,), (width,)), (batch, batch)))


def small_first(function: Callable) -> Callable:
    """Returns the function with the smaller operand of every matrix product on the left.

    JAX's transpose of a product puts the cotangent, here a tile of scores, first; contracted over
    its rows there, it costs XLA's matrix product on CPU twice the time.
    """

    def evaluated(*arguments):
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        values = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
        values.update(zip(closed.jaxpr.invars, jax.tree.leaves(arguments), strict=True))

        def read(x):
            return x.val if isinstance(x, Literal) else values[x]

        for equation in closed.jaxpr.eqns:
            operands = [read(x) for x in equation.invars]
            if equation.primitive is lax.dot_general_p and operands[0].size > operands[1].size:
                outs = [_swapped(*operands, **equation.params)]
            else:
                outs = equation.primitive.bind(*operands, **equation.params)
                outs = outs if equation.primitive.multiple_results else [outs]
            values.update(zip(equation.outvars, outs, strict=True))
        return jax.tree.unflatten(
            jax.tree.structure(shapes), [read(x) for x in closed.jaxpr.outvars]
        )

    return evaluated


def _swapped(left: Array, right: Array, *, dimension_numbers, **params) -> Array:
    """Returns ``lax.dot_general(left, right)``, computed with its operands exchanged."""
    (contract, contracted), (batch, batched) = dimension_numbers
    swapped = lax.dot_general_p.bind(
        right, left, dimension_numbers=((contracted, contract), (batched, batch)), **params
    )
    shared, last = len(batch), left.ndim - len(contract)
    first = right.ndim - len(contracted)
    return jnp.moveaxis(
        swapped, tuple(range(first, first + last - shared)), tuple(range(shared, last))
    )
