"""Laws of what may not be seen: nothing of it reaches anything, not even NaN."""

import jax
import jax.numpy as jnp
import numpy as np

from attn.testing.case import Case
from attn.testing.derivatives import GRADIENT, derivative
from attn.testing.laws import check_finite, check_shape, check_zero, law, outputs_of
from attn.testing.subject import Broken, Subject, jit

NOTHING = Case(mask="none")
PADDING = Case(mask="padding")
LENGTHS = Case(key_value_seq_lengths=(13, 7))
CAUSAL = Case(is_causal=True)


@law("mask")
def query_that_sees_nothing_is_zero(attend):
    """A query that may attend to nothing returns 0: not a mean of values, and not NaN."""
    nothing = ~np.swapaxes(NOTHING.allowed().any(axis=-1), 1, 2)
    output = check_shape("output", attend.run(NOTHING), (*nothing.shape, NOTHING.value_width))
    check_zero("output of a query that sees nothing", output[nothing])


@law("query_seq_lengths")
def query_past_its_length_is_zero(attend):
    """Queries at or past their row's length return 0."""
    case = Case(query_seq_lengths=(5, 13))
    check_zero("output of a query past its length", np.asarray(attend.run(case))[0, 5:])


@law("key_value_seq_lengths")
def row_without_keys_is_zero(attend):
    """A row of length 0 returns 0."""
    case = Case(key_value_seq_lengths=(13, 0))
    check_zero("output of a row of length 0", np.asarray(attend.run(case))[1])


@law("mask")
def gradient_is_finite_beside_a_query_that_sees_nothing(attend):
    """No NaN comes back from it."""
    for name, x in _gradient(attend, NOTHING).items():
        check_finite(f"gradient in {name}", x)


@law("mask")
def gradient_through_a_query_that_sees_nothing_is_zero(attend):
    """Nothing flows back into it, nor from it into key and value."""
    found = _gradient(attend, NOTHING)
    check_zero("gradient in the query", found["query"][0, 3])
    for name, x in found.items():
        check_zero(f"gradient in {name} of a row that sees nothing", x[1])


@law("mask", "return_residual")
def log_sum_exp_gradient_of_nothing_is_zero(attend):
    """That of -inf is 0, not NaN."""
    case = Case(mask="none", return_residual=True)
    attend.check(case)

    @jit
    def pull_back_ones(inputs, arrays):
        def lse(inputs):
            return outputs_of(attend.call(case, inputs, arrays))[1]

        value, pullback = jax.vjp(lse, inputs)
        return pullback(jnp.ones_like(value))[0]

    found = jax.device_get(pull_back_ones(case.inputs(), case.arrays()))
    for name, x in found.items():
        check_finite(f"gradient in {name}", x)
        check_zero(f"gradient in {name} of a row that sees nothing", x[1])
    if not np.any(found["query"][0, 4]):
        raise Broken("gradient of the log-sum-exp is 0 in a query that sees something too")


@law("mask")
def no_gradient_into_masked_keys(attend):
    """The gradient in a key or value that no query may attend is exactly 0."""
    found = _gradient(attend, PADDING)
    for name in ("key", "value"):
        check_zero(f"gradient in masked {name}", found[name][:, -4:])


@law("key_value_seq_lengths")
def no_gradient_past_the_length(attend):
    """So is that in a key or value past its row's length."""
    found = _gradient(attend, LENGTHS)
    for name in ("key", "value"):
        check_zero(f"gradient in {name} past its length", found[name][1, 7:])


@law("is_causal")
def no_gradient_into_the_future(attend):
    """The gradient of the output at t is exactly 0 in every later token, and in no earlier one."""
    t = 6
    attend.check(CAUSAL)

    @jit
    def gradient(inputs):
        def at_t(inputs):
            return jnp.sum(jnp.sin(attend.call(CAUSAL, inputs, {})[:, t]))

        return jax.grad(at_t)(inputs)

    found = jax.device_get(gradient(CAUSAL.inputs()))
    check_zero("gradient in other queries", found["query"][:, np.arange(13) != t])
    for name in ("key", "value"):
        check_zero(f"gradient in a later {name}", found[name][:, t + 1 :])
        if not np.all(np.any(found[name][:, : t + 1] != 0, axis=(2, 3))):
            raise Broken(f"gradient in an earlier or the same {name} is 0")


@law("mask")
def masked_nan_reaches_no_output(attend):
    """NaN or infinity in a key or value that no query may attend changes no output."""
    _check_output_is_clean(attend, PADDING)


@law("mask")
def masked_nan_reaches_no_gradient(attend):
    """Nor does it change a gradient."""
    _check_gradient_is_clean(attend, PADDING)


@law("key_value_seq_lengths")
def nan_past_the_length_reaches_no_output(attend):
    """Padding may hold anything."""
    _check_output_is_clean(attend, LENGTHS)


@law("key_value_seq_lengths")
def nan_past_the_length_reaches_no_gradient(attend):
    """In the backward pass too."""
    _check_gradient_is_clean(attend, LENGTHS)


@law("is_causal", "cross attention")
def nan_past_the_last_query_reaches_no_gradient(attend):
    """Under a causal mask with T < S the keys at T and later are padding too."""
    case = Case(num_queries=7, is_causal=True)
    _check_gradient_is_clean(attend, case)


@law("query_seq_lengths")
def nan_in_a_query_past_its_length_reaches_nothing(attend):
    """Neither an output nor a gradient: a query may be padding too."""
    case = Case(query_seq_lengths=(5, 13))
    _check_output_is_clean(attend, case)
    _check_gradient_is_clean(attend, case)


def _gradient(attend: Subject, case: Case) -> dict[str, np.ndarray]:
    attend.check(case)
    return derivative(attend, case, GRADIENT)(case.inputs())


def _poisoned(case: Case, poison: float) -> dict[str, np.ndarray]:
    """Returns the inputs with poison in all that takes part in no allowed pair."""
    inputs, allowed = case.inputs(), case.allowed()
    inputs["query"][~allowed.any(axis=(1, 3))] = poison
    for name in ("key", "value"):
        inputs[name][~allowed.any(axis=(1, 2))] = poison
    return inputs


def _check_output_is_clean(attend: Subject, case: Case) -> None:
    compiled = attend.compiled(case)
    clean = compiled(_poisoned(case, 0))
    for poison in (np.nan, np.inf, -np.inf):
        found = compiled(_poisoned(case, poison))
        _check_same(f"output beside {poison} in padding", found, clean)


def _check_gradient_is_clean(attend: Subject, case: Case) -> None:
    attend.check(case)
    gradient = derivative(attend, case, GRADIENT)
    clean = gradient(_poisoned(case, 0))
    for poison in (np.nan, np.inf, -np.inf):
        for name, x in gradient(_poisoned(case, poison)).items():
            _check_same(f"gradient in {name} beside {poison} in padding", x, clean[name])


def _check_same(name: str, actual: np.ndarray, expected: np.ndarray) -> None:
    check_finite(name, actual)
    if changed := np.sum(actual != expected):
        raise Broken(f"{name} differs in {changed} of {actual.size} numbers")
