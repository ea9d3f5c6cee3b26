"""The two passes of first order as kernels; what they compute is in ``attn.blockwise``.

Pallas's have a folder for each kind of hardware, and beside them what they share: a call taken
apart. cuDNN's are a call of ``jax.nn``, for what it can do (``attn.kernels.cudnn``).

Where keys go round a ring of devices, a kernel runs for those at hand, and what it returns is
merged, or summed, as ``attn.blockwise`` and ``attn.tile_sum`` do.

**Which runs.** Where none is named, the first of ``attn.overrides.USUAL`` that takes the call;
where none does, loops over tiles. What each takes is said where it refuses, in the order in which
it is asked:

    no kernels for the platform, or XLA divides the call over devices     attn.overrides
    cudnn   sizes that are symbolic; more than the output is asked for;   attn.kernels.cudnn.band_of
            scores are changed; float32; widths; no band of the past
    fused   sizes that are symbolic                                       attn.kernels.call
            a function of pairs that is not of a pair alone, as it is     attn.kernels.reading
            given and written out number by number                        attn.kernels.written
            on GPU: another than Hopper, too long, float64, wide heads    attn.kernels.gpu.check
            on TPU: float64, too many tiles, or too many distances        attn.kernels.tpu.check
            an operation that the hardware has not                        attn.kernels.lacking
            on TPU: a function of pairs that keeps too much               attn.kernels.tpu.room

They stand for the value and for the first derivative in reverse: all else, forward mode and what is
of higher order, is the loops' (``attn.blockwise``). ``attn.explain`` asks the same functions.

**In which tiles.** Those of kernels are of ``attn.tiles.OF_KERNELS``, of half on a TPU where heads
are wide (``tiles_of``), and less there where a function of pairs is long
(``attn.kernels.tpu.room``); those of loops of ``attn.tiles.tile_sizes``, where kernels refuse a
call too. What XLA divides is known after the tiles are chosen: loops then have those of the
kernels.

Pallas takes a third of a second to import: so the modules are imported when one of them is asked.
"""

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from attn import softmax_state
from attn.devices import vary, varying
from attn.kernels import cudnn
from attn.overrides import Refused, all_options_of
from attn.plan import group_queries, ungroup_queries
from attn.spread import shares_of
from attn.target import target
from attn.tiles import OF_KERNELS, TileSizes

WIDE = 2**12
"""Bytes of a row of query and value, from which on fast memory of a TPU has room for less."""


def of_hardware(kernels: str) -> ModuleType:
    """Returns the module of the kernels for one kind of hardware: forward, backward and check."""
    return importlib.import_module(f"attn.kernels.{kernels}")


def band_of(asked: cudnn.Asked, named: str | None) -> cudnn.Band | None:
    """Returns the band that a query sees, of a call that is for cuDNN here; else None.

    Args:
      asked: for.
      named: the implementation, or None.

    Raises:
      attn.overrides.Refused: if cuDNN is named and cannot take it.
    """
    platform = target().platform
    if named == "cudnn" and not all_options_of(platform, named):
        raise Refused(f"its kernels are for gpu; this is {platform}", named)
    for how in all_options_of(platform, named):
        if how["kernels"] == "cudnn":
            try:
                return cudnn.band_of(asked, interpret=how["interpret"], is_here=True)
            except Refused:
                if named is not None:
                    raise
    return None


def tiles_of(kernels: str, query: Any, value: Any) -> TileSizes:
    """Returns the greatest sides of tiles for kernels, and arrays of which types are known."""
    sides, width = OF_KERNELS[kernels], query.shape[-1] + value.shape[-1]
    if kernels == "tpu" and width * query.dtype.itemsize >= WIDE:
        return sides._replace(query=sides.query // 2, key=sides.key // 2)
    return sides


def of_tiles(named: str | None) -> dict[str, Any] | None:
    """Returns which kernels of tiles run here, and how; None if none do."""
    for how in all_options_of(target().platform, named):
        if how["kernels"] in OF_KERNELS:
            return how
    return None


def planned(
    make: Callable[[TileSizes, Any, Any], tuple[Any, Any, Any]],
    sides: TileSizes | None,
    mask: Any,
    score: Any,
    arrays: tuple[Any, ...],
    scale: Any,
    **platform: Any,
) -> tuple[tuple[Any, Any, Any], Any]:
    """Returns a call planned so that kernels take it, and as they see it; computing nothing.

    What they do not take as it is given they may take written out (``attn.kernels.written``), and
    what has no room in their tiles may have room in smaller ones.

    Args:
      make: of the greatest sides of a tile, mask and score, gives plan, context and params.
      sides: of tiles; None is those of the kernels.
      mask: of the call.
      score: of the call.
      arrays: query, key, value and bias, or their shapes and dtypes.
      scale: of the scores.
      platform: which kernels, and how.

    Raises:
      attn.overrides.Refused: if they take it neither way.
    """
    query, _, value, _ = arrays
    first = tiles_of(platform["kernels"], query, value) if sides is None else sides

    def of(*changes):
        found = make(first, *changes)
        call = taken(*found, arrays, scale, **platform)
        fitting, grid = of_hardware(platform["kernels"]).fitting(call), found[0].grid
        if sides is None and fitting[:2] != (grid.query_side, grid.key_side):
            found = make(fitting, *changes)
            call = taken(*found, arrays, scale, **platform)
        return found, call

    try:
        return of(mask, score)
    except Refused:
        from attn.kernels import written

        changed = written.of_mask(mask), written.of_score(score)
        if changed[0] is mask and changed[1] is score:
            raise
    return of(*changed)


def taken(
    plan: Any, context: Any, params: Any, arrays: tuple[Any, ...], scale: Any, **platform: Any
) -> Any:
    """Returns a planned call as kernels see it, computing nothing.

    Args:
      plan: of the call.
      context: of the call.
      params: of its score.
      arrays: query, key, value and bias, or their shapes and dtypes.
      scale: of the scores.
      platform: which kernels, and how.

    Raises:
      attn.overrides.Refused: if they cannot take it.
    """
    found = []

    def look(context, params, arrays, scale):
        inputs = plan.arrange(params, *arrays, scale)
        found.append(check(plan, context, inputs, **platform))

    jax.eval_shape(look, context, params, arrays, scale)
    return found[0]


def check(plan: Any, context: Any, inputs: Any, *, kernels: str, interpret: bool) -> Any:
    """Returns the call as kernels see it.

    Args:
      plan: of the call.
      context: of the call.
      inputs: of the call.
      kernels: for which hardware.
      interpret: whether they are interpreted.

    Raises:
      attn.overrides.Refused: if they cannot take it.
    """
    from attn.kernels.call import taken_apart

    call = taken_apart(plan, context, inputs, interpret=interpret)
    of_hardware(kernels).check(call)
    return call


def attend(plan: Any, context: Any, inputs: Any, **platform: Any) -> tuple[Array, Array | None]:
    """Returns output and log-sum-exp, or None for what gives none.

    See ``attn.kernels.tpu.forward``.
    """
    if platform["kernels"] == "cudnn":
        return cudnn.forward(plan, inputs, interpret=platform["interpret"]), None
    call, ring = check(plan, context, inputs, **platform), plan.keys_ring
    forward = of_hardware(platform["kernels"]).forward
    if ring is None:
        return forward(call, context, inputs, shares_of(plan.grid, plan.ring))
    *batch, _, group_size, num_queries = inputs.query.shape
    queries, width = (*batch, group_size * num_queries), inputs.value.shape[-2]
    nothing = softmax_state.empty(queries, width, inputs.query.dtype)

    def visit(device, keys, state):
        there = inputs._replace(key=keys[0], value=keys[1])
        found = forward(call, context, there, ring.shares(plan.grid, device))
        found = softmax_state.of_results(*map(group_queries, found))
        return softmax_state.merge(state, found), ()

    keys = inputs.key, inputs.value
    state, _ = ring.around(visit, keys, vary(nothing, varying(inputs, context)), ())
    output, lse = softmax_state.finish(state)
    return ungroup_queries(output, group_size), ungroup_queries(lse, group_size)


def pull(
    plan: Any,
    context: Any,
    inputs: Any,
    lse: Array,
    cotangents: Sequence[Array | None],
    **platform: Any,
) -> Any:
    """Returns the cotangents of the inputs; see ``attn.kernels.tpu.backward``.

    Args:
      plan: of the call.
      context: of the call.
      inputs: of the call.
      lse: the log-sum-exp.
      cotangents: of the sums of the rule (``attn.blockwise``): what is mixed, ``r`` in the tangent
        of the output, which has ``-output . d_output``, and ``r`` that is the tangent of lse. None
        is 0.
      platform: which kernels, and how.
    """
    *lanes, group_size, num_queries = lse.shape
    d_output, of_output, d_lse = cotangents
    if d_output is None:
        width = inputs.value.shape[-2]
        d_output = jnp.zeros((*lanes, width, group_size, num_queries), lse.dtype)
    if platform["kernels"] == "cudnn":  # It finds by itself what is of the output.
        return cudnn.backward(plan, inputs, d_output, d_lse, interpret=platform["interpret"])
    d_sums = sum((x for x in (of_output, d_lse) if x is not None), jnp.zeros_like(lse))
    call, ring = check(plan, context, inputs, **platform), plan.keys_ring
    backward = of_hardware(platform["kernels"]).backward
    given = lse, d_output, d_sums
    if ring is None:
        return backward(call, context, inputs, *given, shares_of(plan.grid, plan.ring))

    def visit(device, keys, sums):
        there = inputs._replace(key=keys[0], value=keys[1])
        found = backward(call, context, there, *given, ring.shares(plan.grid, device))
        here = found._replace(key=None, value=None)
        return jax.tree.map(_added, sums, here), (found.key, found.value)

    keys = inputs.key, inputs.value
    zeros = vary(jax.tree.map(jnp.zeros_like, inputs), varying(inputs, context))
    sums = zeros._replace(key=None, value=None)
    sums, (d_key, d_value) = ring.around(visit, keys, sums, (zeros.key, zeros.value))
    return sums._replace(key=d_key, value=d_value)


def _added(total: Array, x: Array) -> Array:
    """Returns the sum; of an integer, whose cotangent is nothing, the first."""
    return total if x.dtype == jax.dtypes.float0 else total + x
