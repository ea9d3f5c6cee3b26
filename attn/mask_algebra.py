"""What a mask is, how masks compose, and how they are drawn; the patterns are in ``attn.masks``.

A mask answers two questions about a tile, a rectangle of consecutive queries and keys. ``allow``:
may query i attend to key j, pair by pair. ``tile``: does the whole tile hold no allowed pair
(``empty``), or only allowed pairs (``full``). A tile that is empty is never computed, one that is
full is not masked, and no T x S array is ever made.

Letters: ``*B`` leading axes, N query heads, T queries, S keys; t and s are the sides of one tile.
"""

import dataclasses
from typing import Any, NamedTuple, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from attn import fields
from attn.indices import Indices, expand

Class = TypeVar("Class", bound=type)


class TileKind(NamedTuple):
    """What is known of a tile; neither flag set means mixed, or not known."""

    empty: Bool[Array, ""] | bool
    full: Bool[Array, ""] | bool


class Mask:
    """Base of all masks; see the module docstring, and ``mask_class`` to write one.

    Two masks are equal if they are the same pattern of the same numbers and the same array
    objects: no array is read to find out.
    """

    def allow(self, indices: Indices) -> Bool[Array, "..."]:
        """Returns True where the query may attend to the key; broadcastable to ``[*B, N, t, s]``.

        What it returns for indices past T and S is not used, but it is asked about them.
        """
        raise NotImplementedError(f"{type(self).__name__} must define allow(indices)")

    def tile(self, indices: Indices) -> TileKind:
        """Returns whether the tile is surely empty or surely full, for all batches and heads.

        Unless a mask knows better, by looking at every pair: O(t s), with nothing missed.
        """
        allowed = self.allow(indices)
        return TileKind(empty=~jnp.any(allowed), full=jnp.all(allowed))

    def pad(self, num_queries: int, num_keys: int) -> "Mask":
        """Returns the mask made safe to cut tiles from up to these sizes; the rest is not read."""
        del num_queries, num_keys
        return self

    def reach(self) -> tuple[int | None, int | None]:
        """Returns a and b such that a pair is allowed only if ``i - a <= j <= i + b``.

        None is no limit, or none that is known before the program runs. Over a ring of devices,
        keys are sent no farther than this says that they are asked for.
        """
        return None, None

    def check(
        self, batch: tuple[int, ...], num_heads: int, num_queries: int, num_keys: int
    ) -> None:
        """Raises ValueError or TypeError unless the mask fits scores of ``[*B, N, T, S]``."""

    def picture(
        self,
        num_queries: int,
        num_keys: int,
        *,
        batch: tuple[int, ...] = (),
        head: int = 0,
        width: int = 64,
    ) -> str:
        """Returns a drawing of the mask: a line for each query, a character for each key.

        ``█`` may attend, ``·`` may not. What is longer than ``width`` is drawn smaller: each
        character is then a square of pairs, and ``▒`` one that holds both kinds.

        >>> from attn.masks import Causal, Prefix, Window
        >>> print((Window(left=1, right=0) | Prefix(2)).picture(5, 7))
        ██·····
        ██·····
        ███····
        ████···
        ██·██··
        >>> print(Causal().picture(6, 8, width=4))
        ▒···
        █▒··
        ██▒·

        Args:
          num_queries: T.
          num_keys: S.
          batch: which index of every leading axis to draw; of those left out, the first.
          head: which query head to draw.
          width: the greatest number of lines, and of characters in a line.

        Raises:
          ValueError: if a size is less than 1, or the mask has arrays for fewer positions.
        """
        for name, x in (("num_queries", num_queries), ("num_keys", num_keys), ("width", width)):
            fields.count(name, x, 1)
        whole = _indices_at(batch, head, jnp.arange(num_queries), jnp.arange(num_keys))
        jax.eval_shape(lambda: self.allow(whole))  # Line by line, no array would be too short.
        side = -(-max(num_queries, num_keys) // width)
        starts = np.arange(0, num_keys, side)
        lines = []
        for start in range(0, num_queries, side):
            queries = jnp.arange(start, min(start + side, num_queries))
            allowed = _allowed_at(self, batch, head, queries, jnp.arange(num_keys))
            counts = np.add.reduceat(np.sum(allowed, axis=0), starts)
            areas = queries.size * np.diff(starts, append=num_keys)
            cells = np.where(counts == 0, "·", np.where(counts == areas, "█", "▒"))
            lines.append("".join(cells))
        return "\n".join(lines)

    def __and__(self, other: "Mask") -> "Mask":
        return And(self, other) if isinstance(other, Mask) else NotImplemented

    def __or__(self, other: "Mask") -> "Mask":
        return Or(self, other) if isinstance(other, Mask) else NotImplemented

    def __invert__(self) -> "Mask":
        return Not(self)

    def __bool__(self) -> bool:
        raise TypeError(
            f"mask {self!r} is neither true nor false: masks compose with &, | and ~, not with "
            "and, or and not"
        )

    def __eq__(self, other: object) -> bool:
        (ours, tree), (theirs, their_tree) = jax.tree.flatten(self), jax.tree.flatten(other)
        return tree == their_tree and all(
            x is y or (isinstance(x, int) and isinstance(y, int) and x == y)
            for x, y in zip(ours, theirs, strict=True)
        )

    def __hash__(self) -> int:
        return hash(jax.tree.structure(self))

    def __repr__(self) -> str:
        shown = []
        for field in dataclasses.fields(self) if dataclasses.is_dataclass(self) else ():
            value = getattr(self, field.name)
            is_default = isinstance(value, int | None) and value == field.default
            if field.repr and not is_default:
                shown.append(f"{field.name}={fields.show(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def _set(self, **fields: Any) -> None:
        """Sets fields of a mask that is being made: later they are frozen."""
        for name, value in fields.items():
            object.__setattr__(self, name, value)


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(dataclasses.field,))
def mask_class(cls: Class) -> Class:
    """Returns a subclass of ``Mask`` as a frozen dataclass and a pytree.

    Its fields are the leaves, except for those of ``metadata={"static": True}``, which are part of
    the program. ``allow`` is all that it must define; also ``pad`` and ``check`` if it reads arrays
    along T or S, and ``tile`` if the corners of a tile can tell.

    >>> @mask_class
    ... class Blocks(Mask):
    ...     side: int = dataclasses.field(metadata={"static": True})
    ...
    ...     def allow(self, indices):
    ...         return indices.query // self.side == indices.key // self.side
    >>> Blocks(2) & ~Blocks(1)
    Blocks(side=2) & ~Blocks(side=1)
    >>> print((Blocks(2) & ~Blocks(1)).picture(4, 4))
    ·█··
    █···
    ···█
    ··█·
    """
    cls = dataclasses.dataclass(frozen=True, repr=False, eq=False)(cls)
    fields = dataclasses.fields(cls)
    statics = [field.name for field in fields if field.metadata.get("static")]
    leaves = [field.name for field in fields if not field.metadata.get("static")]

    def flatten(mask):
        keyed = [(jax.tree_util.GetAttrKey(name), getattr(mask, name)) for name in leaves]
        return keyed, tuple(getattr(mask, name) for name in statics)

    # Not by the constructor, as ``jax.tree_util.register_dataclass`` would: that checks what a user
    # gives, and a transform puts anything in place of an array (axes, shardings, None).
    def unflatten(static, data):
        mask = object.__new__(cls)
        mask._set(**dict(zip(statics + leaves, (*static, *data), strict=True)))
        return mask

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls


@mask_class
class _Pair(Mask):
    """What ``And`` and ``Or`` share."""

    left: Mask
    right: Mask

    def __post_init__(self):
        _check_masks(self, "left", "right")

    def pad(self, num_queries, num_keys):
        return type(self)(*(x.pad(num_queries, num_keys) for x in (self.left, self.right)))

    def check(self, batch, num_heads, num_queries, num_keys):
        for mask in (self.left, self.right):
            mask.check(batch, num_heads, num_queries, num_keys)


@mask_class
class And(_Pair):
    """Pairs that both masks allow."""

    def allow(self, indices):
        return self.left.allow(indices) & self.right.allow(indices)

    def tile(self, indices):
        left, right = self.left.tile(indices), self.right.tile(indices)
        return TileKind(left.empty | right.empty, left.full & right.full)

    def reach(self):
        (a, b), (c, d) = self.left.reach(), self.right.reach()
        return _nearer(a, c), _nearer(b, d)

    def __repr__(self):
        return f"{_within(self.left, Or)} & {_within(self.right, Or)}"


@mask_class
class Or(_Pair):
    """Pairs that at least one of the masks allows."""

    def allow(self, indices):
        return self.left.allow(indices) | self.right.allow(indices)

    def tile(self, indices):
        left, right = self.left.tile(indices), self.right.tile(indices)
        return TileKind(left.empty & right.empty, left.full | right.full)

    def reach(self):
        (a, b), (c, d) = self.left.reach(), self.right.reach()
        return _farther(a, c), _farther(b, d)

    def __repr__(self):
        return f"{self.left!r} | {self.right!r}"


@mask_class
class Not(Mask):
    """Pairs that the mask does not allow."""

    mask: Mask

    def __post_init__(self):
        _check_masks(self, "mask")

    def allow(self, indices):
        return ~self.mask.allow(indices)

    def tile(self, indices):
        empty, full = self.mask.tile(indices)
        return TileKind(empty=full, full=empty)

    def pad(self, num_queries, num_keys):
        return Not(self.mask.pad(num_queries, num_keys))

    def check(self, batch, num_heads, num_queries, num_keys):
        self.mask.check(batch, num_heads, num_queries, num_keys)

    def __invert__(self):
        return self.mask

    def __repr__(self):
        return f"~{_within(self.mask, And, Or)}"


def _check_masks(composed: Mask, *names: str) -> None:
    for name in names:
        if not isinstance(x := getattr(composed, name), Mask):
            raise TypeError(f"{type(composed).__name__}.{name} is {x!r}; expected a mask")


def _within(mask: Mask, *looser: type) -> str:
    """Returns the mask as an operand, in parentheses if it is of operators that bind less."""
    return f"({mask!r})" if isinstance(mask, looser) else repr(mask)


def _indices_at(batch: tuple[int, ...], head: int, queries: Array, keys: Array) -> Indices:
    """Returns the indices of one query head of one index of the leading axes."""
    place = (jnp.asarray(x) for x in (*batch, head))
    one = [expand(x, 3 + len(batch)) for x in (*place, queries[:, None], keys[None])]
    return Indices(tuple(one[:-3]), *one[-3:])


def _allowed_at(
    mask: Mask, batch: tuple[int, ...], head: int, queries: Array, keys: Array
) -> np.ndarray:
    """Returns what one query head of one index of the leading axes allows, ``[t, s]``."""
    allowed = np.asarray(mask.allow(_indices_at(batch, head, queries, keys)))
    shape = np.broadcast_shapes(allowed.shape, (queries.size, keys.size))
    lengths = shape[:-2]
    wanted = ((0,) * len(lengths) + (*batch, head))[-len(lengths) :] if lengths else ()
    picked = tuple(0 if n == 1 else x for n, x in zip(lengths, wanted, strict=True))
    return np.broadcast_to(allowed, shape)[picked]


def _nearer(a: int | None, b: int | None) -> int | None:
    """Returns the lesser limit; None is none."""
    return b if a is None else a if b is None else min(a, b)


def _farther(a: int | None, b: int | None) -> int | None:
    """Returns the greater limit; None is none."""
    return None if a is None or b is None else max(a, b)
