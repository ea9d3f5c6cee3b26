"""Functions without hidden inputs: what a user's function reads from around it becomes an argument.

A mask or score function may close over arrays, traced ones included, or read them from an object
that changes. JAX's rules for derivatives and batching see arguments only, and its caches see
functions only by identity; so such a function is traced at every call, before any cache is asked,
and what it read is passed beside its arguments.

Inside ``jax.shard_map`` what it read may be the same on all devices while its arguments vary. Then
what it computes from that alone is computed here, once, and is what is passed, varying: so the
gradient of what it read is summed over devices once, not in every tile.
"""

import dataclasses
import enum
import functools
import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun
from jaxtyping import Array

from attn.devices import example, of_type, vary, varying

CALLS = frozenset(("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"))
"""Operations that are a program of their own, computed where they stand."""


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
    if any(len(varying(x)) < len(varying(examples)) for x in closed.consts):
        arrays = _computed_once(closed, varying(examples))
        rest = functools.partial(_computed_of, closed, arrays)
        closed = jax.make_jaxpr(lambda *x: rest(jax.tree.leaves(x)))(*examples)
    told_apart = identities([x.params for x in closed.jaxpr.eqns])
    key = (str(closed.jaxpr), results, tuple(told_apart))
    return Explicit(closed.jaxpr, results, key), [jnp.asarray(x) for x in closed.consts]


def called(equation: Any, names: Collection[str] = CALLS) -> ClosedJaxpr | None:
    """Returns the program that an operation of one of these names does; None of another."""
    found = equation.params.get("jaxpr") or equation.params.get("call_jaxpr")
    if equation.primitive.name not in names or found is None:
        return None
    return found if isinstance(found, ClosedJaxpr) else ClosedJaxpr(found, ())


def rule_of(equation: Any) -> tuple[ClosedJaxpr, list[int]]:
    """Returns the rule of a function that has a derivative of its own, of ``jax.custom_jvp``.

    That is a program of the operands and of the tangents of those that are floats, which gives the
    tangents of such results; and which operands are floats.

    Args:
      equation: that is a call of the function.
    """
    params = equation.primitive.get_bind_params(equation.params)
    types = [
        example(x.aval.shape, x.aval.dtype, tuple(sorted(of_type(x.aval)))) for x in equation.invars
    ]
    moving = [n for n, x in enumerate(types) if is_float(x)]

    def tangents(every, moved):
        def function(some):
            known = dict(enumerate(every)) | dict(zip(moving, some, strict=True))
            return [x for x in equation.primitive.bind(*known.values(), **params) if is_float(x)]

        return jax.jvp(function, ([every[n] for n in moving],), (moved,))[1]

    return jax.make_jaxpr(tangents)(types, [types[n] for n in moving]), moving


def is_float(x: Any) -> bool:
    """Returns whether a value, or an array, may have a cotangent."""
    return jnp.issubdtype(x.dtype, jnp.floating)


def identities(parameters: Any) -> Iterator[Any]:
    """Yields what tells apart parameters of operations whose text is the same.

    That is functions, as custom derivatives have them, and arrays, as programs within have that
    close over some. Two functions that do the same are not told to be the same: what has such a
    rule is traced anew when it is called again outside of ``jax.jit``.
    """
    is_program = lambda x: isinstance(x, (ClosedJaxpr, Jaxpr))  # noqa: E731
    for parameter in jax.tree.leaves(parameters, is_leaf=is_program):
        if is_program(parameter):
            yield from map(_contents, getattr(parameter, "consts", ()))
            yield from identities([x.params for x in parameter.eqns])
        # JAX's own functions cannot be called.
        elif hasattr(parameter, "call_wrapped") or (
            callable(parameter) and not isinstance(parameter, type)
        ):
            yield parameter if _is_hashable(parameter) else id(parameter)


def _contents(x: Any) -> Any:
    """Returns dtype, shape and digest of an array; of one that holds no numbers here, which it is.

    Cost: it is copied from its device.
    """
    if isinstance(x, Tracer) or jnp.issubdtype(x.dtype, jax.dtypes.extended):
        return id(x)
    array = np.asarray(x)
    return array.dtype, array.shape, hashlib.sha256(array.tobytes()).digest()


def _is_hashable(x: Any) -> bool:
    try:
        hash(x)
    except TypeError:
        return False
    return True


class _Of(enum.IntEnum):
    """What a value is computed from, the last of these that is."""

    NUMBERS = 0
    """Those that stand in the program."""
    READ = 1
    """What the function read."""
    ARGUMENTS = 2


class _Value(NamedTuple):
    """A value, and what it is computed from."""

    of: _Of
    value: Any


def _computed_once(closed: ClosedJaxpr, axes: tuple[str, ...]) -> list[Array]:
    """Returns what the operations on arguments take from those on what was read, varying."""
    arrays: list[Array] = []

    def take(x):
        arrays.append(vary(x, axes))

    nothing = [None] * len(closed.jaxpr.invars)
    _evaluate(closed, _Of.READ, closed.consts, nothing, take)
    return arrays


def _computed_of(closed: ClosedJaxpr, arrays: list[Array], leaves: list[Any]) -> list[Any]:
    """Returns the results, from the arguments and what ``_computed_once`` returned."""
    arrays_in_order = iter(arrays)
    nothing = [None] * len(closed.consts)
    return _evaluate(closed, _Of.ARGUMENTS, nothing, leaves, lambda _: next(arrays_in_order))


def _evaluate(
    closed: ClosedJaxpr, stage: _Of, consts: Sequence[Any], leaves: Sequence[Any], take: Callable
) -> list[Any]:
    """Returns the results of the operations of one stage, None where they are of the other.

    Args:
      closed: the program.
      stage: READ or ARGUMENTS.
      consts: what was read, None at the other stage.
      leaves: the arguments, None at the other stage.
      take: is given a value of READ that an operation of ARGUMENTS needs, and returns it; called
        in the same order at both stages.
    """

    def values_of(jaxpr: Jaxpr, given: Sequence[_Value]) -> list[_Value]:
        known = dict(zip((*jaxpr.constvars, *jaxpr.invars), given, strict=True))

        def read(x) -> _Value:
            return _Value(_Of.NUMBERS, x.val) if isinstance(x, Literal) else known[x]

        def taken(x) -> _Value:
            if (found := read(x)).of == _Of.READ:
                known[x] = found = _Value(_Of.ARGUMENTS, take(found.value))
            return found

        for equation in jaxpr.eqns:
            operands = [read(x) for x in equation.invars]
            of = max((x.of for x in operands), default=_Of.NUMBERS)
            called = equation.params.get("jaxpr")
            # Others are done at one of the stages: they stay what they are, with their name.
            is_mixed = len({x.of for x in operands} - {_Of.NUMBERS}) > 1
            if is_mixed and equation.primitive.name in CALLS and isinstance(called, ClosedJaxpr):
                inner = [_Value(_Of.NUMBERS, x) for x in called.consts]
                found = values_of(called.jaxpr, [*inner, *operands])
            else:
                if of == _Of.ARGUMENTS:
                    operands = [taken(x) for x in equation.invars]
                outs: Any = [None] * len(equation.outvars)
                if of in (_Of.NUMBERS, stage):
                    params = equation.primitive.get_bind_params(equation.params)
                    outs = equation.primitive.bind(*(x.value for x in operands), **params)
                    outs = outs if equation.primitive.multiple_results else [outs]
                found = [_Value(of, x) for x in outs]
            known.update(zip(equation.outvars, found, strict=True))
        return [(taken if jaxpr is closed.jaxpr else read)(x) for x in jaxpr.outvars]

    given = [_Value(_Of.READ, x) for x in consts] + [_Value(_Of.ARGUMENTS, x) for x in leaves]
    return [x.value for x in values_of(closed.jaxpr, given)]
