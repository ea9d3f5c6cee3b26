"""What Mosaic has for GPUs of the operations that a function of pairs is made of."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from attn.closures import CALLS
from attn.kernels.call import ALLOWED, FACTORS, MASKED_SCORES, SCORES, Call, is_float

HAS = frozenset(
    """
    abs add and atan2 broadcast_in_dim clamp convert_element_type cos div eq erf exp exp2
    ge gt integer_pow le log logistic lt max min mul ne neg not or rem round rsqrt select_n sign sin
    square sub tanh xor
    """.split()  # noqa: SIM905
)
"""In the layout of a product, as of jax 0.10."""
INSTEAD = {"add_any": lax.add, "stop_gradient": lambda x: x, "copy": lambda x: x}
"""What is the same as one that it has not."""


def missing(call: Call) -> list[str]:
    """Returns the names of the operations on pairs, derivatives included, that it has not."""
    shape = jax.ShapeDtypeStruct((8, 8), call.dtype)
    known = {x: jax.ShapeDtypeStruct((8, 8), x.dtype) for x in call.pairs.inputs}
    moving = [x for x in known if is_float(x)]
    which = [SCORES, *([MASKED_SCORES, ALLOWED] if call.is_masked else [])]
    which += [FACTORS] if call.has_dropout else []

    def passes(values, scores):
        given = dict(zip(known, values, strict=True))

        def inner(n, scores, some):
            found = call.pairs.inner(given | dict(zip(moving, some, strict=True)), scores, n)
            return jnp.broadcast_to(found, scores.shape)

        some = [given[x] for x in moving]
        plain: list[Any] = [inner(n, scores, some) for n in which if n in (ALLOWED, FACTORS)]
        for n in which:
            if n not in (ALLOWED, FACTORS):
                found, pull = jax.vjp(lambda *x, n=n: inner(n, *x), scores, some)
                plain.append((found, pull(found)))
        return plain

    closed = jax.make_jaxpr(passes)(list(known.values()), shape)
    return sorted({name for name in _names(closed.jaxpr) if name not in HAS | INSTEAD.keys()})


def _names(jaxpr: Jaxpr) -> Iterator[str]:
    for equation in jaxpr.eqns:
        called = _called(equation)
        if called is None:
            yield equation.primitive.name
        else:
            yield from _names(called.jaxpr)


def _called(equation: Any) -> ClosedJaxpr | None:
    found = equation.params.get("jaxpr") or equation.params.get("call_jaxpr")
    if equation.primitive.name not in CALLS or found is None:
        return None
    return found if isinstance(found, ClosedJaxpr) else ClosedJaxpr(found, ())


def done(function: Callable, *arguments: Any) -> Any:
    """Returns ``function(*arguments)``, by operations that it has."""
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    found = _run(closed, jax.tree.leaves(arguments))
    return jax.tree.unflatten(jax.tree.structure(shapes), found)


def _run(closed: ClosedJaxpr, leaves: Sequence[Any]) -> list[Any]:
    jaxpr = closed.jaxpr
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *leaves), strict=True))

    def read(x):
        return x.val if isinstance(x, Literal) else known[x]

    for equation in jaxpr.eqns:
        operands, name = [read(x) for x in equation.invars], equation.primitive.name
        if (called := _called(equation)) is not None:
            found = _run(called, operands)
        elif name in INSTEAD:
            found = [INSTEAD[name](*operands)]
        else:
            params = equation.primitive.get_bind_params(equation.params)
            found = equation.primitive.bind(*operands, **params)
            found = found if equation.primitive.multiple_results else [found]
        known.update(zip(equation.outvars, found, strict=True))
    return [read(x) for x in jaxpr.outvars]
