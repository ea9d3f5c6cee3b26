"""Memory laws, on the temporary bytes of the compiled program: exact numbers, free of noise."""

import functools

import jax
import jax.numpy as jnp
import pytest

import attn
from tests.attn.cases import quick_to_compile
from tests.attn.laws import inner

FEW, MANY = 4096, 16384
MEGABYTE = 10**6

LENGTHS = jax.ShapeDtypeStruct((1,), jnp.int32)
CAUSAL_WITH_LENGTHS = {"is_causal": True, "key_value_seq_lengths": LENGTHS}


def forward(attention, *x):
    return attention(*x)


def gradient(attention, *x):
    return jax.grad(lambda *y: jnp.sum(jnp.sin(attention(*y))), argnums=range(len(x)))(*x)


def jvp(attention, *x):
    return jax.jvp(attention, x, x)


def hessian_vector_product(attention, *x):
    return jax.jvp(functools.partial(gradient, attention), x, x)[1]


def gradient_of_gradient(attention, *x):
    return jax.grad(lambda *y: inner(gradient(attention, *y), y), argnums=range(len(x)))(*x)


LAWS = [forward, gradient, jvp, hessian_vector_product, gradient_of_gradient]


def temporary_bytes(law, num_tokens, options, num_heads=2, width=16, compiler_options=None):
    """Of ``law`` of attention over that many tokens, in float32; arrays are given by shape."""
    x = jax.ShapeDtypeStruct((1, num_tokens, num_heads, width), jnp.float32)
    arrays = {name: v for name, v in options.items() if isinstance(v, jax.ShapeDtypeStruct)}
    static = {name: v for name, v in options.items() if name not in arrays}

    def program(query, key, value, arrays):
        attention = functools.partial(attn.dot_product_attention, **static, **arrays)
        return law(attention, query, key, value)

    lowered = jax.jit(program, compiler_options=compiler_options).lower(x, x, x, arrays)
    return lowered.compile().memory_analysis().temp_size_in_bytes


def growth(law, options):
    """Returns how many times the bytes four times the tokens take."""
    few, many = (
        temporary_bytes(law, num_tokens, options, compiler_options=quick_to_compile())
        for num_tokens in (FEW, MANY)
    )
    return many / few


@pytest.mark.parametrize("law", LAWS)
def test_memory_is_linear(law):
    assert growth(law, CAUSAL_WITH_LENGTHS) <= MANY / FEW


def test_memory_without_a_mask_is_linear():
    assert growth(gradient, {}) <= MANY / FEW


def test_memory_of_a_bias_of_keys_is_linear():
    def gradient_in_bias(attention, *x):
        bias = x[0][0, :, 0, 0]
        return jax.grad(lambda bias: jnp.sum(jnp.sin(attention(*x, bias=bias))))(bias)

    assert growth(gradient_in_bias, {}) <= MANY / FEW


def test_memory_of_the_reference_is_quadratic():
    """So that the law above is known to be able to fail."""
    assert growth(forward, {"implementation": "reference"}) > 0.9 * (MANY / FEW) ** 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("law", "megabytes"),
    [(gradient, 320), (hessian_vector_product, 340), (gradient_of_gradient, 640)],
)
def test_memory_at_32k_tokens(law, megabytes):
    found = temporary_bytes(law, 2**15, {"is_causal": True}, num_heads=4, width=64)
    assert found <= megabytes * MEGABYTE
