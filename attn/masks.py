"""Masks as values: which queries may attend to which keys.

A mask is a condition on a query i and a key j, written once and asked about one tile of queries
and keys at a time: which pairs of it are allowed, and whether none is, or all are (see
``attn.mask_algebra``). Here are the patterns, each with its condition; most of them know from the
corners of a tile that it is empty or full.

They compose with ``&``, ``|`` and ``~``: packed documents are ``Causal() & Segments(ids)``, a
prefix that all may read is ``Causal() | Prefix(length)``. A pattern that is not here is a
``Where``, or a class of one's own under ``mask_class``.

Masks are pytrees. Arrays, and the integers of ``Lengths`` and ``Prefix``, are leaves: they can be
traced, mapped and sharded. The Python numbers of other patterns (limits, a stride, a Python
offset) are part of the program: another number is compiled anew, so that what changes at every
call, as the offset does in decoding, should be an array.

Letters: ``*B`` leading axes, N query heads, T queries, S keys; t and s are the sides of one tile.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int

from attn import fields, pairs
from attn.indices import Indices, expand, tile_indices
from attn.mask_algebra import And, Mask, Not, Or, TileKind, mask_class

__all__ = [
    "And",
    "Causal",
    "Dense",
    "Dilated",
    "Lengths",
    "Mask",
    "Not",
    "Or",
    "Prefix",
    "Segments",
    "Strided",
    "TileKind",
    "Where",
    "Window",
    "mask_class",
]

_STATIC = {"static": True}


@mask_class
class Window(Mask):
    """Query i sees keys ``i + offset - left <= j <= i + offset + right``; None is no limit.

    ``offset`` places query 0 among the keys: 0 aligns the first query with the first key,
    ``S - T`` the last with the last. An integer, or an array of them that broadcasts to ``[*B]``.
    """

    left: int | None = dataclasses.field(default=None, metadata=_STATIC)
    right: int | None = dataclasses.field(default=None, metadata=_STATIC)
    offset: Int[Array, "*B"] | int = 0

    def __post_init__(self):
        self._set(
            left=fields.limit("Window.left", self.left),
            right=fields.limit("Window.right", self.right),
            offset=fields.constant_or_integers("Window.offset", self.offset),
        )

    def allow(self, indices):
        ahead = indices.key - indices.query - _of_batch(self.offset, indices)
        allowed = jnp.ones(ahead.shape, bool)
        if self.left is not None:
            allowed &= ahead >= -self.left
        if self.right is not None:
            allowed &= ahead <= self.right
        return allowed

    def tile(self, indices):
        least, greatest = (ahead - self.offset for ahead in _ahead_at_corners(indices))
        empty, full = False, True
        if self.left is not None:
            empty |= greatest < -self.left
            full &= least >= -self.left
        if self.right is not None:
            empty |= least > self.right
            full &= greatest <= self.right
        return _for_all(empty, full)

    def reach(self):
        if not isinstance(self.offset, int):
            return None, None
        return (
            None if self.left is None else self.left - self.offset,
            None if self.right is None else self.right + self.offset,
        )

    def check(self, batch, num_heads, num_queries, num_keys):
        fields.check_integers("Window.offset", self.offset, batch)

    def __repr__(self):
        shown = super().__repr__()
        if (self.left, self.right) != (None, 0):
            return shown
        return "Causal(" + shown.removeprefix("Window(right=0").removeprefix(", ")


def Causal(offset: Int[Array, "*B"] | int = 0) -> Window:
    """Query i sees keys ``j <= i + offset``: itself and its past."""
    return Window(left=None, right=0, offset=offset)


@mask_class
class Strided(Mask):
    """Query i sees keys at every ``stride``-th distance: ``(i - j - phase) mod stride = 0``.

    ``phase`` is an integer, or an array of them that broadcasts to ``[*B]``. The strided pattern
    of Child et al., arXiv 1904.10509, section 4.3, is ``Window(left=l, right=0)`` in one head and
    ``Causal() & Strided(l)`` in another.
    """

    stride: int = dataclasses.field(metadata=_STATIC)
    phase: Int[Array, "*B"] | int = 0

    def __post_init__(self):
        self._set(
            stride=fields.count("Strided.stride", self.stride, 1),
            phase=fields.constant_or_integers("Strided.phase", self.phase),
        )

    def allow(self, indices):
        return (indices.key - indices.query + _of_batch(self.phase, indices)) % self.stride == 0

    def tile(self, indices):
        # The differences in a tile are all those between its corners.
        least, greatest = (ahead + self.phase for ahead in _ahead_at_corners(indices))
        holds_multiple = greatest // self.stride * self.stride >= least
        is_uniform = self.stride == 1 or indices.query.size == indices.key.size == 1
        return _for_all(~holds_multiple, holds_multiple if is_uniform else False)

    def check(self, batch, num_heads, num_queries, num_keys):
        fields.check_integers("Strided.phase", self.phase, batch)


def Dilated(
    left: int | None, right: int | None, dilation: int, offset: Int[Array, "*B"] | int = 0
) -> Mask:
    """Query i sees keys ``j = i + offset + m dilation`` for whole ``-left <= m <= right``.

    A window with gaps, ``left`` and ``right`` the numbers of keys seen on each side; None is no
    limit. See Beltagy et al., arXiv 2004.05150, section 3.1.
    """
    dilation = fields.count("Dilated.dilation", dilation, 1)
    left, right = (fields.limit(f"Dilated.{n}", x) for n, x in (("left", left), ("right", right)))
    offset = fields.integers("Dilated.offset", offset)
    # The limits are multiples of the dilation: a tile that reaches into the window and holds a
    # multiple holds one in the window. So for one offset nothing is lost between the two claims.
    window = Window(
        left=None if left is None else left * dilation,
        right=None if right is None else right * dilation,
        offset=offset,
    )
    # Unsigned integers have no negative.
    return window & Strided(dilation, -offset if isinstance(offset, int) else np.int32(0) - offset)


@mask_class
class Segments(Mask):
    """Query i sees keys of its own segment: ``query[i] = key[j]``, any integers, in any order.

    Ids of queries broadcast to ``[*B, T]``, of keys to ``[*B, S]``; keys left out have the ids of
    the queries. A tile that is full is always found. One that is empty is if the ids of its queries
    and of its keys do not overlap as ranges: always, where ids count up along the sequence, as in
    0 0 0 1 1 2; where they are shuffled, or some are left out, a tile may be computed in vain.
    """

    query: Int[Array, "..."]
    key: Int[Array, "..."] | None = None

    def __post_init__(self):
        self._set(
            query=fields.integers("Segments.query", self.query),
            key=fields.integers("Segments.key", self.key),
        )

    def allow(self, indices):
        query, key = self._ids(indices)
        return query[..., :, None] == key[..., None, :]

    def tile(self, indices):
        query, key = self._ids(indices)
        first_query, last_query = jnp.min(query, axis=-1), jnp.max(query, axis=-1)
        first_key, last_key = jnp.min(key, axis=-1), jnp.max(key, axis=-1)
        return _for_all(
            empty=(last_query < first_key) | (last_key < first_query),
            full=(first_query == last_key) & (last_query == first_key),
        )

    def pad(self, num_queries, num_keys):
        # By repeating the last id: a tile over the edge then holds no id that is not within it.
        if self.key is None:
            return Segments(_pad(self.query, {-1: max(num_queries, num_keys)}, mode="edge"))
        return Segments(
            _pad(self.query, {-1: num_queries}, mode="edge"),
            _pad(self.key, {-1: num_keys}, mode="edge"),
        )

    def check(self, batch, num_heads, num_queries, num_keys):
        fields.check_integers("Segments.query", self.query, batch, T=num_queries)
        if self.key is not None:
            fields.check_integers("Segments.key", self.key, batch, S=num_keys)
        elif num_queries != num_keys:
            raise ValueError(
                f"mask Segments.key is None; expected the ids of the S = {num_keys} keys, as there "
                f"are T = {num_queries} queries"
            )

    def _ids(self, indices: Indices) -> tuple[Array, Array]:
        """Returns the ids of the tile's queries, ``[*B, 1, t]``, and of its keys."""
        key = self.query if self.key is None else self.key
        query, key = _cut(self.query, indices.queries, -1), _cut(key, indices.keys, -1)
        query, key = (expand(x[..., None, :], indices.axes - 1) for x in (query, key))
        return query, key


@mask_class
class Lengths(Mask):
    """Query i sees key j if ``i < query`` and ``j < key``: what is past the lengths is padding.

    Lengths are integers, or arrays of them that broadcast to ``[*B]``; None is no limit.
    """

    query: Int[Array, "*B"] | int | None = None
    key: Int[Array, "*B"] | int | None = None

    def __post_init__(self):
        self._set(
            query=fields.integers("Lengths.query", self.query),
            key=fields.integers("Lengths.key", self.key),
        )

    def allow(self, indices):
        allowed = jnp.ones_like(indices.query + indices.key, bool)
        if self.query is not None:
            allowed &= indices.query < _of_batch(self.query, indices)
        if self.key is not None:
            allowed &= indices.key < _of_batch(self.key, indices)
        return allowed

    def tile(self, indices):
        empty, full = False, True
        for length, along in ((self.query, indices.queries), (self.key, indices.keys)):
            if length is not None:
                empty |= along[0] >= length
                full &= along[-1] < length
        return _for_all(empty, full)

    def check(self, batch, num_heads, num_queries, num_keys):
        for name in ("query", "key"):
            if getattr(self, name) is not None:
                fields.check_integers(f"Lengths.{name}", getattr(self, name), batch)


@mask_class
class Prefix(Mask):
    """Every query sees keys ``j < length``; an integer, or an array that broadcasts to ``[*B]``."""

    length: Int[Array, "*B"] | int

    def __post_init__(self):
        self._set(length=fields.integers("Prefix.length", self.length))

    def allow(self, indices):
        return indices.key < _of_batch(self.length, indices)

    def tile(self, indices):
        return _for_all(indices.keys[0] >= self.length, indices.keys[-1] < self.length)

    def check(self, batch, num_heads, num_queries, num_keys):
        fields.check_integers("Prefix.length", self.length, batch)


@mask_class
class Dense(Mask):
    """An array of booleans that broadcasts to ``[*B, N, T, S]``; True may attend."""

    array: Bool[Array, "..."]

    def __post_init__(self):
        self._set(array=fields.array(self.array))

    def allow(self, indices):
        tile = jnp.asarray(self.array)
        tile = jnp.reshape(tile, (1,) * (2 - tile.ndim) + tile.shape)
        for axis, along in ((-2, indices.queries), (-1, indices.keys)):
            if tile.shape[axis] != 1:
                tile = _cut(tile, along, axis)
        return expand(tile, indices.axes)

    def pad(self, num_queries, num_keys):
        shape, lengths = self.array.shape, {-2: num_queries, -1: num_keys}
        is_cut = [axis for axis in lengths if len(shape) >= -axis and shape[axis] != 1]
        return Dense(_pad(self.array, {axis: lengths[axis] for axis in is_cut}))

    def check(self, batch, num_heads, num_queries, num_keys):
        x, expected = self.array, (*batch, num_heads, num_queries, num_keys)
        if not hasattr(x, "dtype"):
            raise TypeError(f"mask Dense.array is a {type(x).__name__}; expected an array of bool")
        if x.dtype != bool:
            raise TypeError(
                f"mask Dense.array has dtype {x.dtype}; expected bool, True where a query may "
                "attend (scores to add are a bias)"
            )
        if not fields.broadcasts(x.shape, expected):
            raise ValueError(
                f"mask Dense.array has shape {x.shape}; expected one broadcastable to "
                f"[*B, N, T, S] = {expected}"
            )


@mask_class
class Where(Mask):
    """Query i sees key j where a function of their indices says so.

    ``function(indices)`` returns booleans that broadcast to ``[*B, N, t, s]``, as the indices do
    (``attn.indices``). With ``params``, a pytree of arrays, it is ``function(indices, params)``,
    and the arrays can be mapped as those of any mask. It may close over arrays instead. Outside of
    ``jit`` it is traced at every call; only one that does something else is compiled anew. It is
    asked past T and S too, and treats each pair by itself (``attn.pairs``).

    ``tile``, called as the function is, returns whether a tile is (surely empty, surely full);
    without it all pairs of a tile are looked at, which is cheaper than to compute it in vain.

    The fixed pattern of Child et al., arXiv 1904.10509, section 4.3: blocks of 3 keys, the last of
    which all later queries see.

    >>> block = Where(lambda at: at.key // 3 == at.query // 3)
    >>> summary = Where(lambda at: at.key % 3 == 2)
    >>> print((Causal() & (block | summary)).picture(8, 8))
    █·······
    ██······
    ███·····
    ··██····
    ··███···
    ··████··
    ··█··██·
    ··█··███
    """

    function: Callable[..., Any] = dataclasses.field(metadata=_STATIC)
    params: Any = None
    rule: Callable[..., Any] | None = dataclasses.field(default=None, metadata=_STATIC, repr=False)

    def __init__(
        self,
        function: Callable[..., Any],
        params: Any = None,
        tile: Callable[..., Any] | None = None,
    ):
        for name, x in (("function", function), ("tile", tile)):
            if not callable(x) and (name, x) != ("tile", None):
                raise TypeError(f"Where.{name} is {x!r}; expected a function")
        self._set(function=function, params=params, rule=tile)

    def allow(self, indices):
        allowed = self._answer(indices)
        return expand(allowed, max(allowed.ndim, indices.axes))

    def tile(self, indices):
        if self.rule is None:
            return super().tile(indices)
        kind = self._call(self.rule, indices)
        if not isinstance(kind, tuple) or len(kind) != 2:
            raise TypeError(
                f"mask {self!r} returned {kind!r} of a tile; expected (surely empty, surely full)"
            )
        return TileKind(*kind)

    def check(self, batch, num_heads, num_queries, num_keys):
        names = ("indices",) if self.params is None else ("indices", "params")
        for name, function in (("function", self.function), ("tile", self.rule)):
            if function is not None:
                fields.check_arguments(f"mask Where.{name}", function, names)
        t, s = pairs.SIZES[0]
        answer = lambda _, at: self._answer(at)  # noqa: E731
        program, found = pairs.traced(answer, batch, num_heads, jnp.float32)
        expected = (*batch, num_heads, t, s)
        if found.dtype != bool:
            raise TypeError(f"mask {self!r} returned dtype {found.dtype}; expected bool")
        if not fields.broadcasts(found.shape, expected):
            raise ValueError(
                f"mask {self!r} returned shape {found.shape}; expected one broadcastable to "
                f"[*B, N, t, s] = {expected}, for a tile of {t} queries and {s} keys"
            )
        again = lambda: pairs.traced(answer, batch, num_heads, jnp.float32, 1)[0]  # noqa: E731
        pairs.check(f"mask {self!r}", program, again)
        indices = tile_indices(batch, num_heads, jnp.arange(t), jnp.arange(s))
        # A new function for every trace: JAX remembers traces, and with them closed-over tracers.
        kind = jax.eval_shape(lambda mask, at: mask.tile(at), self, indices)
        for name, flag in kind._asdict().items():
            if flag.shape != () or flag.dtype != bool:
                raise ValueError(
                    f"mask {self!r} returned, of a tile, {name} with shape {flag.shape} and dtype "
                    f"{flag.dtype}; expected a single bool, for all batches and heads"
                )

    def _answer(self, indices: Indices) -> Array:
        allowed = self._call(self.function, indices)
        if not hasattr(allowed, "dtype") and not isinstance(allowed, bool):
            raise TypeError(f"mask {self!r} returned {allowed!r}; expected an array of bool")
        return jnp.asarray(allowed)

    def _call(self, function: Callable[..., Any], indices: Indices) -> Any:
        if self.params is None:
            return function(indices)
        return function(indices, fields.indexable(self.params))


def _of_batch(x: Any, indices: Indices) -> Any:
    """Returns integers of ``[*B]`` as ``[*B, 1, 1, 1]``."""
    return x if isinstance(x, int) else expand(jnp.asarray(x)[..., None, None, None], indices.axes)


def _ahead_at_corners(indices: Indices) -> tuple[Array, Array]:
    """Returns the least and the greatest ``j - i`` of the tile."""
    queries, keys = indices.queries, indices.keys
    return keys[0] - queries[-1], keys[-1] - queries[0]


def _for_all(empty: Any, full: Any) -> TileKind:
    """Returns what is so for all batches, from claims for each."""
    return TileKind(*(jnp.all(x) if np.ndim(x) else x for x in (empty, full)))


def _cut(x: Any, along: Int[Array, "n"], axis: int) -> Array:
    length = x.shape[axis]
    if isinstance(length, int) and length < along.size:
        raise ValueError(f"a mask of {length} positions is asked about {along.size} of them")
    return lax.dynamic_slice_in_dim(jnp.asarray(x), along[0], along.size, axis)


def _pad(x: Any, lengths: dict[int, int], mode: str = "constant") -> Any:
    """Returns ``x`` with these axes, counted from the last, at least that long."""
    widths = [(0, 0)] * x.ndim
    for axis, length in lengths.items():
        widths[axis] = (0, max(length - x.shape[axis], 0))
    return jnp.pad(x, widths, mode=mode) if any(map(any, widths)) else x
