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
    ge gt integer_pow le log logistic lt max min mul ne neg not or rem round rsqrt select_n
    shift_left shift_right_logical sign sin square sub tanh xor
    """.split()  # noqa: SIM905
)
"""In the layout of a product, as of jax 0.10."""


def _log1p(x):
    """Goldberg, "What every computer scientist should know about floating-point", theorem 4."""
    u = 1 + x
    return jnp.where((u == 1) | (u == jnp.inf), x, x * jnp.log(u) / (u - 1))


def _expm1(x):
    """Kahan's: the error of ``exp`` and that of ``log`` take each other away."""
    u = jnp.exp(x)
    is_moderate = (u != 1) & (u - 1 != -1) & (u < jnp.inf)
    logarithm = jnp.log(jnp.where(is_moderate, u, 2))
    return jnp.where(u == 1, x, jnp.where(is_moderate, (u - 1) * x / logarithm, u - 1))


def _sqrt(x):
    return jnp.where((x == 0) | (x == jnp.inf), x, x * lax.rsqrt(x))


def _threefry2x32(key0, key1, x0, x1):
    """Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011: 20 rounds."""
    keys = key0, key1, key0 ^ key1 ^ jnp.uint32(0x1BD11BDA)
    rotations = (13, 15, 26, 6), (17, 29, 16, 24)
    x0, x1 = x0 + key0, x1 + key1
    for n in range(5):
        for distance in rotations[n % 2]:
            x0 = x0 + x1
            x1 = x1 << jnp.uint32(distance) | x1 >> jnp.uint32(32 - distance)
            x1 = x0 ^ x1
        x0, x1 = x0 + keys[(n + 1) % 3], x1 + keys[(n + 2) % 3] + jnp.uint32(n + 1)
    return x0, x1


INSTEAD: dict[str, Callable] = {
    "add_any": lax.add,
    "copy": lambda x: x,
    "expm1": _expm1,
    "is_finite": lambda x: x - x == 0,
    "log1p": _log1p,
    "sqrt": _sqrt,
    "stop_gradient": lambda x: x,
    "threefry2x32": _threefry2x32,
}
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
            found = INSTEAD[name](*operands)
            found = found if equation.primitive.multiple_results else [found]
        else:
            params = equation.primitive.get_bind_params(equation.params)
            found = equation.primitive.bind(*operands, **params)
            found = found if equation.primitive.multiple_results else [found]
        known.update(zip(equation.outvars, found, strict=True))
    return [read(x) for x in jaxpr.outvars]
