"""Memory laws, on the temporary bytes of the compiled program: exact numbers, free of noise."""

import functools

import jax
import jax.numpy as jnp
import pytest

import attn
from attn import masks, scores
from tests.attn.laws import inner
from tests.quick import quick_to_compile

FEW, MANY = 4096, 16384
MEGABYTE = 10**6


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


def not_hiding_buffers():
    """Returns quick options, without the fusion whose buffers the compiler does not count."""
    options = quick_to_compile() | {"xla_cpu_experimental_ynn_fusion_type": ""}
    try:
        jax.jit(lambda x: x + 1, compiler_options=options)(1.0)
    except Exception:  # Options come and go with versions.
        return quick_to_compile()
    return options


def temporary_bytes(law, num_tokens, options, num_heads=2, width=16, compiler_options=None):
    """Of ``law`` of attention over that many tokens, in float32.

    ``options`` gives, for arrays by shape, the options of the call.
    """
    x = jax.ShapeDtypeStruct((1, num_tokens, num_heads, width), jnp.float32)
    arrays, of_arrays = options(num_tokens)

    def program(query, key, value, arrays):
        attention = functools.partial(attn.dot_product_attention, **of_arrays(arrays))
        return law(attention, query, key, value)

    lowered = jax.jit(program, compiler_options=compiler_options).lower(x, x, x, arrays)
    return lowered.compile().memory_analysis().temp_size_in_bytes


def growth(law, options):
    """Returns how many times the bytes four times the tokens take."""
    few, many = (
        temporary_bytes(law, num_tokens, options, compiler_options=not_hiding_buffers())
        for num_tokens in (FEW, MANY)
    )
    return many / few


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def static(**options):
    return lambda num_tokens: ((), lambda arrays: options)


CAUSAL_WITH_LENGTHS = lambda num_tokens: (  # noqa: E731
    shape(1, dtype=jnp.int32),
    lambda lengths: {"is_causal": True, "key_value_seq_lengths": lengths},
)
FEATURES = {
    "segments": lambda n: (
        shape(1, n, dtype=jnp.int32),
        lambda ids: {"mask": ~masks.Segments(ids) | masks.Prefix(100)},
    ),
    "a user's mask": static(mask=masks.Where(lambda at: (at.query ^ at.key) % 7 > 0)),
    "strided": static(mask=masks.Strided(3) & masks.Causal()),
    "relative bias": lambda n: (
        shape(32, 2),
        lambda table: {"score": scores.RelativeBias(table), "is_causal": True},
    ),
    "chain with a closure": lambda n: (
        (shape(2), shape(n)),
        lambda params: {
            "score": scores.Chain(
                scores.SoftCap(9.0),
                scores.ALiBi(params[0]),
                scores.Function(lambda s, at, _: s * params[1][at.key]),
            )
        },
    ),
    "sinks and dropout": lambda n: (
        (shape(2), shape(2, dtype=jnp.uint32)),
        lambda params: {"sinks": params[0], "dropout_rate": 0.1, "dropout_rng": params[1]},
    ),
    "bias of keys": lambda n: (shape(n), lambda bias: {"bias": bias}),
}


@pytest.mark.parametrize("law", LAWS)
def test_memory_is_linear(law):
    assert growth(law, CAUSAL_WITH_LENGTHS) <= MANY / FEW


def test_memory_without_a_mask_is_linear():
    assert growth(gradient, static()) <= MANY / FEW


@pytest.mark.parametrize("name", FEATURES)
def test_memory_of_features_is_linear(name):
    """Of the Hessian-vector product, which holds value, gradient and jvp."""
    assert growth(hessian_vector_product, FEATURES[name]) <= MANY / FEW


@pytest.mark.parametrize("name", ["relative bias", "chain with a closure", "sinks and dropout"])
def test_memory_of_gradients_in_parameters_is_linear(name):
    """A table of 32 numbers has a gradient of 32, and no map on the way to it."""

    def of_arrays(num_tokens):
        arrays, options = FEATURES[name](num_tokens)
        return arrays, lambda arrays: {"arrays": arrays, "options": options}

    def gradient_in_parameters(attention, *x):
        arrays, options = attention.keywords["arrays"], attention.keywords["options"]
        leaves, tree = jax.tree.flatten(arrays)
        floats = [k for k, y in enumerate(leaves) if jnp.issubdtype(y.dtype, jnp.floating)]

        def loss(some):
            every = list(leaves)
            for k, y in zip(floats, some, strict=True):
                every[k] = y
            given = options(tree.unflatten(every))
            return jnp.sum(jnp.sin(attn.dot_product_attention(*x, **given)))

        return jax.grad(loss)([leaves[k] for k in floats])

    assert growth(gradient_in_parameters, of_arrays) <= MANY / FEW


def test_memory_of_the_reference_is_quadratic():
    """So that the law above is known to be able to fail."""
    assert growth(forward, static(implementation="reference")) > 0.9 * (MANY / FEW) ** 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("law", "megabytes"),
    [(gradient, 200), (hessian_vector_product, 505), (gradient_of_gradient, 505)],
)
def test_memory_at_32k_tokens(law, megabytes):
    found = temporary_bytes(law, 2**15, static(is_causal=True), num_heads=4, width=64)
    assert found <= megabytes * MEGABYTE
