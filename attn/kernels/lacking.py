"""The operations of which a kernel consists between its products, and which of them it lacks."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr

from attn.closures import CALLS, called, is_float
from attn.kernels.call import ALLOWED, FACTORS, MASKED_SCORES, SCORES, Call
from attn.kernels.values import OWN_DERIVATIVE
from attn.overrides import Refused

INSIDE = CALLS | {OWN_DERIVATIVE}
"""Operations that a kernel does as what they consist of."""


def refuse_lacking(call: Call, lack: Callable[[Any], str | None]) -> None:
    """Raises ``Refused`` if the function of pairs, or its derivative, has what a kernel has not.

    Args:
      call: of the kernel.
      lack: of an equation gives the name of what it lacks, or None.
    """
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

    try:
        closed = jax.make_jaxpr(passes)(list(known.values()), shape)
    except NotImplementedError as error:
        raise Refused(f"its function of pairs has no derivative: {error}") from None
    names = sorted({name for x in _equations(closed.jaxpr) if (name := lack(x)) is not None})
    if names:
        raise Refused(f"its function of pairs has what a kernel has not: {', '.join(names)}")


def dtypes_of(equation: Any) -> set[str]:
    """Returns the dtypes of what an equation takes and gives."""
    return {str(x.aval.dtype) for x in (*equation.invars, *equation.outvars)}


def _equations(jaxpr: Jaxpr) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        inside = called(equation, INSIDE)
        if inside is None:
            yield equation
        else:
            yield from _equations(inside.jaxpr)
