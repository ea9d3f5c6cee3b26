"""Laws of memory: linear in the sequence, from the compiled programs, which are not run."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from attn.testing.laws import law
from attn.testing.subject import Broken, NotOffered, Subject, if_known, quick_to_compile

TOKENS = 8192
GROWTH = 2.6
"""How many times the temporary bytes twice the tokens may take: linear is 2, quadratic is 4."""


@law()
def memory_of_output(attend):
    """Temporary memory is linear in T = S."""
    _check_growth(attend, lambda f, *x: f(*x))


@law()
def memory_of_gradient(attend):
    """So it is in the gradient."""
    _check_growth(attend, _gradient)


@law()
def memory_of_jvp(attend):
    """So it is in the jvp."""
    _check_growth(attend, lambda f, *x: jax.jvp(f, x, x))


@law()
def memory_of_hessian_vector_product(attend):
    """So it is in the jvp of the gradient."""
    _check_growth(attend, lambda f, *x: jax.jvp(functools.partial(_gradient, f), x, x)[1])


def _gradient(attention: Callable, *inputs: jax.Array) -> tuple[jax.Array, ...]:
    return jax.grad(lambda *x: jnp.sum(jnp.sin(attention(*x))), argnums=(0, 1, 2))(*inputs)


def _check_growth(attend: Subject, derivative: Callable) -> None:
    few, many = (_temporary_bytes(attend, derivative, TOKENS * times) for times in (1, 2))
    if many > GROWTH * few:
        raise Broken(
            f"{few / 1e6:.1f} MB at T = {TOKENS}, {many / 1e6:.1f} MB at twice that: "
            f"{many / few:.1f} times as much"
        )


def _temporary_bytes(attend: Subject, derivative: Callable, num_tokens: int) -> int:
    """Returns those of a derivative of attention over that many tokens, causal where offered."""
    options = {"is_causal": True} if attend.offers("is_causal") else {}
    x = jax.ShapeDtypeStruct((1, num_tokens, 2, 16), jnp.float32)

    def program(query, key, value):
        return derivative(lambda *qkv: attend.function(*qkv, **options), query, key, value)

    # XLA's CPU backend may hand softmax(Q K^T) V as a whole to a library, whose T x S buffer it
    # does not count though it is there.
    counted = if_known(xla_cpu_experimental_ynn_fusion_type="")
    lowered = jax.jit(program, compiler_options=quick_to_compile() | counted).lower(x, x, x)
    analysis = lowered.compile().memory_analysis()
    if analysis is None:
        raise NotOffered("the platform does not say how much memory a program takes")
    return analysis.temp_size_in_bytes
