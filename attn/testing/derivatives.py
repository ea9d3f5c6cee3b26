"""Laws of derivatives: true in every input, mode and order."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attn.testing import oracle
from attn.testing.case import Case
from attn.testing.laws import DERIVATIVES, check_close, law, outputs_of
from attn.testing.subject import Subject, jit, precision

ALL = ("query", "key", "value")
Attention = Callable[[dict[str, Any]], Any]


def loss(attention: Attention, inputs: dict[str, Any]) -> Any:
    """Returns a nonlinear function of what attention returns, finite where that is -inf."""
    returned = attention(inputs)
    return jnp.sum(jnp.sin(returned) * jnp.tanh(returned / 4))


def _slope(attention: Attention, inputs: dict[str, Any], tangents: dict[str, Any]) -> Any:
    gradient = jax.grad(functools.partial(loss, attention))(inputs)
    return sum(jnp.vdot(gradient[name], tangents[name]) for name in inputs)


def _gradient(attention: Attention, inputs: dict, tangents: dict) -> Any:
    del tangents
    return jax.grad(functools.partial(loss, attention))(inputs)


def _jvp(attention: Attention, inputs: dict, tangents: dict) -> Any:
    return jax.jvp(attention, (inputs,), (tangents,))[1]


def _forward_over_reverse(attention: Attention, inputs: dict, tangents: dict) -> Any:
    gradient = jax.grad(functools.partial(loss, attention))
    return jax.jvp(gradient, (inputs,), (tangents,))[1]


def _reverse_over_reverse(attention: Attention, inputs: dict, tangents: dict) -> Any:
    return jax.grad(functools.partial(_slope, attention))(inputs, tangents)


def _reverse_over_forward(attention: Attention, inputs: dict, tangents: dict) -> Any:
    def slope(x):
        return jax.jvp(functools.partial(loss, attention), (x,), (tangents,))[1]

    return jax.grad(slope)(inputs)


@dataclasses.dataclass(frozen=True)
class Mode:
    """A derivative: how JAX is asked for it of a function ``inputs -> array``, and of the oracle.

    Those that are the same numbers by another way are compared with the same.
    """

    name: str
    of: Callable[[Attention, dict, dict], Any]
    expected: Callable[[Attention, dict, dict], Any]


GRADIENT = Mode("gradient", _gradient, _gradient)
JVP = Mode("tangent", _jvp, _jvp)
HESSIAN_VECTOR = Mode("Hessian-vector product", _forward_over_reverse, _forward_over_reverse)
REVERSE_OVER_REVERSE = Mode(HESSIAN_VECTOR.name, _reverse_over_reverse, _forward_over_reverse)
REVERSE_OVER_FORWARD = Mode(HESSIAN_VECTOR.name, _reverse_over_forward, _forward_over_reverse)


def check_derivative(
    attend: Subject,
    case: Case,
    mode: Mode,
    names: Sequence[str] = ALL,
    *,
    part: str = "output",
    inputs: dict[str, np.ndarray] | None = None,
    limit: float = DERIVATIVES,
) -> None:
    """Compares a derivative, in the inputs named, with that of the dense formula in float64.

    Of ``part``, ``"output"`` or ``"log-sum-exp"``. The call itself may be refused; once it is
    taken, its derivative may not.
    """
    inputs = case.inputs() if inputs is None else inputs
    attend.check(case, inputs)
    actual = derivative(attend, case, mode, names, part)(inputs)
    expected = true_derivative(case, mode, inputs, names, part)
    check_tree(mode.name, actual, expected, limit)


def check_tree(name: str, actual: Any, expected: Any, limit: float = DERIVATIVES) -> None:
    """Compares an array, or a dictionary of them by the names of inputs."""
    if not isinstance(expected, dict):
        actual, expected = {"": actual}, {"": expected}
    for key, x in expected.items():
        check_close(f"{name} in {key}" if key else name, actual[key], x, limit)


def derivative(
    attend: Subject, case: Case, mode: Mode, names: Sequence[str] = ALL, part: str = "output"
) -> Callable[[dict], Any]:
    """Returns a derivative of the function under test, compiled; it returns NumPy arrays."""
    arrays = case.arrays()

    @jit
    def of_all(inputs, tangents, arrays):
        def attention(moving):
            returned = attend.call(case, inputs | moving, arrays)
            return outputs_of(returned)[part == "log-sum-exp"] if case.return_residual else returned

        return mode.of(attention, *({n: x[n] for n in names} for x in (inputs, tangents)))

    def run(inputs):
        with precision(case):
            return jax.device_get(of_all(inputs, _tangents(case, inputs), arrays))

    return run


def true_derivative(
    case: Case,
    mode: Mode,
    inputs: dict,
    names: Sequence[str] = ALL,
    part: str = "output",
    dtype: Any = np.float64,
) -> Any:
    """Returns the derivative of the dense formula, in NumPy."""
    allowed = case.allowed()
    inputs, tangents = (
        {name: np.asarray(x).astype(dtype) for name, x in arrays.items()}
        for arrays in (inputs, _tangents(case, inputs))
    )

    def attention(moving):
        given = {"scale": case.scale, **inputs, **moving}
        return oracle.dense(**given, allowed=allowed)[part == "log-sum-exp"]

    moving, tangents = ({name: x[name] for name in names} for x in (inputs, tangents))
    with jax.enable_x64(True):
        return jax.device_get(jit(functools.partial(mode.expected, attention))(moving, tangents))


def _tangents(case: Case, inputs: dict) -> dict[str, np.ndarray]:
    """Returns the case's tangents, and one of all that only these inputs have."""
    tangents = case.inputs("tangents")
    return {
        name: tangents[name] if name in tangents else np.ones_like(inputs[name]) for name in inputs
    }


def rich(attend: Subject) -> Case:
    """Returns the case with the most that the function offers, for what is costly to compile."""
    num_heads = 6 if attend.offers("grouped queries") else 3
    return Case(
        num_heads=num_heads,
        value_width=7 if attend.offers("value width") else 5,
        bias=(1, num_heads, 13, 13) if attend.offers("bias") else None,
        is_causal=attend.offers("is_causal"),
    )


@law()
def gradient(attend):
    """The gradient in query, key and value is the true one."""
    check_derivative(attend, Case(), GRADIENT)


@law()
def gradient_across_tiles(attend):
    """So it is at lengths past the usual tile sizes."""
    check_derivative(attend, Case(batch=(1,), num_queries=389, num_keys=389), GRADIENT)


@law("is_causal")
def causal_gradient(attend):
    """So it is under a causal mask, and with as many other features as there are."""
    check_derivative(attend, rich(attend), GRADIENT)


@law("mask")
def masked_gradient(attend):
    """So it is under a mask."""
    check_derivative(attend, Case(mask="some"), GRADIENT)


@law("cross attention")
def gradient_with_more_keys_than_queries(attend):
    """So it is for T < S."""
    check_derivative(attend, Case(num_keys=17), GRADIENT)


@law("grouped queries")
def grouped_gradient(attend):
    """That of a key head is the sum over the query heads that share it."""
    check_derivative(attend, Case(num_heads=6), GRADIENT)


@law("bias")
def bias_gradient(attend):
    """The bias has its true gradient."""
    check_derivative(attend, Case(bias=(2, 3, 13, 13)), GRADIENT, ("bias",))


@law("bias")
def gradient_of_a_bias_that_broadcasts(attend):
    """It is the sum over the axes of size 1."""
    check_derivative(attend, Case(bias=(1, 3, 1, 13)), GRADIENT, ("bias",))


@law("bias")
def gradient_of_a_two_dimensional_bias(attend):
    """[T, S] is for all rows and heads, across tiles; so is its gradient."""
    case = Case(batch=(1,), num_queries=263, num_keys=263, bias=(263, 263))
    check_derivative(attend, case, GRADIENT, ("bias",))


@law("scale")
def scale_gradient(attend):
    """A traced scale has its true gradient."""
    inputs = Case().inputs() | {"scale": np.asarray(0.3, np.float32)}
    check_derivative(attend, Case(), GRADIENT, ("scale",), inputs=inputs)


@law()
def jvp(attend):
    """The tangent in query, key and value, by forward mode, is the true one."""
    check_derivative(attend, rich(attend), JVP)


@law("bias")
def bias_jvp(attend):
    """So it is in the bias."""
    check_derivative(attend, Case(bias=(2, 3, 13, 13)), JVP, ("bias",))


@law()
def forward_over_reverse(attend):
    """The Hessian-vector product, as the jvp of a gradient, is the true one."""
    check_derivative(attend, rich(attend), HESSIAN_VECTOR)


@law()
def reverse_over_reverse(attend):
    """So it is as the gradient of a gradient."""
    check_derivative(attend, rich(attend), REVERSE_OVER_REVERSE)


@law()
def reverse_over_forward(attend):
    """So it is as the gradient of a jvp."""
    check_derivative(attend, rich(attend), REVERSE_OVER_FORWARD)
