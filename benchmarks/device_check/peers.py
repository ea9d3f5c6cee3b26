"""Attention by everyone who can run here: functions that are timed, prepared for a piece of work.

A peer is a function from work to its calls, compiled; None where it has no argument for the work.
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attn import masks, scores
from benchmarks.device_check.implementations import in_linear_memory
from benchmarks.device_check.sizes import Sizes
from benchmarks.programs import compiled, with_gradient

FULL, CAUSAL, WINDOW, MASK, SCORE = "full", "causal", "window", "user's mask", "user's score"
DISTANCES, SINGLE = "relative bias", "causal, float32"
FORWARD, BOTH = "fwd", "fwd+bwd"
PERIOD = 3
"""The mask of a user: causal, and not the key before a query, nor every so many before that."""
NUM_BUCKETS = 32
"""Of distances, in a table of a bias for each head."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What is timed: shapes, and which pairs take part."""

    length: int
    width: int
    kind: str
    sizes: Sizes

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``[B, T, N, H]`` of query, key and value."""
        rows = max(self.sizes.tokens // self.length, 1)
        return rows, self.length, max(self.sizes.model_width // self.width, 1), self.width

    @property
    def dtype(self) -> str:
        """Of the arrays."""
        return "float32" if self.kind == SINGLE else self.sizes.dtype

    def table(self) -> np.ndarray:
        """Returns a bias for every distance in buckets, and every head."""
        return np.random.default_rng(1).standard_normal((NUM_BUCKETS, self.shape[2]), np.float32)

    def flops(self, passes: str) -> float:
        """Returns the operations that cannot be avoided: 2 matrix products forward, 5 backward.

        The mask of a user leaves no tile empty that a causal one does not.
        """
        rows, length, heads, width = self.shape
        seen = min(length, self.sizes.window) if self.kind == WINDOW else length
        pairs = length**2 if self.kind == FULL else seen * length - seen * (seen - 1) / 2
        return 4 * rows * heads * width * pairs * (3.5 if passes == BOTH else 1)

    def arrays(self) -> list[np.ndarray]:
        """Returns query, key and value in float32."""
        rng = np.random.default_rng(0)
        return [rng.standard_normal(self.shape, np.float32) for _ in range(3)]


Calls = dict[str, Callable[[], Any]]
"""``FORWARD`` and ``BOTH``; what they return is waited for by ``jax.block_until_ready``."""
Peer = Callable[[Work], Calls | None]


def in_jax(make: Callable[[Work], Callable[..., jax.Array] | None]) -> Peer:
    """Returns the peer of a function from work to attention of query, key and value."""

    def prepare(work: Work) -> Calls | None:
        attend = make(work)
        if attend is None:
            return None
        inputs = [jnp.asarray(x, work.dtype) for x in work.arrays()]
        both = with_gradient(attend)
        return {FORWARD: compiled(attend, *inputs), BOTH: compiled(both, *inputs)}

    return prepare


def ours(attend: Callable[..., Any]) -> Peer:
    """Returns the peer of ``attn.dot_product_attention`` by one of its implementations."""

    def make(work: Work) -> Callable[..., Any]:
        options: dict[str, dict[str, Any]] = {
            FULL: {},
            CAUSAL: {"is_causal": True},
            WINDOW: {"mask": masks.Window(work.sizes.window - 1, 0)},
            MASK: {
                "mask": masks.Causal() & masks.Where(lambda at: (at.query - at.key) % PERIOD != 1)
            },
            SCORE: {
                "is_causal": True,
                "score": lambda found, at, rates: found - rates[at.head] * (at.query - at.key),
                "score_params": jnp.linspace(0.01, 0.1, work.shape[2]),
            },
            DISTANCES: {
                "is_causal": True,
                "score": scores.RelativeBias(jnp.asarray(work.table()), bidirectional=False),
            },
            SINGLE: {"is_causal": True},
        }
        return functools.partial(attend, **options[work.kind])

    return in_jax(make)


def jax_nn(implementation: str) -> Peer:
    """Returns the peer of ``jax.nn.dot_product_attention``; "xla" makes the whole map."""
    attend: Any = jax.nn.dot_product_attention
    attend = functools.partial(attend, implementation=implementation)
    return called_as_jax_nn(attend, makes_map=implementation == "xla")


def tokamax() -> Peer:
    """Returns the peer of ``tokamax.dot_product_attention``, of whichever it has that runs here."""
    import tokamax as library  # pyright: ignore[reportMissingImports]
    from absl import flags

    flags.FLAGS.mark_as_parsed()  # It would read the command line.
    return called_as_jax_nn(library.dot_product_attention)


def called_as_jax_nn(attend: Callable[..., Any], *, makes_map: bool = False) -> Peer:
    """Returns the peer of a function with the arguments of ``jax.nn.dot_product_attention``.

    Args:
      attend: the function.
      makes_map: whether it takes the memory of all pairs, and so a mask as an array too.
    """

    def make(work: Work) -> Callable[..., Any] | None:
        options: dict[str, dict[str, Any]] = {
            FULL: {},
            CAUSAL: {"is_causal": True},
            WINDOW: {"is_causal": True, "local_window_size": (work.sizes.window - 1, 0)},
            SINGLE: {"is_causal": True},
        }
        if makes_map:
            if work.length > work.sizes.dense_up_to:
                return None
            at = np.arange(work.length)
            is_seen = (at[:, None] >= at) & ((at[:, None] - at) % PERIOD != 1)
            options[MASK] = {"mask": jnp.asarray(is_seen)[None, None]}
        if work.kind not in options:
            return None
        return functools.partial(attend, **options[work.kind])

    return in_jax(make)


def splash(work: Work) -> Callable[..., Any] | None:
    """Returns JAX's own fused attention for TPU, made for some work."""
    from jax.experimental.pallas.ops.tpu import splash_attention as of_jax

    _, length, heads, width = work.shape
    shape = (length, length)
    kinds = {
        FULL: lambda: of_jax.FullMask(shape),
        CAUSAL: lambda: of_jax.CausalMask(shape),
        WINDOW: lambda: of_jax.LocalMask(shape, (work.sizes.window - 1, 0), 0),
    }
    if work.kind not in kinds:
        return None
    mask = of_jax.MultiHeadMask([kinds[work.kind]() for _ in range(heads)])
    kernel = of_jax.make_splash_mha(mask=mask, head_shards=1, q_seq_shards=1)

    def attend(query, key, value):
        query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query * width**-0.5, key, value))
        output: Any = jax.vmap(kernel)(query, key, value)
        return jnp.swapaxes(output, 1, 2)

    return attend


def jax_peers() -> dict[str, Peer]:
    """Returns ours, and those of JAX, that there are on this platform."""
    names = {"default": "attn"}
    every = in_linear_memory("bfloat16")
    found = {names.get(n, f"attn {n}"): ours(attend) for n, attend in every.items()}
    found["jax.nn xla"] = jax_nn("xla")
    if jax.default_backend() == "gpu":
        found["jax.nn cudnn"] = jax_nn("cudnn")
    if jax.default_backend() == "tpu":
        found["splash"] = in_jax(splash)
    if importlib.util.find_spec("tokamax") is not None:
        found["tokamax"] = tokamax()
    return found
