"""A function of pairs that makes more than one number of a pair, written out number by number.

A kernel has a tile of pairs, and what it does to one it does to all: it is elementwise. A user's
function may make more of a pair: the features of both, of which it takes the distance; the cases
that one is selected of; the steps of a search. So the function is traced where it is of one pair.
Then every axis of what it makes is of leading axes and heads, or of further numbers, and as these
are few, each is computed as a tile of its own: what moves numbers about only says which is which, a
sum over some is as many additions, a loop is its steps.

Only what kernels refuse as it is given is written out, and then loops have it so too. Cost: it is
traced three times more, twice to see that it mixes no pairs, and every number is an operation of
the kernel.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from attn import masks, pairs, scores
from attn.devices import example, varying
from attn.indices import Indices
from attn.kernels.written.writer import Writer
from attn.mask_algebra import And, Mask, Not, Or, mask_class
from attn.overrides import Refused
from attn.scores import Chain, Score


def of_mask(mask: Any) -> Any:
    """Returns the mask, what is a user's own in it written out; None if it is none."""
    if isinstance(mask, And | Or | Not):
        parts = (mask.mask,) if isinstance(mask, Not) else (mask.left, mask.right)
        changed = [of_mask(x) for x in parts]
        is_same = all(x is y for x, y in zip(parts, changed, strict=True))
        return mask if is_same else type(mask)(*changed)
    is_ours = type(mask).__module__ == masks.__name__ and not isinstance(mask, masks.Where)
    return mask if mask is None or is_ours else Written(mask)


def of_score(score: Any) -> Any:
    """Returns the score function in the same way."""
    if isinstance(score, Chain):
        changed = [of_score(x) for x in score.functions]
        is_same = all(x is y for x, y in zip(score.functions, changed, strict=True))
        return score if is_same else Chain(*changed)
    is_ours = type(score).__module__ == scores.__name__ and not isinstance(score, scores.Function)
    return score if score is None or is_ours else WrittenScore(score)


@mask_class
class Written(Mask):
    """A mask, its pairs written out."""

    mask: Mask

    def allow(self, indices):
        return written(lambda _, at: self.mask.allow(at), None, indices)

    def tile(self, indices):
        return self.mask.tile(indices)

    def pad(self, num_queries, num_keys):
        return Written(self.mask.pad(num_queries, num_keys))

    def reach(self):
        return self.mask.reach()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class WrittenScore(Score):
    """A score function, written out."""

    score: Score

    def __call__(self, scores, indices):
        return jnp.broadcast_to(written(self.score, scores, indices), scores.shape)


def written(function: Callable, scores: Array | None, indices: Indices) -> Array:
    """Returns ``function(scores, indices)``, or what broadcasts to it, by what is done to tiles.

    Args:
      function: of a tile, which treats each pair by itself.
      scores: of the tile ``[*B, N, t, s]``; None if the function takes none.
      indices: of the tile.

    Raises:
      attn.overrides.Refused: if it is of operations that are not written out.
    """
    given, axes = (scores, indices), varying(scores, indices)

    def traced(*sides):
        of_tile = jax.tree.map(lambda x: _with_sides(x, sides, axes), given)
        return jax.make_jaxpr(lambda *x: function(*x))(*of_tile)

    writer = Writer((*(x.size for x in indices.batch), indices.head.size), axes)
    try:
        # Of one pair nothing shows that it is not treated by itself.
        first, second = (traced(*sides) for sides in pairs.SIZES)
        if (found := pairs.mixing(first, lambda: second, is_strict=True)) is not None:
            raise Refused(f"its function of pairs does {found}")
        (found,) = writer.run(traced(1, 1), [writer.given(x) for x in jax.tree.leaves(given)])
        return writer.tile(found)
    except Refused:
        raise
    except Exception as error:  # A user's function may take no tile of one pair.
        reason = f"its function of pairs cannot be written out: {error}"
        raise Refused(reason.partition("\n")[0]) from error


def _with_sides(x: Array, sides: tuple[int, int], axes: tuple[str, ...]) -> Any:
    """Returns the type of an array of a tile, were it of other sides."""
    own = (side if n > 1 else 1 for n, side in zip(x.shape[-2:], sides, strict=True))
    return example((*x.shape[:-2], *own), x.dtype, axes)
