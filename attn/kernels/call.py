"""A planned call as kernels see it: its function of pairs taken apart, its arrays heads first.

Letters: ``*B`` leading axes, N query heads, K key heads, G = N / K, T queries, S keys, H and V head
widths, t and s the sides of a tile.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from attn.closures import is_float
from attn.devices import example, vary, varying
from attn.kernels.pairwise import Split, split
from attn.kernels.values import KEY, Value
from attn.overrides import Refused
from attn.plan import Context, Inputs, Plan, axes_of
from attn.tiles import FULL, Share, Tile, agreed, cut

SCORES, MASKED_SCORES, ALLOWED, FACTORS = range(4)
"""The results of a function of pairs."""
AT_ONCE = 2**16
"""Tiles whose kinds are found in one step."""


@dataclasses.dataclass(frozen=True)
class Call:
    """A planned call, taken apart."""

    plan: Plan
    pairs: Split
    dtype: Any
    """Of scores and sums."""
    is_masked: bool
    has_dropout: bool
    widths: tuple[int, int]
    """H and V."""
    interpret: bool

    @property
    def group_size(self) -> int:
        """G."""
        return self.plan.num_heads // self.plan.num_key_heads


def taken_apart(plan: Plan, context: Context, inputs: Inputs, *, interpret: bool) -> Call:
    """Returns the call as kernels see it.

    Args:
      plan: of the call.
      context: of the call.
      inputs: of the call.
      interpret: whether its kernels are interpreted.

    Raises:
      Refused: if kernels cannot take it.
    """
    grid = plan.grid
    sides = grid.query_side, grid.key_side
    if not all(isinstance(n, int) for n in (*plan.batch, *grid.counts)):
        raise Refused("its sizes are symbolic")
    is_masked, has_dropout = not (plan.allow is None and grid.is_exact), context.seed is not None

    def of_tile(operands, i, j, row, scores):
        context, bias, scale, params = operands
        tile = Tile(i, j, is_full=False, row=row, column=j)
        if bias is not None:
            bias = cut(grid, bias, axes_of(inputs).bias, tile)
        scores = scores * scale
        allowed = plan.allowed(context, tile) if is_masked else None
        changed = functools.partial(plan.changed, tile, scores, bias, params)
        factors = plan.factors(context, tile, scores)
        results = {SCORES: changed(None), FACTORS: factors}
        if is_masked:
            results |= {MASKED_SCORES: changed(allowed), ALLOWED: allowed}
        return [results.get(n, 0) for n in range(4)]

    shape = (*plan.batch, plan.num_key_heads, plan.num_heads // plan.num_key_heads, *sides)
    scores = example(shape, inputs.query.dtype, varying(context, inputs))
    operands = operands_of(context, inputs)
    pairs = split(of_tile, grid.counts, operands, scores, is_grouped=True)
    widths = inputs.key.shape[-2], inputs.value.shape[-2]
    return Call(plan, pairs, inputs.query.dtype, is_masked, has_dropout, widths, interpret)


def operands_of(context: Context, inputs: Inputs) -> tuple[Any, ...]:
    """Returns what the function of pairs is a function of."""
    return context, inputs.bias, inputs.scale, inputs.params


def arrays_of(call: Call, inputs: Inputs, dtype: Any = None) -> tuple[Array, Array, Array]:
    """Returns query ``[*B, N, T, H]``, key ``[*B, K, S, H]``, value ``[*B, K, S, V]``.

    In the dtype that they were given in, which holds them exactly, if no other is asked for.
    """
    plan = call.plan
    query = of_heads(plan, jnp.moveaxis(inputs.query, -3, -1))
    arrays = query, jnp.swapaxes(inputs.key, -1, -2), jnp.swapaxes(inputs.value, -1, -2)
    query, key, value = (x.astype(dtype or plan.dtype) for x in arrays)
    return query, key, value


def of_heads(plan: Plan, x: Float[Array, "*B K G r c"]) -> Float[Array, "*B N r c"]:
    """Returns what is of groups of heads as what is of heads."""
    return jnp.reshape(x, (*plan.batch, plan.num_heads, *x.shape[-2:]))


def of_groups(plan: Plan, x: Float[Array, "*B N r c"]) -> Float[Array, "*B K G r c"]:
    """Returns what is of heads as what is of groups of heads."""
    groups = plan.num_key_heads, plan.num_heads // plan.num_key_heads
    return jnp.reshape(x, (*plan.batch, *groups, *x.shape[-2:]))


def of_pairs(call: Call, operands: tuple[Any, ...], shares: tuple[Share, Share]) -> list[Array]:
    """Returns what the pairs at hand take from outside, in the order of ``Split.inputs``.

    What is cut along both axes is ``[*B, N, T, S]``, what is of queries ``[*B, N, 1, T]``, of keys
    ``[*B, N, 1, S]``, of neither ``[*B, N, 1, t]``, of distances ``[*B, N, 1, n (t + s)]`` as
    ``attn.kernels.tpu.tile.from_diagonals`` takes it; *B and N are 1 where it is the same for all.
    """
    plan, found = call.plan, []
    for x in call.pairs.inputs:
        if x.is_cut:
            found.append(_in_lanes(plan, call.pairs.whole(x, operands, shares)))
            continue
        if x.is_diagonal:
            parts = call.pairs.diagonals(x, operands)[..., None, ::-1]
            parts = jnp.pad(parts, [(0, 0)] * (parts.ndim - 1) + [(0, 1)])
            parts = jnp.moveaxis(jax.vmap(functools.partial(_in_lanes, plan))(parts), 0, -2)
            found.append(jnp.reshape(parts, (*parts.shape[:-2], -1)))
            continue
        parts = call.pairs.along(x, operands, shares)
        n, *shape = parts.shape
        parts = jnp.reshape(parts, (n, *(1,) * (2 - len(shape)), *shape))
        parts = jax.vmap(functools.partial(_in_lanes, plan))(parts)
        side = plan.grid.key_side if x.depends == KEY else plan.grid.query_side
        parts = jnp.reshape(parts, (*parts.shape[:-2], 1, -1))
        parts = jnp.broadcast_to(parts, (*parts.shape[:-1], side))
        parts = jnp.moveaxis(parts, 0, -2)
        found.append(jnp.reshape(parts, (*parts.shape[:-2], n * side)))
    # Memory of a kernel holds no booleans.
    found = [x.astype(jnp.int32) if x.dtype == bool else x for x in found]
    return vary(found, varying(operands))


def moving_of_pairs(
    call: Call, context: Context, inputs: Inputs, shares: tuple[Share, Share]
) -> tuple[list[Array], Callable]:
    """Returns what ``of_pairs`` does, and its transpose.

    The transpose takes the cotangents by value, perhaps of all lanes where the value is the same
    for all, and returns those of ``inputs.bias``, ``inputs.scale`` and ``inputs.params``.
    """
    _, *some = operands_of(context, inputs)
    moving = [n for n, x in enumerate(call.pairs.inputs) if is_float(x)]

    def moved(some):
        given = of_pairs(call, (context, *some), shares)
        return [given[n] for n in moving], given

    _, pull, given = jax.vjp(moved, some, has_aux=True)

    def transposed(found: dict[Value, Array]) -> tuple[Any, Any, Any]:
        (d_some,) = pull([_summed(found[call.pairs.inputs[n]], given[n]) for n in moving])
        return tuple(d_some)

    return given, transposed


def kinds_of(
    call: Call, context: Context, shares: tuple[Share, Share]
) -> Int[Array, "rows columns"]:
    """Returns the kinds of the tiles at hand, on which all lanes agree."""
    plan = call.plan
    rows, columns = (share[jnp.arange(share.count)] for share in shares)
    if plan.is_full:
        return jnp.full((rows.size, columns.size), FULL, jnp.int32)
    of_row = functools.partial(plan.kinds, context, columns=columns)
    # On a GPU, a step of a loop takes as long as the kinds of thousands.
    kinds = lax.map(of_row, rows, batch_size=max(1, AT_ONCE // columns.size))
    return agreed(kinds.astype(jnp.int32))


def _in_lanes(plan: Plan, x: Array) -> Array:
    """Returns ``[..., r, c]`` with the axes ``[*B, N, r, c]``, those of 1 as they are."""
    *lanes, rows, columns = x.shape
    missing = len(plan.batch) + 1 - len(lanes)
    if missing >= 0:
        return jnp.reshape(x, (*(1,) * missing, *x.shape))
    *batch, key_heads, group_size = lanes
    if key_heads * group_size != 1:
        groups = plan.num_key_heads, plan.num_heads // plan.num_key_heads
        x = jnp.broadcast_to(x, (*batch, *groups, rows, columns))
    return jnp.reshape(x, (*batch, -1, rows, columns))


def _summed(x: Array, like: Array) -> Array:
    """Returns a cotangent summed over the axes along which what it is of is the same."""
    x = jnp.sum(x, [n for n in range(x.ndim - 1) if like.shape[n] == 1], keepdims=True)
    if x.shape[-1] != like.shape[-1]:
        x = jnp.sum(jnp.reshape(x, (*x.shape[:-1], -1, like.shape[-1])), axis=-2)
    return x.astype(like.dtype)
