"""Calls that laws are stated on: sizes, options, and the numbers that go with them."""

import dataclasses
import zlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from attn.testing import oracle


def _some_of(case: "Case", rng: np.random.Generator) -> np.ndarray:
    """Some keys for every query."""
    mask = rng.random((*case.batch, 1, case.num_queries, case.num_keys)) < 0.6
    mask[..., 0] = True
    return mask


def _heads_of(case: "Case", rng: np.random.Generator) -> np.ndarray:
    """The same, others for every head."""
    mask = rng.random((*case.batch, case.num_heads, case.num_queries, case.num_keys)) < 0.6
    mask[..., 0] = True
    return mask


def _none_of(case: "Case", rng: np.random.Generator) -> np.ndarray:
    """As before, but nothing for query 3 of the first row, nor for any query of the last."""
    mask = _some_of(case, rng)
    mask[0, :, 3] = False
    mask[-1] = False
    return mask


def _padding_of(case: "Case", rng: np.random.Generator) -> np.ndarray:
    """All keys but the last four, for every query."""
    del rng
    return (np.arange(case.num_keys) < case.num_keys - 4)[None, None, None]


MASKS = {"some": _some_of, "heads": _heads_of, "none": _none_of, "padding": _padding_of}
"""By name: functions ``(case, rng)`` to a mask of four axes, as ``jax.nn`` asks for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A call without its numbers. What it does not change, every attention should take.

    Sizes are primes, distinct where the call may have them distinct, so that no two axes can be
    confused.
    """

    batch: tuple[int, ...] = (2,)
    num_queries: int = 13
    num_keys: int = 13
    num_heads: int = 3
    num_key_heads: int = 3
    head_width: int = 5
    value_width: int = 5
    dtype: str = "float32"
    bias: tuple[int, ...] | None = None
    """Its shape."""
    scale: float | None = None
    mask: str | None = None
    """Its name in ``MASKS``."""
    query_seq_lengths: tuple[int, ...] | None = None
    key_value_seq_lengths: tuple[int, ...] | None = None
    is_causal: bool = False
    local_window_size: int | tuple[int, int] | None = None
    return_residual: bool = False

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of what a call is differentiable in."""
        keys = (*self.batch, self.num_keys, self.num_key_heads)
        shapes: dict[str, tuple[int, ...]] = {
            "query": (*self.batch, self.num_queries, self.num_heads, self.head_width),
            "key": (*keys, self.head_width),
            "value": (*keys, self.value_width),
        }
        if self.bias is not None:
            shapes["bias"] = self.bias
        return shapes

    def inputs(self, seed: str = "") -> dict[str, np.ndarray]:
        """Returns what a call is differentiable in; the same numbers for the same seed."""
        rng = np.random.default_rng(zlib.crc32(f"{self}{seed}".encode()))
        dtype = jnp.dtype(self.dtype)
        return {name: rng.normal(size=shape).astype(dtype) for name, shape in self.shapes.items()}

    def arrays(self) -> dict[str, Any]:
        """Returns all other arrays of the call."""
        arrays: dict[str, Any] = {}
        if self.mask is not None:
            arrays["mask"] = MASKS[self.mask](self, np.random.default_rng(0))
        for name in ("query_seq_lengths", "key_value_seq_lengths"):
            if (lengths := getattr(self, name)) is not None:
                arrays[name] = np.asarray(lengths, np.int32)
        return arrays

    def options(self) -> dict[str, Any]:
        """Returns the static arguments of the call, those that it leaves at their defaults not."""
        options: dict[str, Any] = {"scale": self.scale, "local_window_size": self.local_window_size}
        options = {name: option for name, option in options.items() if option is not None}
        flags = {"is_causal": self.is_causal, "return_residual": self.return_residual}
        return options | {name: True for name, flag in flags.items() if flag}

    def allowed(self) -> np.ndarray:
        """Returns booleans ``[*B, N, T, S]``: may query i attend to key j."""
        return oracle.allowed_pairs(
            self.shapes["query"],
            self.shapes["key"],
            **self.arrays(),
            is_causal=self.is_causal,
            local_window_size=self.local_window_size,
        )

    def expected(self, inputs: dict[str, np.ndarray] | None = None) -> tuple[np.ndarray, ...]:
        """Returns output and log-sum-exp by the oracle, in float64; of other inputs if given."""
        inputs = self.inputs() if inputs is None else inputs
        return oracle.attention(**{"scale": self.scale, **inputs}, allowed=self.allowed())


FEATURES = {
    "bias": Case(bias=(2, 3, 13, 13)),
    "mask": Case(mask="some"),
    "scale": Case(scale=0.3),
    "is_causal": Case(is_causal=True),
    "query_seq_lengths": Case(query_seq_lengths=(5, 13)),
    "key_value_seq_lengths": Case(key_value_seq_lengths=(13, 7)),
    "local_window_size": Case(local_window_size=4),
    "return_residual": Case(return_residual=True),
    "cross attention": Case(num_keys=17),
    "grouped queries": Case(num_heads=6),
    "value width": Case(value_width=7),
    "no leading axes": Case(batch=()),
    "two leading axes": Case(batch=(2, 3)),
    "float16": Case(dtype="float16"),
    "bfloat16": Case(dtype="bfloat16"),
    "float64": Case(dtype="float64"),
}
"""What a function may take or not, by name: the keywords of ``jax.nn.dot_product_attention``, and
shapes and dtypes. Each with a call that needs it and nothing else."""
