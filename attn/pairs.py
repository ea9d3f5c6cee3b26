"""Whether a function of a tile treats each pair by itself, as those of masks and scores are to.

A tile has any size, so what such a function makes of a pair must not depend on those beside it. It
is traced at tiles of two sizes: an axis that is not as long in both is of queries or of keys, and
what is done along it, a sum, a sort, a flip, mixes pairs. Not all that does is found: part of an
axis may, or what goes by the size of a tile.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr

from attn.closures import rule_of
from attn.indices import tile_indices

SIZES = ((2, 3), (5, 7))
"""Queries and keys of two tiles."""
AXES = dict(zip(zip(*SIZES, strict=True), ("queries", "keys"), strict=True))
"""What an axis is of, by its lengths in both."""
REDUCTIONS = "sum", "max", "min", "prod", "and", "or", "xor"
EACH = frozenset(("searchsorted", "isin"))
"""Functions of JAX that may sort what they are asked about, and answer each by itself."""
ALONG: dict[str, Callable[[Any], Sequence[Sequence[int]]]] = {
    **{f"reduce_{name}": lambda x: [x.params["axes"]] for name in REDUCTIONS},
    **{f"arg{name}": lambda x: [x.params["axes"]] for name in ("max", "min")},
    **{
        f"cum{name}": lambda x: [[x.params["axis"]]]
        for name in ("sum", "prod", "max", "min", "logsumexp")
    },
    "dot_general": lambda x: x.params["dimension_numbers"][0],
    "rev": lambda x: [x.params["dimensions"]],
    "sort": lambda x: [[x.params["dimension"]]] * len(x.invars),
    "top_k": lambda x: [[x.invars[0].aval.ndim - 1]],
}
"""Along which axes of its operands an operation is, by name, of an equation."""
PARTS: dict[str, Callable[[Any], Sequence[Sequence[int]]]] = {
    "concatenate": lambda x: [[x.params["dimension"]]] * len(x.invars),
    **dict.fromkeys(("dynamic_slice", "pad", "slice"), lambda x: [_changed(x)]),
}
"""The same of what takes part of an axis, or puts two together."""


def traced(
    function: Callable, batch: tuple[int, ...], num_heads: int, dtype: Any, size: int = 0
) -> tuple[ClosedJaxpr, Any]:
    """Returns the program of ``function(scores, indices)`` of a tile, and what it returns.

    Args:
      function: of scores ``[*B, N, t, s]`` and of the indices of the tile, which are not known.
      batch: the lengths of the leading axes.
      num_heads: N.
      dtype: of the scores.
      size: which of ``SIZES`` the tile has.
    """
    scores = jax.ShapeDtypeStruct((*batch, num_heads, *SIZES[size]), dtype)
    places = (jax.ShapeDtypeStruct((n,), jnp.int32) for n in SIZES[size])
    of_tile = functools.partial(tile_indices, tuple(batch), num_heads)
    # A new function for every trace: JAX remembers traces, and with them closed-over tracers.
    trace = jax.make_jaxpr(lambda *x: function(*x), return_shape=True)
    return trace(scores, jax.eval_shape(of_tile, *places))


def check(label: str, first: ClosedJaxpr, again: Callable[[], ClosedJaxpr]) -> None:
    """Raises ValueError if a function is known not to treat each pair by itself.

    Args:
      label: of the function.
      first: its program at the first of ``SIZES``.
      again: gives that at the second.
    """
    if (found := mixing(first, again)) is not None:
        raise ValueError(f"{label} does {found}; expected it to treat each pair by itself")


def mixing(
    first: ClosedJaxpr, again: Callable[[], ClosedJaxpr], *, is_strict: bool = False
) -> str | None:
    """Returns which operation mixes pairs, and along what; None if none is known to.

    Args:
      first: the program at the first of ``SIZES``.
      again: gives that at the second.
      is_strict: whether an operation is named too that may be of no consequence, or by which a
        program goes by the size of its tile: part of an axis, two that are put together, whether
        any pair of the tile is something.
    """
    if not is_strict:
        every = _together(first.jaxpr, first.jaxpr, with_rules=False)
        names = {x.primitive.name for x, _ in every}
        if not names & {*ALONG, "random_bits", "custom_jvp_call"}:
            return None
    for x, y in _together(first.jaxpr, again().jaxpr):
        if y is None:
            if is_strict:
                return "other operations in tiles of other sizes"
            continue
        name = x.primitive.name
        if name == "random_bits" and x.params["shape"] != y.params["shape"]:
            return "draw random numbers for a tile"
        of_operation = (ALONG | PARTS if is_strict else ALONG).get(name, lambda _: ())
        for before, after, along in zip(x.invars, y.invars, of_operation(x), strict=False):
            shapes = before.aval.shape, after.aval.shape
            if not is_strict and _is_whole(x, shapes, along):
                continue
            for n in along:
                lengths = shapes[0][n], shapes[1][n]
                if lengths[0] != lengths[1]:
                    return f"{name} along {AXES.get(lengths, 'queries or keys')}"
        if is_strict and name == "iota":
            n = x.params["dimension"]
            if x.outvars[0].aval.shape[n] != y.outvars[0].aval.shape[n]:
                return "count the pairs of a tile"
    return None


def _is_whole(equation: Any, shapes: Sequence[tuple[int, ...]], along: Sequence[int]) -> bool:
    """Returns whether one answer is for all of a tile: if any is something, where it begins."""
    name, dtype = equation.primitive.name, equation.invars[0].aval.dtype
    is_of_places = name in ("reduce_min", "reduce_max") and jnp.issubdtype(dtype, jnp.integer)
    lengths = enumerate(zip(*shapes, strict=True))
    every = {n for n, (before, after) in lengths if before != after}
    return (is_of_places or name in ("reduce_and", "reduce_or")) and every <= {*along}


def _together(first: Jaxpr, second: Jaxpr, *, with_rules: bool = True) -> Iterator[tuple[Any, Any]]:
    """Yields the operations of two programs side by side, and None where they are not the same.

    Those of rules of derivatives too, but not of what rules call, which is the function again; and
    none of which nothing comes.
    """
    for x, y in itertools.zip_longest(_asked_for(first), _asked_for(second)):
        if x is None or y is None or x.primitive.name != y.primitive.name:
            yield x or y, None
            return
        yield x, y
        if x.params.get("name") in EACH:
            continue
        for several in zip(_programs(x), _programs(y), strict=False):
            yield from _together(*several, with_rules=with_rules)
        if with_rules and x.primitive.name == "custom_jvp_call":
            rules = (rule_of(equation)[0].jaxpr for equation in (x, y))
            yield from _together(*rules, with_rules=False)


def _asked_for(program: Jaxpr) -> list[Any]:
    """Returns the operations on which a result depends."""
    asked, found = {id(x) for x in program.outvars}, []
    for x in reversed(program.eqns):
        if x.effects or any(id(out) in asked for out in x.outvars):
            asked |= {id(y) for y in x.invars}
            found.append(x)
    return found[::-1]


def _changed(equation: Any) -> list[int]:
    """Returns along which axes a result is not as long as the first operand."""
    shapes = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return [n for n, (a, b) in enumerate(zip(*shapes, strict=True)) if a != b]


def _programs(equation: Any) -> Iterator[Jaxpr]:
    """Yields the programs that an operation does."""
    for parameter in equation.params.values():
        for x in parameter if isinstance(parameter, tuple | list) else (parameter,):
            if isinstance(x, ClosedJaxpr):
                yield x.jaxpr
            elif isinstance(x, Jaxpr):
                yield x
