"""Functions without hidden inputs: what a user's function reads from around it becomes an argument.

A mask or score function may close over arrays, traced ones included, or read them from an object
that changes. JAX's rules for derivatives and batching see arguments only, and its caches see
functions only by identity; so such a function is traced at every call, before any cache is asked,
and what it read is passed beside its arguments.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun
from jaxtyping import Array

from attn.devices import of_type, vary


@dataclasses.dataclass(frozen=True, eq=False)
class Explicit:
    """``f(arrays, *x)``, closing over nothing; equal to another that does the same operations."""

    operations: Jaxpr
    results: Any
    """The tree of what is returned."""
    key: tuple
    """The text of the operations, and all that the text does not tell apart."""

    def __call__(self, arrays: list[Array], *arguments: Any) -> Any:
        """Returns what the function does of these arguments and of the arrays that it read."""
        leaves = (
            vary(x, tuple(of_type(like.aval)))
            for x, like in zip(jax.tree.leaves(arguments), self.operations.invars, strict=True)
        )
        outs = jaxpr_as_fun(ClosedJaxpr(self.operations, arrays))(*leaves)
        return jax.tree.unflatten(self.results, outs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Explicit) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def explicit(function: Callable, *examples: Any) -> tuple[Explicit, list[Array]]:
    """Returns ``(f, arrays)`` such that ``f(arrays, *x)`` is ``function(*x)`` as it is now.

    Args:
      function: traced once, at the shapes and dtypes of the examples; ``f`` takes no others.
      *examples: pytrees of arrays or ``jax.ShapeDtypeStruct``.
    """
    # A new function for every trace: JAX remembers traces, and with them what was read.
    closed, shapes = jax.make_jaxpr(lambda *x: function(*x), return_shape=True)(*examples)
    results = jax.tree.structure(shapes)
    key = (str(closed.jaxpr), results, tuple(_rules(closed.jaxpr)))
    return Explicit(closed.jaxpr, results, key), [jnp.asarray(x) for x in closed.consts]


def _rules(operations: Jaxpr) -> Iterator[Any]:
    """Yields the functions among the parameters of operations, as custom derivatives have them."""
    for equation in operations.eqns:
        for parameter in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: isinstance(x, (ClosedJaxpr, Jaxpr))
        ):
            if isinstance(parameter, ClosedJaxpr):
                yield from _rules(parameter.jaxpr)
            elif isinstance(parameter, Jaxpr):
                yield from _rules(parameter)
            elif callable(parameter) and not isinstance(parameter, type):
                yield parameter
