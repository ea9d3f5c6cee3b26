"""Laws of the log-sum-exp that ``return_residual`` returns."""

import jax
import numpy as np

from attn.testing.case import Case
from attn.testing.derivatives import GRADIENT, HESSIAN_VECTOR, JVP, check_derivative
from attn.testing.laws import FLOAT32, check_close, check_shape, law, outputs_of
from attn.testing.subject import Broken, Subject

WITH_LSE = Case(return_residual=True)


def check_lse(attend: Subject, case: Case) -> None:
    """Compares output and log-sum-exp with the oracle's."""
    expected = case.expected()
    for name, x, y in zip(
        ("output", "log-sum-exp"), outputs_of(attend.run(case)), expected, strict=True
    ):
        check_close(name, x, y, FLOAT32)


@law("return_residual")
def log_sum_exp(attend):
    """It is log sum_s exp(S), [..., T, N], of the scaled scores."""
    check_lse(attend, WITH_LSE)


@law("return_residual")
def log_sum_exp_is_in_float32(attend):
    """Of inputs in half precision too: two parts cannot be merged by one in bfloat16."""
    for dtype in ("bfloat16", "float16"):
        if attend.offers(dtype):
            _, lse = outputs_of(attend.run(Case(dtype=dtype, return_residual=True)))
            if lse.dtype != np.float32:
                raise Broken(f"log-sum-exp of {dtype} is in {lse.dtype}")


@law("return_residual", "bias", "is_causal")
def log_sum_exp_of_biased_and_masked_scores(attend):
    """The sum is over the keys that a query may attend, with the bias in the scores."""
    check_lse(attend, Case(bias=(2, 3, 13, 13), is_causal=True, return_residual=True))


@law("return_residual", "grouped queries")
def log_sum_exp_of_grouped_queries(attend):
    """Its heads are those of the queries, in their order."""
    check_lse(attend, Case(num_heads=6, return_residual=True))


@law("return_residual", "scale")
def log_sum_exp_of_scaled_scores(attend):
    """The scores are those of the scale that is given."""
    check_lse(attend, Case(scale=0.3, return_residual=True))


@law("return_residual", "query_seq_lengths")
def log_sum_exp_past_the_length(attend):
    """It is -inf for a query past its length, which may attend to nothing."""
    _, lse = outputs_of(attend.run(Case(query_seq_lengths=(5, 13), return_residual=True)))
    lse = check_shape("log-sum-exp", lse, (2, 13, 3))
    if not np.all(np.isneginf(lse[0, 5:])):
        raise Broken(f"log-sum-exp of a query past its length is {lse[0, 5, 0]:.4g}")


@law("return_residual")
def log_sum_exp_of_large_scores(attend):
    """It does not overflow: scores in the thousands."""
    inputs = WITH_LSE.inputs()
    inputs["query"] = inputs["query"] * np.float32(1000)
    expected = WITH_LSE.expected(inputs)[1]
    _, lse = outputs_of(attend.run(WITH_LSE, inputs))
    check_close("log-sum-exp", lse, expected, FLOAT32)


@law("return_residual", "mask")
def log_sum_exp_of_nothing(attend):
    """It is -inf for a query that may attend to nothing."""
    case = Case(mask="none", return_residual=True)
    nothing = np.isneginf(case.expected()[1])
    _, lse = outputs_of(attend.run(case))
    lse = check_shape("log-sum-exp", lse, nothing.shape)
    if not np.all(np.isneginf(lse[nothing])):
        raise Broken(f"log-sum-exp of a query that sees nothing is {lse[nothing][0]:.4g}")


@law("return_residual", "cross attention")
def parts_merge_by_log_sum_exp(attend):
    """Outputs over two halves of the keys, weighted by their sums, are that over all keys."""
    case, half = Case(num_keys=22), Case(num_keys=11, return_residual=True)
    inputs = case.inputs()
    parts = []
    for part in (slice(11), slice(11, None)):
        of_part = {name: x if name == "query" else x[:, part] for name, x in inputs.items()}
        parts.append(outputs_of(attend.run(half, of_part)))
    lse = np.logaddexp(*(check_shape("log-sum-exp", lse, (2, 13, 3)) for _, lse in parts))
    merged = sum(np.exp(of_part - lse)[..., None] * output for output, of_part in parts)
    check_close("merged output", merged, case.expected()[0], FLOAT32)


@law("return_residual")
def log_sum_exp_gradient(attend):
    """Its gradient in query and key is the true one."""
    check_derivative(attend, WITH_LSE, GRADIENT, ("query", "key"), part="log-sum-exp")


@law("return_residual", "bias")
def log_sum_exp_gradient_in_bias(attend):
    """It is the weights, which sum to 1."""
    case = Case(bias=(2, 3, 13, 13), return_residual=True)
    check_derivative(attend, case, GRADIENT, ("bias",), part="log-sum-exp")


@law("return_residual")
def log_sum_exp_jvp(attend):
    """Its tangent is the true one."""
    check_derivative(attend, WITH_LSE, JVP, ("query", "key"), part="log-sum-exp")


@law("return_residual")
def log_sum_exp_second_derivative(attend):
    """Its Hessian-vector product, forward over reverse, is the true one."""
    check_derivative(attend, WITH_LSE, HESSIAN_VECTOR, ("query", "key"), part="log-sum-exp")


@law("return_residual")
def residual_does_not_change_the_output(attend):
    """The output and its gradient are the same, beside a log-sum-exp that is not used."""
    check_derivative(attend, WITH_LSE, GRADIENT, ("query", "key", "value"), part="output")
    without, beside = attend.run(Case(), WITH_LSE.inputs()), attend.run(WITH_LSE)
    check_close(
        "output",
        outputs_of(beside)[0],
        np.asarray(jax.device_get(without)).astype(np.float64),
        FLOAT32,
    )
