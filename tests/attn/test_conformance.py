"""Every implementation computes attention and its derivatives: in every case, dtype and size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attn
from attn import masks
from attn.testing import oracle
from tests.attn.cases import (
    CASES,
    EPSILON,
    FLOAT32,
    FLOAT64,
    Case,
    assert_close,
    call,
    dense_call,
    differentiable,
    discrete,
    jit,
)
from tests.attn.laws import LAWS, first_order, second_order


@functools.cache
def dense_laws(name):
    """Those of the dense formula, which every implementation is compared with."""
    case = CASES[name]
    laws = first_order if case.order == 1 else second_order
    laws = jit(functools.partial(laws, dense_call(case)))
    expected = laws(differentiable(case), differentiable(case, "tangents"))
    if case.order == 3:
        for path in ("reverse over reverse", "reverse over forward"):
            expected[path] = expected["hvp"]
    return expected


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives(name, implementation):
    case = CASES[name]
    inputs, arrays = differentiable(case), discrete(case)

    def laws(inputs, tangents, arrays):
        attention = functools.partial(call(case, implementation), arrays=arrays)
        return LAWS[case.order](attention, inputs, tangents)

    actual = jit(laws)(inputs, differentiable(case, "tangents"), arrays)
    one_by_one = oracle.attention(**inputs, **arrays, **case.options)
    assert_close(actual["value"], one_by_one, **FLOAT64)
    assert_close(actual, dense_laws(name), **FLOAT64)


@pytest.mark.parametrize("sizes", [(1, 1), (8, 10), (9, 11)])
def test_any_number_of_queries_and_keys(sizes, implementation):
    num_queries, num_keys = sizes
    case = Case(num_queries=num_queries, num_keys=num_keys, options={"is_causal": True})
    inputs = differentiable(case, dtype=np.float32)
    actual = jit(call(case, implementation))(inputs, {})
    assert_close(actual, oracle.attention(**inputs, **case.options), **FLOAT32)


@functools.cache
def value_and_gradient(attention):
    """Returns a function that returns both; cotangents are small integers, exact in any dtype."""

    def both(inputs):
        outputs, pullback = jax.vjp(attention, inputs)
        rng = np.random.default_rng(0)
        weights = [jnp.asarray(rng.integers(-2, 3, x.shape), x.dtype) for x in outputs]
        return dict(zip(("output", "lse"), outputs, strict=True)), pullback(tuple(weights))

    return jit(both)


def test_batch_of_nothing(implementation):
    case = Case(batch=(0,), options={"is_causal": True})
    inputs = differentiable(case, dtype=np.float32)
    attention = functools.partial(call(case, implementation), arrays={})
    laws = jax.eval_shape(functools.partial(first_order, attention), inputs)
    assert [x.shape for x in laws["value"]] == [(0, 13, 15, 7), (0, 13, 15)]
    assert laws["gradient"]["key"].shape == inputs["key"].shape


CAUSAL_WITH_BIAS = Case(bias=(15, 13, 17), options={"is_causal": True})
DENSE = dense_call(CAUSAL_WITH_BIAS)


@pytest.mark.parametrize("dtype", EPSILON)
def test_error_is_at_most_twice_that_of_the_dense_formula(dtype, implementation):
    """All against the same numbers in float64, the dense formula computing in ``dtype``."""
    ours = functools.partial(call(CAUSAL_WITH_BIAS, implementation), arrays={})
    inputs = differentiable(CAUSAL_WITH_BIAS, dtype=jnp.dtype(dtype))
    with jax.enable_x64(True):
        actual = jax.device_get(value_and_gradient(ours)(inputs))
        naive = jax.device_get(value_and_gradient(DENSE)(inputs))
        inputs = {name: x.astype(np.float64) for name, x in inputs.items()}
        exact = jax.device_get(value_and_gradient(DENSE)(inputs))

    (value, (found,)) = actual
    assert value["lse"].dtype == np.float32
    assert {x.dtype for x in (value["output"], *found.values())} == {jnp.dtype(dtype)}
    for (path, expected), *both in zip(
        jax.tree.leaves_with_path(exact), *map(jax.tree.leaves, (actual, naive)), strict=True
    ):
        error, naive_error = (np.abs(x.astype(np.float64) - expected).max() for x in both)
        limit = 2 * naive_error + EPSILON[dtype] * np.abs(expected).max()
        assert error <= limit, jax.tree_util.keystr(path)


def test_sums_are_in_float32(implementation):
    """In float16 itself a sum of ones stops growing at 2048."""
    query, ones = np.zeros((1, 1, 1)), np.ones((4099, 1, 1))
    query, ones = (x.astype(np.float16) for x in (query, ones))
    attend = functools.partial(
        attn.dot_product_attention, implementation=implementation, return_residual=True
    )
    output, lse = jit(attend)(query, ones, ones)
    np.testing.assert_allclose(output.astype(np.float32), 1, rtol=1e-6)
    np.testing.assert_allclose(lse, np.log(4099), rtol=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("dtype", "bias_dtype"),
    [("float16", "bfloat16"), ("float32", "float64"), ("float64", "float32")],
)
def test_dtype_is_that_of_the_query_whatever_that_of_the_bias(dtype, bias_dtype, implementation):
    case = Case(bias=(17,), scale=True)
    inputs = differentiable(case, dtype=jnp.dtype(dtype))
    inputs["bias"] = inputs["bias"].astype(jnp.dtype(bias_dtype))
    inputs["scale"] = inputs["scale"].astype(np.float64)
    attention = functools.partial(call(case, implementation), arrays={})
    shapes = jax.eval_shape(functools.partial(first_order, attention), inputs)
    output, lse = shapes["value"]
    assert output.dtype == dtype
    assert lse.dtype == ("float64" if dtype == "float64" else "float32")
    assert {k: x.dtype for k, x in shapes["gradient"].items()} == {
        name: x.dtype for name, x in inputs.items()
    }


@pytest.mark.parametrize(
    ("mask", "options"),
    [
        (masks.Dense(np.tri(13, 17, 2, bool)), {"mask": np.tri(13, 17, 2, bool)}),
        (
            masks.Window(3) & masks.Lengths(np.array([13, 2]), np.array([5, 16])),
            {
                "local_window_size": (3, 17),
                "query_seq_lengths": np.array([13, 2]),
                "key_value_seq_lengths": np.array([5, 16]),
            },
        ),
    ],
    ids=["dense", "window and lengths"],
)
def test_mask_value_is_the_options_it_stands_for(mask, options, implementation):
    inputs = differentiable(Case(), dtype=np.float32)

    def attend(inputs, mask):
        return attn.dot_product_attention(
            **inputs, mask=mask, implementation=implementation, return_residual=True
        )

    assert_close(jit(attend)(inputs, mask), oracle.attention(**inputs, **options), **FLOAT32)
