"""Laws of precision and range: what float64 promises, and what half precision must not lose."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from attn.testing import oracle
from attn.testing.case import Case
from attn.testing.derivatives import GRADIENT, check_derivative, derivative, true_derivative
from attn.testing.laws import FLOAT32, check_close, check_finite, check_shape, law, outputs_of
from attn.testing.subject import Broken, Subject, jit

FLOAT64 = 1e-11
"""Error in float64, in units of the largest number; float32 cannot do better than about 1e-8."""

ROUNDING = 1e-2
"""Beyond twice the error of the dense formula, in units of the largest number: one unit or two in
the last place of bfloat16."""

BFLOAT16 = Case(dtype="bfloat16", head_width=32, value_width=32, num_queries=31, num_keys=31)


@law("float64")
def float64_is_computed_in_float64(attend):
    """Values of float64 inputs are not rounded to float32 on the way."""
    case = Case(dtype="float64")
    check_close("output", attend.run(case), case.expected()[0], FLOAT64)


@law("float64")
def float64_gradient_is_computed_in_float64(attend):
    """Nor are gradients."""
    check_derivative(attend, Case(dtype="float64"), GRADIENT, limit=FLOAT64)


@law("float64", "bias")
def float64_bias_is_not_rounded(attend):
    """Nor is a bias."""
    case = Case(dtype="float64", bias=(2, 3, 13, 13))
    check_close("output", attend.run(case), case.expected()[0], FLOAT64)


@law("float64", "return_residual")
def float64_log_sum_exp_is_computed_in_float64(attend):
    """Nor is the log-sum-exp."""
    case = Case(dtype="float64", return_residual=True)
    _, lse = outputs_of(attend.run(case))
    check_close("log-sum-exp", lse, case.expected()[1], FLOAT64)


@law("bfloat16")
def bfloat16_error(attend):
    """It is at most twice that of the dense formula computed in bfloat16."""
    inputs, allowed = BFLOAT16.inputs(), BFLOAT16.allowed()
    exact = BFLOAT16.expected()[0]
    dense = jit(lambda inputs: oracle.dense(**inputs, allowed=allowed)[0])(inputs)
    _check_error("output", attend.run(BFLOAT16), dense, exact)


@law("bfloat16")
def bfloat16_gradient_error(attend):
    """So is that of the gradient."""
    inputs = BFLOAT16.inputs()
    attend.check(BFLOAT16)
    found = derivative(attend, BFLOAT16, GRADIENT)(inputs)
    dense, exact = (
        true_derivative(BFLOAT16, GRADIENT, inputs, dtype=dtype)
        for dtype in (jnp.bfloat16, np.float64)
    )
    for name, x in found.items():
        _check_error(f"gradient in {name}", x, dense[name], exact[name])


@law("float16")
def float16_scores_do_not_overflow(attend):
    """Scores of 262144, beyond 65504, are fine: they are in float32."""
    case = Case(dtype="float16", head_width=16, value_width=16)
    inputs = case.inputs()
    inputs["query"] = np.full_like(inputs["query"], 256)
    inputs["key"] = 256 * np.sign(inputs["key"][..., :1]) * np.ones_like(inputs["key"])
    expected = case.expected(inputs)[0]
    check_close("output", attend.run(case, inputs), expected, 2e-3)


@law("float16", "cross attention")
def float16_sums_do_not_stall(attend):
    """Sums are in float32: in float16 itself a sum of ones stops growing at 2048."""
    case = Case(batch=(1,), num_queries=1, num_keys=4099, num_heads=1, num_key_heads=1)
    case = dataclasses.replace(case, dtype="float16")
    inputs = {name: np.ones_like(x) for name, x in case.inputs().items()}
    inputs["query"] *= 0
    output = check_shape("output", attend.run(case, inputs), (1, 1, 1, case.value_width))
    check_close("output", output, np.ones_like(output), 2e-3)


@law()
def large_scores(attend):
    """The softmax of scores about 1e6 is that of the greatest, not NaN; gradients are finite."""
    _check_scores_of_size(attend, 2.0**20)


@law()
def small_scores(attend):
    """That of scores about 1e-12 is uniform."""
    _check_scores_of_size(attend, 2.0**-40)


@law("bias")
def least_number_as_bias(attend):
    """A common way to write a mask: it hides a key, and does not overflow to NaN."""
    case = Case(bias=(1, 1, 13, 13))
    inputs = case.inputs()
    inputs["bias"] = np.where(np.tri(13, dtype=bool), 0, np.finfo(np.float32).min)[None, None]
    inputs["bias"] = inputs["bias"].astype(np.float32)
    check_close("output", attend.run(case, inputs), case.expected(inputs)[0], FLOAT32)
    for name, x in derivative(attend, case, GRADIENT)(inputs).items():
        check_finite(f"gradient in {name}", x)


def _check_scores_of_size(attend: Subject, size: float) -> None:
    """Small integers times a power of two are exact scores: only the softmax is tested."""
    case = Case(head_width=4, value_width=4)
    rng = np.random.default_rng(0)
    inputs = {
        name: rng.integers(-3, 4, x.shape).astype(np.float32) for name, x in case.inputs().items()
    }
    inputs["query"] *= np.float32(size)
    check_close("output", attend.run(case, inputs), case.expected(inputs)[0], FLOAT32)
    for name, x in derivative(attend, case, GRADIENT)(inputs).items():
        check_finite(f"gradient in {name}", x)


def _check_error(name: str, actual: np.ndarray, dense: jax.Array, exact: np.ndarray) -> None:
    actual = check_shape(name, actual, exact.shape)
    check_finite(name, actual)
    error, of_dense = (
        np.max(np.abs(np.asarray(x).astype(np.float64) - exact)) for x in (actual, dense)
    )
    limit = 2 * of_dense + ROUNDING * np.max(np.abs(exact))
    if error > limit:
        raise Broken(f"{name} is off by {error:.1e}, the dense formula by {of_dense:.1e}")
