"""What a call would do, before it does it: which implementation, how many tiles, FLOPs and bytes.

Letters: ``*B`` leading axes, T queries, S keys, N query heads, K key heads, H head width, V value
width.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer, eval_context
from jax.sharding import AbstractMesh
from jaxtyping import Array, Bool, Float

from attn import arguments, dot_product, kernels
from attn.dot_product import Options
from attn.dtypes import accumulated
from attn.masks import Mask
from attn.overrides import DIVIDED, KERNELS, Refused, options_of, usual_of
from attn.plan import plan
from attn.target import PLATFORMS, compiled_for, target
from attn.tiles import EMPTY, FULL, MIXED, Grid, TileSizes, ceil_div


class Cost(NamedTuple):
    """What a computation takes."""

    flops: int
    """Of the matrix products, counting a multiplication and an addition as two."""
    temporary_bytes: int
    """Beside arguments and results, as XLA on CPU allocates; of a call of a thousand queries and
    keys or more, without a bias of T x S, right within a factor of 1.5. Of the reference with a
    score function too low: what such a function keeps of every pair is not known. Of the fused
    kernels, the most that XLA on TPU needs: every array and result copied once; as it allocates for
    an H100, right within a factor of 2. Of cuDNN, the same copies as on TPU."""


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What ``explain`` found; printed, it reads as a text."""

    implementation: str
    """The one that would run."""
    refused: dict[str, str]
    """The others, and why each would not."""
    beyond: str
    """The one of all derivatives but the first in reverse: of ``jvp``, Hessians and so on."""
    tile: tuple[int, int]
    """Queries and keys of a tile; of cuDNN, which does not say, those of the loops in its place."""
    tiles: dict[str, int] | None
    """How many are full, mixed and empty; None if the mask is not known yet (traced)."""
    forward: Cost
    """Of the output."""
    gradient: Cost
    """Of the output and of its gradients in query, key and value."""

    def __str__(self) -> str:
        """Returns a few lines."""
        if self.tiles is None:
            tiles = "not known, as the mask is traced (FLOPs are those of all)"
        else:
            tiles = ", ".join(f"{count} {kind}" for kind, count in self.tiles.items())
        lines = [
            f"implementation  {self.implementation}; of jvp and beyond the gradient {self.beyond}",
            *(f"not {name:<11} {reason}" for name, reason in self.refused.items()),
            f"tiles           {tiles}; of {self.tile[0]} queries, {self.tile[1]} keys",
        ]
        for name, cost in (("forward", self.forward), ("with gradient", self.gradient)):
            flops, size = cost.flops / 1e9, cost.temporary_bytes / 1e6
            lines.append(f"{name:<15} {flops:.3g} GFLOP, {size:.3g} MB of temporary memory")
        return "\n".join(lines)


def explain(
    query: Float[Array, "*B T N H"] | jax.ShapeDtypeStruct,
    key: Float[Array, "*B S K H"] | jax.ShapeDtypeStruct,
    value: Float[Array, "*B S K V"] | jax.ShapeDtypeStruct,
    bias: Float[Array, "..."] | jax.ShapeDtypeStruct | None = None,
    mask: Bool[Array, "..."] | Mask | None = None,
    *,
    sinks: Float[Array, "..."] | jax.ShapeDtypeStruct | None = None,
    dropout_rate: float = 0.0,
    dropout_rng: Array | None = None,
    implementation: str | None = None,
    return_residual: bool = False,
    platform: str | None = None,
    **options: Unpack[Options],
) -> Explanation:
    """Returns what ``attn.dot_product_attention`` would do with these arguments.

    No attention is computed, only the tile rules of the mask; query, key, value, bias and sinks
    may be given by shape and dtype. Arguments and errors are those of the call. Costs are those
    without sinks and dropout, which change neither tiles nor products. ``platform`` is ``"cpu"``,
    ``"gpu"`` or ``"tpu"``, that of JAX's default backend if None; it need not be there, and a GPU
    that is not is a Hopper. Arrays or shapes whose sharding is over several devices are told to be
    divided by XLA; inside of ``jax.jit`` that is not known.

    Raises:
      ValueError: as the call does, and for sizes that are symbolic.
      TypeError: as the call does.

    Example:
      >>> import attn, jax
      >>> x = jax.ShapeDtypeStruct((1, 8192, 4, 64), "float32")
      >>> found = attn.explain(x, x, x, is_causal=True)
      >>> found.implementation, found.tiles
      ('blockwise', {'full': 120, 'mixed': 16, 'empty': 120})
    """
    named = dot_product.chosen(implementation)
    given = query, key, value, bias, mask, sinks, *options.values()
    is_divided = any(map(_is_divided, jax.tree.leaves(given)))

    def check(query, key, value, bias, sinks):
        query, key, value = arguments.arrays(query=query, key=key, value=value)
        if sinks is not None:
            arguments.sinks_of(sinks, query)
        return query, key, value, arguments.resolve(query, key, bias, None).bias

    arrays: Any = jax.eval_shape(check, query, key, value, bias, sinks)
    for name, x in zip(("query", "key", "value"), arrays, strict=False):
        if not all(isinstance(n, int) for n in x.shape):
            raise ValueError(f"{name} has shape {x.shape}; expected sizes that are known")
    beside = dot_product.asked_beside(arrays[0], options.get("scale"), sinks, return_residual)
    resolved = arguments.resolve(arrays[0], arrays[1], None, mask, **options)
    resolved = arguments.dropped(resolved, dropout_rate, dropout_rng)
    if resolved.dropout_seed is not None:
        beside = *beside, "dropout"
    asked = _Asked(arrays, resolved, beside, is_divided)
    if platform is None:
        return _found(named, asked, is_here=True)
    arguments.check_choice("platform", platform, PLATFORMS)
    if platform == target().platform:
        return _found(named, asked, is_here=True)
    with compiled_for(platform, "9.0" if platform == "gpu" else None):
        return _found(named, asked, is_here=False)


class _Asked(NamedTuple):
    """A call that is checked."""

    arrays: tuple[Any, ...]
    """Shapes and dtypes of query, key, value and bias."""
    resolved: arguments.Resolved
    """But for the bias."""
    beside: tuple[str, ...]
    """See ``attn.dot_product.asked_beside``."""
    is_divided: bool
    """Whether XLA divides it over devices."""


def _found(named: str | None, asked: _Asked, *, is_here: bool) -> Explanation:
    """Returns what is done on the target, which is here or not."""
    (query, key, value, _), resolved = asked.arrays, asked.resolved
    platform = target().platform
    taken: dict[str, Any] = {}
    refusals: dict[str, str | None] = dict.fromkeys(KERNELS)
    for kind in KERNELS:
        try:
            taken[kind] = _taken(kind, named, asked, is_here=is_here)
        except Refused as refusal:
            refusals[kind] = refusal.reason
        how = options_of(platform, kind)
        if asked.is_divided and how is not None and not how["interpret"]:
            refusals[kind] = DIVIDED
    if named is not None and refusals.get(named):
        raise Refused(str(refusals[named]), named)
    takers = [kind for kind in usual_of(platform) if refusals[kind] is None]
    default = next(iter(takers), "blockwise")
    name = named or default
    refused = {
        **{
            kind: why or f"{default} comes before it: it runs if it is named"
            for kind, why in refusals.items()
        },
        "blockwise": f"{default} comes before it: it runs if it is named",
        "reference": "it takes O(T S) memory: it runs if it is named",
    } | {default: "it would run if no implementation were named"}
    # That XLA divides a call is not known where it is planned, which is for whom takes it else.
    planned = name if named else next((kind for kind in usual_of(platform) if kind in taken), name)
    how, of_plan, sides = options_of(platform, name), taken.get(planned), None
    if name == "reference":
        sides = TileSizes(query.shape[-3], key.shape[-3])
    elif of_plan is not None:
        grid = of_plan.plan.grid
        found = grid.query_side, grid.key_side
        sides = TileSizes(*found, multiple=math.gcd(*found))
    grid, kinds = _tiles(query, key, resolved.mask, sides)
    if name == "reference" or kinds is None:
        visited = math.prod(grid.counts)
    else:
        visited = kinds["full"] + kinds["mixed"]
    lanes = math.prod(query.shape[:-3]) * query.shape[-2]
    pairs = visited * lanes * grid.query_side * grid.key_side
    width, value_width = query.shape[-1], value.shape[-1]
    memory = _BYTES[name if how is None else how["kernels"]]
    forward_bytes, gradient_bytes = memory(grid, lanes, query, key, value, taken.get(name))
    return Explanation(
        implementation=name,
        refused={other: why for other, why in refused.items() if other != name},
        beyond="reference" if name == "reference" else "blockwise",
        tile=(grid.query_side, grid.key_side),
        tiles=kinds,
        forward=Cost(2 * pairs * (width + value_width), forward_bytes),
        gradient=Cost(_with_backward(name, grid, pairs, width, value_width), gradient_bytes),
    )


def _is_divided(x: Any) -> bool:
    """Returns whether an array, or what has its sharding, is over several devices."""
    sharding = None if isinstance(x, Tracer) else getattr(x, "sharding", None)
    return sharding is not None and sharding.num_devices > 1


def _taken(kind: str, named: str | None, asked: _Asked, *, is_here: bool) -> Any:
    """Returns the call as kernels of a kind see it, None if they are not of tiles.

    Raises:
      Refused: if they do not take it.
    """
    how = options_of(target().platform, kind)
    if how is None or (how["interpret"] and named != kind):
        own = [place for place, x in KERNELS[kind].items() if not x["interpret"]]
        places = ", ".join(own).replace("cuda", "gpu")
        if how is not None:
            raise Refused(f"its kernels are for {places}; named, they are interpreted here", kind)
        raise Refused(f"its kernels are for {places}; this is {target().platform}", kind)
    (query, key, value, bias), resolved = asked.arrays, asked.resolved
    if how["kernels"] == "cudnn":
        changes = bias, resolved.mask, resolved.score
        for_cudnn = kernels.cudnn.Asked(query, key, value, *changes, asked.beside)
        kernels.cudnn.band_of(for_cudnn, interpret=how["interpret"], is_here=is_here)
        return None
    dropped = resolved.dropout_seed, resolved.dropout_rate

    def make(sides, mask, score):
        return plan(query, key, mask, score, *dropped, sides, named=named)

    changes = resolved.mask, resolved.score
    return kernels.planned(make, None, *changes, asked.arrays, resolved.scale, **how)[1]


def _with_backward(name: str, grid: Grid, pairs: int, width: int, value_width: int) -> int:
    """Returns the FLOPs of both passes: of s and o, and of dp, dv, dq, dk and s once more.

    The scores are still there where nothing is cut into tiles.
    """
    again = 0 if name == "reference" or grid.counts == (1, 1) else width
    if name == "fused":  # Each of two passes computes s and dp.
        again = 2 * width + value_width
    return 2 * pairs * (width + value_width + 2 * value_width + 2 * width + again)


def _tiles(
    query: Any, key: Any, mask: Mask | None, sides: TileSizes | None
) -> tuple[Grid, dict[str, int] | None]:
    """Returns how a call is cut, and how many tiles of each kind there are, if that is known."""
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (query, key)]
    planned = functools.partial(plan, *shapes, mask, None, None, 0.0, sides)
    call, context, _ = planned()
    if any(isinstance(x, Tracer) for x in jax.tree.leaves(context)):
        return call.grid, None
    # Once more, where no types tell of devices: inside of ``jax.shard_map`` what is planned does.
    nowhere = AbstractMesh((), ())
    try:
        with jax.sharding.use_abstract_mesh(nowhere), eval_context():
            call, context, _ = planned()
            rows, columns = (jnp.arange(count) for count in call.grid.counts)
            kinds = jax.lax.map(lambda i: call.kinds(context, i, columns), rows)
    except NameError:  # The mask asks on which device it is.
        return call.grid, None
    names = (("full", FULL), ("mixed", MIXED), ("empty", EMPTY))
    return call.grid, {name: int(np.sum(np.asarray(kinds) == kind)) for name, kind in names}


def _linear(
    grid: Grid, lanes: int, query: Any, key: Any, value: Any, taken: Any
) -> tuple[int, int]:
    """Returns the bytes of arrays of positions last, and of a few tiles of scores."""
    del taken
    size = accumulated(query.dtype).itemsize
    result = math.prod(query.shape[:-1]) * value.shape[-1]
    arrays = math.prod(query.shape) + math.prod(key.shape) + math.prod(value.shape)
    tile = lanes * grid.query_side * grid.key_side
    return int(size * (arrays + 2 * tile)), int(size * (1.25 * (arrays + result) + 3.2 * tile))


def _quadratic(
    grid: Grid, lanes: int, query: Any, key: Any, value: Any, taken: Any
) -> tuple[int, int]:
    """Returns the bytes of a few maps."""
    del key, value, taken
    size = accumulated(query.dtype).itemsize
    pairs = lanes * grid.num_queries * grid.num_keys
    return int(1.5 * size * pairs), int(4.3 * size * pairs)


def _copies(
    grid: Grid, lanes: int, query: Any, key: Any, value: Any, taken: Any
) -> tuple[int, int]:
    """Returns the bytes of every array and result once, as rows of whole registers hold them."""
    del grid, lanes, taken

    def numbers(x):
        return math.prod(x.shape[:-1]) * 128 * ceil_div(x.shape[-1], 128)

    size = accumulated(query.dtype).itemsize
    arrays = sum(numbers(x) for x in (query, key, value))
    result = math.prod(query.shape[:-1]) * (value.shape[-1] + 1)
    forward = query.dtype.itemsize * arrays + size * result
    return forward, 2 * forward + size * arrays


def _in_tiles(
    grid: Grid, lanes: int, query: Any, key: Any, value: Any, taken: Any
) -> tuple[int, int]:
    """Returns the bytes of arrays and results in whole tiles, and of what stands beside them.

    That is tiles at every distance, and results of splits of keys.
    """
    sides = grid.query_side, grid.key_side
    rows, columns = (n * side for n, side in zip(grid.counts, sides, strict=True))
    width, value_width = (64 * ceil_div(x.shape[-1], 64) for x in (query, value))
    of_keys = lanes // query.shape[-2] * key.shape[-2]
    numbers = (lanes * rows + of_keys * columns) * (width + value_width)
    arrays = 1.1 * query.dtype.itemsize * numbers
    tables = sum(x.is_diagonal for x in taken.pairs.inputs)
    tables *= 4 * query.shape[-2] * taken.pairs.distances.count * math.prod(sides)
    num_splits = kernels.of_hardware("gpu").num_splits_of(taken, lanes, *grid.counts)
    splits = 4 * num_splits * lanes * rows * (value_width + 1) if num_splits > 1 else 0
    return int(arrays + tables + splits), int(max(1.6 * arrays, arrays + splits) + 2 * tables)


_BYTES = {
    "tpu": _copies,
    "gpu": _in_tiles,
    "cudnn": _copies,
    "blockwise": _linear,
    "reference": _quadratic,
}
"""By whose kernels run, or the implementation without any."""
