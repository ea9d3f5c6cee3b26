"""The calls that every implementation must answer, by name, and how exactly it must answer them.

All sizes are distinct primes where they can be, so that no two axes can be confused; with the
small tiles of ``conftest.py`` both axes are cut into several tiles, the last of them padded.
"""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

import attn
from attn.testing import oracle
from tests.quick import quick_to_compile

FLOAT64 = {"rtol": 1e-10, "atol": 1e-10}
"""Of values and derivatives of any order in float64, against a formula in float64."""

FLOAT32 = {"rtol": 1e-5, "atol": 1e-5}
"""Of values in float32, against a formula in float64."""

EPSILON = {"bfloat16": 1e-2, "float32": 3e-7}
"""Of what is largest in an array: how much more than twice the error of the dense formula,
computed in the same dtype, an error may be."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Sizes, which optional arrays the call has, and its static options."""

    order: int = 1
    """Of the derivatives that are compared; at 3 the second ones by each composition of modes."""
    batch: tuple[int, ...] = (2,)
    num_queries: int = 13
    num_keys: int = 17
    num_heads: int = 15
    num_key_heads: int = 3
    head_width: int = 11
    value_width: int = 7
    bias: tuple[int, ...] | None = None
    """Its shape."""
    scale: bool = False
    mask: tuple[int, ...] | None = None
    """Its shape."""
    query_seq_lengths: tuple[int, ...] | None = None
    key_value_seq_lengths: tuple[int, ...] | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


CASES = {
    "plain": Case(),
    "one query": Case(num_queries=1, key_value_seq_lengths=(0, 11)),
    "one key": Case(num_keys=1, options={"is_causal": True}),
    "no leading axes": Case(
        batch=(), num_key_heads=15, mask=(15, 13, 1), bias=(17,), options={"is_causal": True}
    ),
    "two leading axes": Case(batch=(2, 3), bias=(3, 15, 1, 1), options={"local_window_size": 5}),
    "more queries than keys": Case(
        num_queries=17, num_keys=13, options={"is_causal": True, "alignment": "end"}
    ),
    "one key head": Case(num_key_heads=1, options={"local_window_size": (3, 2)}),
    "lengths": Case(order=2, query_seq_lengths=(5, 13), key_value_seq_lengths=(17, 6)),
    "mask and bias": Case(mask=(2, 1, 13, 17), bias=(2, 15, 13, 17), scale=True),
    "everything": Case(
        order=3,
        num_queries=17,
        num_keys=13,
        bias=(15, 17, 13),
        scale=True,
        mask=(13,),
        query_seq_lengths=(17, 15),
        key_value_seq_lengths=(12, 9),
        options={"is_causal": True, "local_window_size": (9, 4), "alignment": "end"},
    ),
}


def differentiable(case: Case, seed: str = "", dtype: Any = np.float64) -> dict[str, np.ndarray]:
    """Returns all that the call is differentiable in; the same numbers for the same seed."""
    rng = np.random.default_rng(zlib.crc32(f"{case}{seed}".encode()))
    shapes = {
        "query": (*case.batch, case.num_queries, case.num_heads, case.head_width),
        "key": (*case.batch, case.num_keys, case.num_key_heads, case.head_width),
        "value": (*case.batch, case.num_keys, case.num_key_heads, case.value_width),
    }
    if case.bias is not None:
        shapes["bias"] = case.bias
    inputs = {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    if case.scale:
        inputs["scale"] = np.asarray(rng.uniform(0.2, 0.4), dtype)
    return inputs


def discrete(case: Case) -> dict[str, np.ndarray]:
    """Returns all other arrays of the call."""
    rng = np.random.default_rng(0)
    arrays = {}
    if case.mask is not None:
        arrays["mask"] = rng.random(case.mask) < 0.7
        if case.mask[-2:] == (case.num_queries, case.num_keys):
            arrays["mask"][..., 3, :] = False
            arrays["mask"][..., 5] = False
    for name in ("query_seq_lengths", "key_value_seq_lengths"):
        if getattr(case, name) is not None:
            arrays[name] = np.asarray(getattr(case, name), np.int32)
    return arrays


def call(case: Case, implementation: str):
    """Returns the public function as one of ``differentiable(case)`` and ``discrete(case)``."""
    options = {**case.options, "implementation": implementation, "return_residual": True}
    return lambda inputs, arrays: attn.dot_product_attention(**inputs, **arrays, **options)


def dense_call(case: Case):
    """Returns the dense formula as a function of ``differentiable(case)`` alone."""
    return dense(allowed_pairs(case))


def dense(allowed: np.ndarray):
    """Returns the dense formula as a function of a dictionary of inputs."""
    return lambda inputs: oracle.dense(**inputs, allowed=allowed)


def allowed_pairs(case: Case) -> np.ndarray:
    """Returns booleans ``[*B, N, T, S]``."""
    inputs = differentiable(case)
    return oracle.allowed_pairs(
        inputs["query"].shape, inputs["key"].shape, **discrete(case), **case.options
    )


def jit(function):
    """Returns ``jax.jit`` of the function, quick to compile."""
    return jax.jit(function, compiler_options=quick_to_compile())


def assert_close(actual, expected, **tolerance):
    """Compares all leaves of two trees, which may differ in their lists and tuples."""
    paths = jax.tree.leaves_with_path(actual)
    for (path, x), y in zip(paths, jax.tree.leaves(expected), strict=True):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(x, y, err_msg=name, **tolerance)
