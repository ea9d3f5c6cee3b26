"""Multi-head attention as a Flax (linen) module: project, attend, project.

    Q = X_q W_Q + b_Q     K = X_k W_K + b_K     V = X_v W_V + b_V
    head_n = attention(Q_n, K_n, V_n)           Y = concat(head_1 .. head_N) W_O + b_O

Vaswani et al., arXiv 1706.03762, section 3.2.2. Parameters are named and shaped as in
``flax.linen.MultiHeadDotProductAttention``, so that a checkpoint of one loads into the other.

Letters: ``*B`` leading axes, T queries, S keys, D model width, N query heads, K key and value
heads, H head width, V value width.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Unpack, get_args

import jax
import jax.numpy as jnp
from flax import linen
from flax.typing import Dtype, Initializer
from jaxtyping import Array, Bool, Float

from attn import arguments, fields, positions, sharded
from attn.dot_product import Options, chosen, dot_product_attention
from attn.maps import attention_weights
from attn.masks import Mask


class MultiHeadAttention(linen.Module):
    """Projects inputs to queries, keys and values, attends, and projects the heads together.

    Raises, when called, before anything is projected:
      ValueError: for sizes that do not divide, a dropout rate without ``deterministic``, and as
        ``attn.dot_product_attention`` does; what is wrong with a score function, or with the mesh
        of a ``sequence_axis``, is found after.
      TypeError: as there.
    """

    num_heads: int
    """N, the query heads."""
    num_key_heads: int | None = None
    """K, the key and value heads; N if None. Fewer is grouped-query attention."""
    qkv_features: int | None = None
    """N H, the width of all queries together; the width of ``inputs_q`` if None."""
    value_features: int | None = None
    """N V, the width of all heads' outputs together; ``qkv_features`` if None."""
    out_features: int | None = None
    """The width of the result; that of ``inputs_q`` if None."""
    rotary: bool = False
    """Whether queries and keys are rotated by their position (``attn.positions.rotary``); the first
    query stands where ``alignment`` puts it."""
    dropout_rate: float = 0.0
    """Of weights, when the call is not ``deterministic``; drawn from the ``dropout`` stream."""
    use_bias: bool = True
    """Whether the four projections add a bias."""
    dtype: Dtype | None = None
    """Of the computation; by promotion of inputs and parameters if None. The softmax is in
    float32 at least."""
    param_dtype: Dtype = jnp.float32
    """Of the parameters."""
    kernel_init: Initializer = linen.initializers.lecun_normal()
    """Of the four matrices."""
    out_kernel_init: Initializer | None = None
    """Of the last matrix, if it is not ``kernel_init``."""
    bias_init: Initializer = linen.initializers.zeros_init()
    """Of the four biases."""
    out_bias_init: Initializer | None = None
    """Of the last bias, if it is not ``bias_init``."""
    implementation: str | None = None
    """Passed to ``attn.dot_product_attention``, or that of ``attn.sharded``."""
    sequence_axis: str | None = None
    """The axis, of the mesh that is set, over which the sequence is spread: then attention is that
    of ``attn.sharded`` as a ring, and lengths are multiples of the axis's size. Where they are of
    twice that, causal attention is exchanged into a zig-zag: equal work for all devices."""

    @linen.compact
    def __call__(
        self,
        inputs_q: Float[Array, "*B T D"],
        inputs_k: Float[Array, "*B S E"] | None = None,
        inputs_v: Float[Array, "*B S F"] | None = None,
        bias: Float[Array, "..."] | None = None,
        mask: Bool[Array, "..."] | Mask | None = None,
        *,
        sinks: Float[Array, "N"] | None = None,
        deterministic: bool | None = None,
        return_weights: bool = False,
        **options: Unpack[Options],
    ):
        """Returns the attended inputs, ``[*B, T, out_features]``.

        Args:
          inputs_q: what asks.
          inputs_k: what is asked; ``inputs_q`` if None (self-attention).
          inputs_v: what is answered; ``inputs_k`` if None.
          bias: added to the scores; broadcastable to ``[*B, N, T, S]``.
          mask: True may attend, or a value of ``attn.masks``.
          sinks: a logit for every head; see ``attn.dot_product_attention``.
          deterministic: whether to drop nothing; must be said if there is a ``dropout_rate``.
          return_weights: whether to return the map ``[*B, N, T, S]`` too, without sinks and
            dropout, at its quadratic memory.
          **options: those of ``attn.dot_product_attention``: ``is_causal``,
            ``local_window_size``, ``query_seq_lengths``, ``key_value_seq_lengths``, ``alignment``,
            ``scale``, ``score``, ``score_params``.
        """
        if inputs_k is None:
            if inputs_v is not None:
                raise ValueError("inputs_v is given without inputs_k; expected both or neither")
            inputs_k = inputs_q
        if inputs_v is None:
            inputs_v = inputs_k
        inputs_q, inputs_k, inputs_v = _inputs(inputs_q, inputs_k, inputs_v)
        sizes = self._sizes(inputs_q.shape[-1])
        rate = arguments.rate_of(self.dropout_rate)
        if rate and deterministic is None:
            raise ValueError(
                f"deterministic is None; expected True or False, as dropout_rate is {rate}"
            )
        if rate:  # Else it may be anything, such as what ``linen.remat`` traces.
            arguments.check_flag("deterministic", deterministic)
        drops = rate > 0 and not deterministic
        arguments.check_flag("return_weights", return_weights)
        self._check_call(sizes, inputs_q, inputs_k, bias, mask, sinks, options)

        project = functools.partial(
            linen.DenseGeneral,
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
        )
        query = project((sizes.num_heads, sizes.width), name="query")(inputs_q)
        key = project((sizes.num_key_heads, sizes.width), name="key")(inputs_k)
        value = project((sizes.num_key_heads, sizes.value_width), name="value")(inputs_v)
        if self.rotary:
            num_queries, num_keys = query.shape[-3], key.shape[-3]
            first = num_keys - num_queries if options.get("alignment") == "end" else 0
            query = positions.rotary(query, first + jnp.arange(num_queries))
            key = positions.rotary(key, jnp.arange(num_keys))
        attended = self._attention(query, key, options)(
            query,
            key,
            value,
            bias,
            mask,
            sinks=sinks,
            dropout_rate=rate if drops else 0.0,
            dropout_rng=self.make_rng("dropout") if drops else None,
            **options,
        )
        output = project(
            sizes.out_features,
            axis=(-2, -1),
            kernel_init=self.out_kernel_init or self.kernel_init,
            bias_init=self.out_bias_init or self.bias_init,
            name="out",
        )(attended)
        if return_weights:
            return output, attention_weights(query, key, bias, mask, **options)
        return output

    def _attention(self, query: Array, key: Array, options: Options) -> Callable[..., Any]:
        if self.sequence_axis is None:
            return functools.partial(dot_product_attention, implementation=self.implementation)
        mesh: Any = jax.sharding.get_abstract_mesh()
        implementation: Any = self.implementation  # It is checked there.
        blocks = 2 * mesh.shape.get(self.sequence_axis, 1)
        is_uneven = options.get("is_causal") and options.get("local_window_size") is None
        is_even = query.shape[-3] % blocks == key.shape[-3] % blocks == 0
        return functools.partial(
            sharded.dot_product_attention,
            axis_name=self.sequence_axis,
            mesh=mesh,
            placement="exchanged" if is_uneven and is_even else "contiguous",
            implementation=implementation,
        )

    def _sizes(self, width: int) -> "_Sizes":
        """Returns the sizes, of inputs of that width; raises TypeError or ValueError."""
        for name in ("rotary", "use_bias"):
            arguments.check_flag(name, getattr(self, name))

        def size(name, default):
            x = getattr(self, name)
            return default if x is None else fields.count(name, x, 1)

        num_heads = fields.count("num_heads", self.num_heads, 1)
        num_key_heads = size("num_key_heads", num_heads)
        if num_heads % num_key_heads:
            raise ValueError(
                f"num_key_heads is {num_key_heads}; expected a divisor of num_heads = {num_heads}"
            )
        qkv_features = size("qkv_features", width)
        value_features = size("value_features", qkv_features)
        for name, features in (("qkv_features", qkv_features), ("value_features", value_features)):
            if features % num_heads:
                raise ValueError(
                    f"{name} is {features}; expected a multiple of num_heads = {num_heads}"
                )
        head_width, value_width = qkv_features // num_heads, value_features // num_heads
        if self.rotary and head_width % 2:
            raise ValueError(
                f"qkv_features is {qkv_features}, {head_width} for each of num_heads = "
                f"{num_heads}; expected an even number for each, as rotary is True"
            )
        return _Sizes(
            num_heads, num_key_heads, head_width, value_width, size("out_features", width)
        )

    def _check_call(
        self, sizes: "_Sizes", inputs_q: Array, inputs_k: Array, bias, mask, sinks, options
    ) -> None:
        """Raises as the call of attention does, but for the score, before anything is projected."""
        of_share = get_args(sharded.Implementation)
        chosen(self.implementation, None if self.sequence_axis is None else of_share)

        def projected(x, num_heads) -> Any:
            """Of an array, its shape alone is looked at."""
            return jax.ShapeDtypeStruct((*x.shape[:-1], num_heads, sizes.width), jnp.float32)

        query = projected(inputs_q, sizes.num_heads)
        key = projected(inputs_k, sizes.num_key_heads)
        of_pairs = options | {"score": None, "score_params": None}
        with contextlib.suppress(NameError):  # A mask may ask on which device it is.
            arguments.resolve(query, key, bias, mask, **of_pairs)
        if sinks is not None:
            arguments.sinks_of(sinks, query)


class _Sizes(NamedTuple):
    """N, K, H, V and the width of the result."""

    num_heads: int
    num_key_heads: int
    width: int
    value_width: int
    out_features: int


def _inputs(*given: Any) -> list[Array]:
    """Returns the inputs of queries, keys and values as arrays that fit each other."""
    names = ("inputs_q", "inputs_k", "inputs_v")
    inputs_q, inputs_k, inputs_v = found = list(map(arguments.array, names, given))
    for name, x in zip(names, found, strict=True):
        if x.ndim < 2 or 0 in x.shape[-2:]:
            raise ValueError(f"{name} has shape {x.shape}; expected [*B, T, D], T and D at least 1")

    def batch(x):  # One row is the same with and without its axis.
        return () if x.shape[:-2] == (1,) else x.shape[:-2]

    if batch(inputs_k) != batch(inputs_q):
        raise ValueError(
            f"inputs_k has shape {inputs_k.shape}; expected leading axes {inputs_q.shape[:-2]}, as "
            f"inputs_q of shape {inputs_q.shape} has"
        )
    if (batch(inputs_v), inputs_v.shape[-2]) != (batch(inputs_k), inputs_k.shape[-2]):
        raise ValueError(
            f"inputs_v has shape {inputs_v.shape}; expected {(*inputs_k.shape[:-1], 'F')}, to go "
            f"with inputs_k of shape {inputs_k.shape}"
        )
    return found
