"""Score functions as values: what becomes of a scaled score before the softmax.

A score function takes the scaled scores, bias included, of a tile of queries and keys and the
indices of that tile, and returns scores of the same shape: ``s' = f(s, indices)``, pair by pair. So
it can be evaluated on any tile by itself, and nothing of size T x S is needed to know it.

Score functions are pytrees. Their leaves are their parameters: they can be learned, traced and
vmapped, and the gradient of each has the size of the parameter. A parameter never changes the dtype
of the scores: it is cast to it. Masks come after score functions, which see finite scores only (0,
or any other, for a pair that the mask is about to forbid) and must return finite ones.

Letters: ``*B`` leading axes, N query heads, T queries, S keys; t and s are the sides of one tile.
Query i stands at key ``i + offset``: an offset of 0 aligns the first query with the first key,
``S - T`` the last with the last.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float, Int, PyTree

from attn import fields, pairs, positions
from attn.indices import Indices, along_diagonals, expand


class Score:
    """Base of all score functions; see the module docstring."""

    def __call__(
        self, scores: Float[Array, "*B N t s"], indices: Indices
    ) -> Float[Array, "*B N t s"]:
        """Returns the changed scores of one tile, in the dtype of ``scores``.

        Args:
          scores: the scaled scores plus bias; finite.
          indices: where the pairs of the tile stand.
        """
        raise NotImplementedError

    def check(
        self,
        batch: tuple[int, ...],
        num_heads: int,
        num_queries: int,
        num_keys: int,
        dtype: DTypeLike,
    ) -> None:
        """Checks this score function against scores ``[*B, N, T, S]``.

        Shapes and dtypes are checked always, values where they are not traced. Here, for any
        subclass, that a tile keeps its shape and dtype, and that no operation is known to mix its
        pairs (``attn.pairs``): found by tracing, nothing is computed.

        Args:
          batch: the lengths of the leading axes.
          num_heads: N.
          num_queries: T.
          num_keys: S.
          dtype: that of the scores.

        Raises:
          ValueError: for a shape or value that does not fit, naming class and field.
          TypeError: for a dtype or type that does not fit, naming class and field.
        """
        # The sides are not those of the whole, as in most tiles.
        expected = (*batch, num_heads, *pairs.SIZES[0])
        program, result = pairs.traced(self, batch, num_heads, dtype)
        if not isinstance(result, jax.ShapeDtypeStruct):
            raise TypeError(f"score {self!r} returns {result!r}; expected an array")
        if result.shape != expected:
            raise ValueError(
                f"score {self!r} returns shape {result.shape} for a tile of scores of shape "
                f"{expected}; expected the same"
            )
        if result.dtype != dtype:
            raise TypeError(
                f"score {self!r} returns dtype {result.dtype} for scores of dtype "
                f"{jnp.dtype(dtype)}; expected the same"
            )
        again = lambda: pairs.traced(self, batch, num_heads, dtype, 1)[0]  # noqa: E731
        pairs.check(f"score {self!r}", program, again)

    def __repr__(self):
        shown = ", ".join(f"{name}={fields.show(value)}" for name, value in vars(self).items())
        return f"{type(self).__name__}({shown})"


def _static(default: Any) -> Any:
    """A keyword that is part of the structure of the pytree, not a leaf."""
    return dataclasses.field(default=default, kw_only=True, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SoftCap(Score):
    """Scores bent into ``(-cap, cap)``: ``s' = cap tanh(s / cap)``, nearly s where s is small.

    Attributes:
      cap: finite and above 0; one for all heads, or one for each, ``[N]``.

    References:
      Gemma team, Gemma 2, arXiv 2408.00118, section 2, logit soft-capping (with a cap of 50).
    """

    cap: float | Float[Array, ""] | Float[Array, "N"]

    def __call__(self, scores, indices):
        cap = _of_heads(self.cap, indices, scores.dtype)
        return cap * jnp.tanh(scores / cap)

    def check(self, batch, num_heads, num_queries, num_keys, dtype):
        _check_of_heads("SoftCap.cap", self.cap, num_heads)
        if fields.is_known(self.cap):
            caps = np.asarray(self.cap, np.float64)
            if not np.all((caps > 0) & np.isfinite(caps)):
                raise ValueError(f"SoftCap.cap is {self.cap}; expected it finite and above 0")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ALiBi(Score):
    """A penalty linear in the distance: ``s' = s - slopes[h] |i + offset - j|`` for head h.

    The paper's attention is causal, where the distance is ``i + offset - j``.

    Attributes:
      slopes: ``[N]``; those of the paper, which it does not learn, are
        ``attn.positions.alibi_slopes(N)``.
      offset: where query 0 stands among the keys.

    References:
      Press et al., arXiv 2108.12409, section 3.
    """

    slopes: Float[Array, "N"]
    offset: int = _static(0)

    def __post_init__(self):
        _check_int("ALiBi.offset", self.offset)

    def __call__(self, scores, indices):
        distances = jnp.abs(indices.query + self.offset - indices.key).astype(scores.dtype)
        return scores - _of_heads(self.slopes, indices, scores.dtype) * distances

    def check(self, batch, num_heads, num_queries, num_keys, dtype):
        fields.check_type("ALiBi.slopes", self.slopes, float, jnp.floating)
        fields.check_shape("ALiBi.slopes", self.slopes, [(num_heads,)], "one for each head")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class RelativeBias(Score):
    """A learned bias for each head and range of distances, as in T5.

        s' = s + table[bucket(j - i - offset), h]

    with the ``attn.positions.relative_buckets`` of the distances. The bias of a tile is the same
    along each of its diagonals, so it is looked up t + s - 1 times a head, and the gradient is
    summed along diagonals before it is scattered into the table. T5 itself does not scale its
    scores (``scale=1``).

    Attributes:
      table: ``[num_buckets, N]``.
      bidirectional: whether keys after the query have buckets of their own (half of them), or all
        share the bucket of the query's own position.
      max_distance: distances from here on share the last bucket.
      offset: where query 0 stands among the keys.

    References:
      Raffel et al., arXiv 1910.10683, section 2.1.
    """

    table: Float[Array, "num_buckets N"]
    bidirectional: bool = _static(True)
    max_distance: int = _static(128)
    offset: int = _static(0)

    def __post_init__(self):
        if not isinstance(self.bidirectional, bool):
            raise TypeError(
                f"RelativeBias.bidirectional is {self.bidirectional!r}; expected a bool"
            )
        _check_int("RelativeBias.max_distance", self.max_distance)
        _check_int("RelativeBias.offset", self.offset)

    def __call__(self, scores, indices):
        queries, keys = indices.queries, indices.keys
        diagonals = jnp.arange(queries.size + keys.size - 1)
        buckets = positions.relative_buckets(
            keys[0] - queries[-1] - self.offset + diagonals,
            self.table.shape[0],
            bidirectional=self.bidirectional,
            max_distance=self.max_distance,
        )
        heads = jnp.reshape(indices.head, (-1, 1))
        biases = jnp.asarray(self.table, scores.dtype)[buckets[None], heads]
        return scores + expand(along_diagonals(biases, queries.size), scores.ndim)

    def check(self, batch, num_heads, num_queries, num_keys, dtype):
        fields.check_type("RelativeBias.table", self.table, float, jnp.floating)
        num_buckets = jnp.shape(self.table)[0] if jnp.ndim(self.table) else 32
        expected = [(num_buckets, num_heads)]
        fields.check_shape(
            "RelativeBias.table", self.table, expected, "one for each bucket and head"
        )
        try:
            positions.bucket_starts(num_buckets, self.bidirectional, self.max_distance)
        except ValueError as error:
            shape = self.table.shape
            raise ValueError(f"RelativeBias.table has shape {shape}: {error}") from None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LogLength(Score):
    """Scores that grow with the logarithm of the number of keys, so that long rows stay sharp.

        s'_ij = factor[h] log(n_i) s_ij

    where n_i is ``num_keys`` if that is given, else the number of keys up to the query's own
    position, ``i + offset + 1``, at least 1: what causal attention sees. A query with a single key
    has log 1 = 0 and a score of 0, which changes nothing: its one weight is 1.

    Attributes:
      factor: one for all heads, or one for each, ``[N]``. ``1 / log(n)`` leaves a row of n keys as
        it is.
      num_keys: how many keys each query sees, where attention is not causal: an integer, or one for
        each leading index, ``[*B]``. A leaf without a gradient.
      offset: where query 0 stands among the keys; for causal attention.

    References:
      Nakanishi, Scalable-Softmax, arXiv 2501.19399: softmax(s log(n) z), with s learned for each
      head. Chiang and Cholak, arXiv 2202.12172, log-length scaling: factor 1, not learned.
    """

    factor: float | Float[Array, ""] | Float[Array, "N"]
    num_keys: int | Int[Array, "*B"] | None = None
    offset: int = _static(0)

    def __post_init__(self):
        _check_int("LogLength.offset", self.offset)

    def __call__(self, scores, indices):
        if self.num_keys is None:
            counts = indices.query + self.offset + 1
        else:
            counts = jnp.asarray(self.num_keys)
            counts = counts[indices.batch] if counts.ndim else counts
        # A query before the first key sees none and is masked; -inf would make its gradient NaN.
        logs = jnp.log(jnp.maximum(counts, 1).astype(scores.dtype))
        return scores * (_of_heads(self.factor, indices, scores.dtype) * logs)

    def check(self, batch, num_heads, num_queries, num_keys, dtype):
        _check_of_heads("LogLength.factor", self.factor, num_heads)
        if self.num_keys is None:
            return
        name, given = "LogLength.num_keys", self.num_keys
        fields.check_type(name, given, int, jnp.integer)
        fields.check_shape(
            name, given, [(), tuple(batch)], "one for all or one for each leading index"
        )
        if fields.is_known(given) and not np.all(np.asarray(given) >= 1):
            raise ValueError(f"{name} is {given}; expected 1 or more")
        if self.offset:
            raise ValueError(
                f"LogLength.offset is {self.offset} and num_keys is given; expected one of "
                "them, since num_keys holds for every query"
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Function(Score):
    """The user's own: ``s' = function(s, indices, params)``.

    It is called on tiles of any size and must be differentiable, treat each pair by itself
    (``attn.pairs``), and return finite scores of the shape and dtype that it is given. It may close
    over arrays, but what is to be learned belongs in ``params``. Outside of ``jit`` it is traced at
    every call, and what it reads is read then; a program is compiled anew only if it does something
    else.

    Attributes:
      function: takes scores ``[*B, N, t, s]``, the ``Indices`` of the tile, and ``params``.
      params: any pytree of arrays.

    Example:
      >>> import jax.numpy as jnp
      >>> def decay(scores, indices, rate):
      ...     return scores - rate * jnp.log1p(jnp.abs(indices.query - indices.key))
      >>> Function(decay, jnp.float32(0.5))
      Function(function=decay, params=0.5)
    """

    function: Callable[..., Any] = dataclasses.field(metadata={"static": True})
    params: PyTree = None

    def __call__(self, scores, indices):
        return self.function(scores, indices, fields.indexable(self.params))

    def check(self, batch, num_heads, num_queries, num_keys, dtype):
        if not callable(self.function):
            raise TypeError(f"score Function.function is {self.function!r}; expected a function")
        try:
            hash(self.function)
        except TypeError:
            raise TypeError(
                f"score Function.function is {self.function!r}; expected it to be hashable"
            ) from None
        names = "scores", "indices", "params"
        fields.check_arguments("score Function.function", self.function, names)
        for leaf in jax.tree.leaves(self.params):
            if not fields.is_array(leaf) and not isinstance(leaf, (bool, int, float, complex)):
                raise TypeError(f"score Function.params holds {leaf!r}; expected arrays")
        super().check(batch, num_heads, num_queries, num_keys, dtype)


@jax.tree_util.register_pytree_with_keys_class
class Chain(Score):
    """Several score functions, applied in order: ``Chain(f, g)`` is ``g(f(s))``.

    Attributes:
      functions: the score functions; those of a chain among them take its place.
    """

    functions: tuple[Score, ...]

    def __init__(self, *functions: Score):
        flat = [x.functions if isinstance(x, Chain) else (x,) for x in functions]
        self.functions = tuple(x for several in flat for x in several)

    def __call__(self, scores, indices):
        for function in self.functions:
            scores = function(scores, indices)
        return scores

    def check(self, batch, num_heads, num_queries, num_keys, dtype):
        for function in self.functions:
            if not isinstance(function, Score):
                raise TypeError(
                    f"Chain.functions holds {function!r}; expected score functions (a Python "
                    "function becomes one by Function)"
                )
            function.check(batch, num_heads, num_queries, num_keys, dtype)

    def __repr__(self):
        return f"Chain({', '.join(map(repr, self.functions))})"

    def tree_flatten_with_keys(self):
        """See ``jax.tree_util``."""
        return [(jax.tree_util.SequenceKey(i), x) for i, x in enumerate(self.functions)], None

    @classmethod
    def tree_unflatten(cls, _, functions):
        """See ``jax.tree_util``."""
        chain = cls()
        chain.functions = tuple(functions)
        return chain


def _of_heads(parameter: Any, indices: Indices, dtype: DTypeLike) -> Float[Array, "..."]:
    """Returns the parameter of each head of the tile, ``[N, 1, 1]``, or the one for all."""
    parameter = jnp.asarray(parameter, dtype)
    return parameter[indices.head] if parameter.ndim else parameter


def _check_of_heads(name: str, value: Any, num_heads: int) -> None:
    fields.check_type(name, value, float, jnp.floating)
    fields.check_shape(name, value, [(), (num_heads,)], "one for all heads or one for each")


def _check_int(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; expected an int")
