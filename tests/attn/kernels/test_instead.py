"""What stands for operations that hardware has not: the same numbers, lowered for both."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.random import threefry2x32_p

import attn
from attn.kernels import instead
from attn.kernels.gpu.operations import OPERATIONS as OF_GPU
from attn.kernels.tpu.operations import OPERATIONS as OF_TPU

RNG = np.random.default_rng(0)
SIZES = jnp.concatenate([jnp.float32(10) ** jnp.arange(-9, 3), jnp.linspace(0.1, 9, 90)])
X = jnp.concatenate([SIZES, -SIZES, jnp.array([0, jnp.inf, -jnp.inf, jnp.nan])])
ARGUMENTS = {
    "acos": X[jnp.abs(X) <= 1],
    "acosh": jnp.concatenate([1 + SIZES, jnp.array([1e20, jnp.inf, 0.9, -3, -1e20])]),
    "asin": X[jnp.abs(X) <= 1],
    "asinh": jnp.concatenate([X, jnp.array([1e20, -1e20])]),
    "atanh": X[jnp.abs(X) < 1],
    "expm1": jnp.concatenate([X, jnp.array([83.0, 84.5, 86, 88, 88.7, -88, -104])]),
    "log2": jnp.abs(X),
}


OTHERS = {"copy": lambda x: x, "log2": jnp.log2, "one_minus_square": lambda x: (1 - x) * (1 + x)}
"""Operations that ``jax.lax`` has no function for, not in every version."""


@pytest.mark.parametrize("name", instead.OF_BOTH)
def test_it_is_the_same(name):
    x = ARGUMENTS.get(name, X)
    found = instead.OF_BOTH[name](x)
    expected = (OTHERS.get(name) or getattr(lax, name))(x)
    np.testing.assert_allclose(found, expected, rtol=2e-5 if name == "erfc" else 3e-6, atol=1e-38)


NUMBERS = jnp.concatenate([jnp.float32(10) ** jnp.arange(-9, 9), jnp.array([0, jnp.inf, jnp.nan])])
HALVES = jnp.linspace(-4.5, 4.5, 19)
BITS = [jnp.asarray(RNG.integers(0, 2**32, 100), jnp.uint32) for _ in range(4)]


@pytest.mark.parametrize(
    ("name", "of_jax", "arguments"),
    [
        (
            "atan2",
            jnp.arctan2,
            [HALVES[:, None], jnp.concatenate([NUMBERS, -NUMBERS[:-3], -NUMBERS[-2:], HALVES])],
        ),
        ("ceil", jnp.ceil, [jnp.concatenate([NUMBERS, -NUMBERS, HALVES])]),
        ("erf", jax.lax.erf, [jnp.concatenate([NUMBERS, -NUMBERS, HALVES])]),
        ("floor", jnp.floor, [jnp.concatenate([NUMBERS, -NUMBERS, HALVES])]),
        ("is_finite", jnp.isfinite, [NUMBERS]),
        ("log1p", jnp.log1p, [jnp.concatenate([NUMBERS, -NUMBERS[:9]])]),
        ("rem", jax.lax.rem, [jnp.concatenate([HALVES, 9 * HALVES]), jnp.float32(2.5)]),
        ("tan", jnp.tan, [HALVES]),
        ("sqrt", jnp.sqrt, [jnp.concatenate([NUMBERS, -NUMBERS])]),
        ("threefry2x32", lambda *x: tuple(threefry2x32_p.bind(*x)), BITS),
    ],
)
def test_what_stands_for_an_operation_is_the_same(name, of_jax, arguments):
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
    jax.tree.map(close, OF_GPU.instead[name](*arguments), of_jax(*arguments))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["asinh", "cbrt", "erf", "erfc", "expm1", "log1p", "sinh", "sqrt"])
def test_half_precision_is_rounded_once(name, dtype):
    x, function = jnp.asarray(jnp.linspace(0.01, 4, 99), dtype), getattr(lax, name)
    found = OF_GPU.done(function, x)
    assert found.dtype == x.dtype
    exact = np.asarray(function(x.astype(jnp.float32)), np.float64)
    error = np.abs(np.asarray(found, np.float64) - exact)
    limits = jnp.finfo(dtype)
    assert np.all(error <= 0.51 * float(limits.eps) * np.maximum(np.abs(exact), float(limits.tiny)))


def test_powers_of_floats_are_the_same():
    x = jnp.concatenate([NUMBERS, -NUMBERS[NUMBERS != 0], HALVES])
    y = jnp.array([0, 0.5, 1, -1.5, 2, -3, jnp.inf, jnp.nan])
    found = OF_GPU.instead["pow"](x[:, None], y)
    np.testing.assert_allclose(found, x[:, None] ** y, rtol=2e-5)
    distances = jnp.arange(2.0**17)
    found = OF_GPU.instead["pow"](distances, jnp.float32(0.5))
    np.testing.assert_allclose(found, np.sqrt(distances), rtol=2e-6)


@pytest.mark.parametrize("y", [-3, -1, 0, 1, 2, 5, 8])
def test_powers_are_the_same(y):
    x = np.linspace(-3, 3, 8, dtype=np.float32)
    found = OF_GPU.instead["integer_pow"](x, y=y)
    np.testing.assert_allclose(found, x.astype(np.float64) ** y, rtol=1e-6)


SCORES = {
    "elu": jax.nn.elu,
    "celu": jax.nn.celu,
    "selu": jax.nn.selu,
    "gelu, exactly": functools.partial(jax.nn.gelu, approximate=False),
    "mish": jax.nn.mish,
    "log_sigmoid": jax.nn.log_sigmoid,
    "squareplus": jax.nn.squareplus,
    "hyperbolic": lambda s: jnp.sinh(s) + jnp.cosh(s) + jnp.arcsinh(s),
    "inverse": lambda s: jnp.arctan(s) + jnp.arcsin(jnp.tanh(s)) + jnp.arccos(jnp.tanh(s)),
    "roots": lambda s: jnp.cbrt(s) + jnp.arctanh(jnp.tanh(s) / 2) + jnp.arccosh(1 + s * s),
    "remainders and tangents": lambda s: s % 3.0 + jnp.fmod(s, 2.0) + jnp.tan(s),
    "steps": lambda s: jnp.floor(s) + jnp.ceil(s) + jnp.round(s) + jnp.abs(s) ** 0.3,
}


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
@pytest.mark.parametrize("name", SCORES)
def test_scores_run_in_kernels(name, platform):
    x = jax.ShapeDtypeStruct((1, 512, 2, 64), "bfloat16")
    score = lambda s, at, _: SCORES[name](s)  # noqa: E731
    found = attn.explain(x, x, x, score=score, platform=platform)
    assert found.implementation == "fused", found.refused

    def total(*x):
        return jnp.sum(attn.dot_product_attention(*x, score=score, implementation="fused"))

    lowering = {"gpu": "cuda", "tpu": "tpu"}[platform]
    with attn.compiled_for(platform, "9.0" if platform == "gpu" else None):
        traced = jax.jit(jax.grad(total, (0, 1, 2))).trace(x, x, x)
        text = traced.lower(lowering_platforms=(lowering,)).as_text()
    assert text.count({"gpu": "mosaic_gpu_v2", "tpu": "tpu_custom_call"}[platform]) >= 3


@pytest.mark.parametrize("operations", [OF_GPU, OF_TPU], ids=["gpu", "tpu"])
@pytest.mark.parametrize("name", SCORES)
def test_derivatives_are_of_what_is_replaced(name, operations):
    x = jnp.linspace(-2.9, 2.8, 77)
    both = lambda x: jax.vjp(lambda x: jnp.sum(jnp.sin(SCORES[name](x))), x)  # noqa: E731
    value, pull = operations.done(both, x)
    (slope,) = operations.done(pull, jnp.float32(1))
    expected = jax.value_and_grad(lambda x: jnp.sum(jnp.sin(SCORES[name](x))))(x)
    np.testing.assert_allclose(value, expected[0], rtol=1e-4)
    np.testing.assert_allclose(slope, expected[1], rtol=1e-4, atol=1e-5)
