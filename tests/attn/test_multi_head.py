"""The module: linen's parameters, linen's numbers, and what linen's module does not have."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

import attn
from attn import MultiHeadAttention, masks
from attn.testing import oracle
from tests.attn.cases import FLOAT32, assert_close, jit

B, T, S, D, E, N = 2, 13, 17, 11, 7, 3


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def parameters(module, *inputs, **options):
    """Returns normal numbers in place of all parameters; biases are then not 0."""
    init = functools.partial(module.init, **options)
    tree = jax.eval_shape(init, jax.random.key(0), *inputs)
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten([normal(*x.shape, seed=i) * 0.3 for i, x in enumerate(leaves)])


def shapes(tree):
    return {jax.tree_util.keystr(k): (x.shape, x.dtype) for k, x in jax.tree.leaves_with_path(tree)}


SELF, CROSS, THREE = (
    (normal(B, T, D),),
    (normal(B, T, D), normal(B, S, E, seed=1)),
    (normal(B, T, D), normal(B, S, E, seed=1), normal(B, S, 5, seed=2)),
)
MASK = np.random.default_rng(0).random((B, 1, T, S)) < 0.7
MASK[..., 0] = True
LINEN_CASES = {
    "self": (SELF, {}, {}),
    "causal": (
        SELF,
        {"is_causal": True},
        {"mask": np.broadcast_to(np.tri(T, dtype=bool), (B, 1, T, T))},
    ),
    "cross": (CROSS, {"mask": MASK}, {"mask": MASK}),
    "keys apart from values": (THREE, {}, {}),
}


@pytest.mark.parametrize("name", LINEN_CASES)
def test_parameters_of_linen_give_the_numbers_of_linen(name):
    """One set of parameters in both modules: the same outputs and the same gradients."""
    inputs, our_options, linen_options = LINEN_CASES[name]
    sizes = {"num_heads": N, "qkv_features": 15, "out_features": 5}
    ours, theirs = MultiHeadAttention(**sizes), linen.MultiHeadDotProductAttention(**sizes)
    numbers = parameters(theirs, *inputs)
    assert shapes(parameters(ours, *inputs)) == shapes(numbers)

    def output_and_gradient(module, options, numbers, inputs):
        def loss(numbers, inputs):
            output = module.apply(numbers, *inputs, **options)
            return jnp.sum(jnp.sin(output)), output

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(numbers, inputs)

    @jit
    def both(numbers, inputs):
        return (
            output_and_gradient(ours, our_options, numbers, inputs),
            output_and_gradient(theirs, linen_options, numbers, inputs),
        )

    assert_close(*both(numbers, inputs), rtol=1e-4, atol=1e-5)


def test_initial_parameters_are_those_of_linen():
    sizes = {"num_heads": N, "qkv_features": 15}
    modules = MultiHeadAttention(**sizes), linen.MultiHeadDotProductAttention(**sizes)
    ours, theirs = (jit(x.init)(jax.random.key(0), *SELF) for x in modules)
    assert_close(ours, theirs, rtol=0, atol=0)


def project(numbers, name, x):
    """Returns ``[*B, T, N, H]``."""
    leaf = numbers["params"][name]
    return np.einsum("...td,dnh->...tnh", x, leaf["kernel"]) + leaf["bias"]


def project_out(numbers, heads):
    leaf = numbers["params"]["out"]
    return np.einsum("...tnv,nvd->...td", heads, leaf["kernel"]) + leaf["bias"]


def test_every_width_can_be_chosen():
    """Fewer key heads, values of their own width; by the formula, in NumPy."""
    module = MultiHeadAttention(
        num_heads=6, num_key_heads=2, qkv_features=30, value_features=42, out_features=13
    )
    inputs = normal(B, T, D), normal(B, S, E, seed=1)
    numbers = parameters(module, *inputs)
    assert shapes(numbers) == {
        f"['params']['{name}']['{leaf}']": (shape, np.float32)
        for name, leaf, shape in [
            ("key", "bias", (2, 5)),
            ("key", "kernel", (E, 2, 5)),
            ("out", "bias", (13,)),
            ("out", "kernel", (6, 7, 13)),
            ("query", "bias", (6, 5)),
            ("query", "kernel", (D, 6, 5)),
            ("value", "bias", (2, 7)),
            ("value", "kernel", (E, 2, 7)),
        ]
    }
    options = {"local_window_size": (5, 3), "alignment": "end", "scale": 0.3}
    output = jit(functools.partial(module.apply, **options))(numbers, *inputs)
    query, key, value = (
        project(numbers, name, x)
        for name, x in zip(("query", "key", "value"), (*inputs, inputs[1]), strict=True)
    )
    heads, _ = oracle.attention(query, key, value, **options)
    assert_close(output, project_out(numbers, heads), **FLOAT32)


def test_weights_are_those_that_mix_the_values():
    module = MultiHeadAttention(num_heads=4, num_key_heads=2, qkv_features=24, rotary=True)
    bias, lengths = normal(4, T, T), np.array([T, 5])
    numbers = parameters(module, *SELF)
    apply = functools.partial(module.apply, return_weights=True, is_causal=True)
    output, weights = jit(apply)(numbers, *SELF, bias=bias, key_value_seq_lengths=lengths)
    assert weights.shape == (B, 4, T, T)
    np.testing.assert_allclose(np.sum(weights, axis=-1), 1, rtol=1e-5)
    assert np.all(np.asarray(weights)[:, :, ~np.tri(T, dtype=bool)] == 0)
    assert np.all(np.asarray(weights)[1, ..., 5:] == 0)
    value = np.repeat(project(numbers, "value", SELF[0]), 2, axis=-2)
    heads = np.einsum("bnts,bsnv->btnv", weights, value)
    assert_close(output, project_out(numbers, heads), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rotary", [False, True])
def test_rotary_tells_the_order_by_differences_of_positions(rotary):
    """Of equal tokens the weights are uniform; rotated, they depend on i - j alone."""
    module = MultiHeadAttention(num_heads=1, qkv_features=6, rotary=rotary)
    inputs = np.ones((7, D), np.float32)
    apply = functools.partial(module.apply, return_weights=True)
    _, weights = jit(apply)(parameters(module, inputs), inputs)
    scores = np.log(weights[0])
    scores = scores - np.diag(scores)[:, None]
    for diagonal in range(-6, 7):
        np.testing.assert_allclose(np.ptp(np.diag(scores, diagonal)), 0, atol=1e-4)
    assert (np.ptp(scores) > 0.1) == rotary


@pytest.mark.parametrize(
    ("given", "parameter_dtype", "output_dtype"),
    [
        ({"dtype": jnp.bfloat16}, jnp.float32, jnp.bfloat16),
        ({"param_dtype": jnp.bfloat16}, jnp.bfloat16, jnp.float32),
        ({"dtype": jnp.bfloat16, "param_dtype": jnp.float16}, jnp.float16, jnp.bfloat16),
        ({}, jnp.float32, jnp.float32),
    ],
)
def test_dtypes(given, parameter_dtype, output_dtype):
    module = MultiHeadAttention(num_heads=1, **given)
    output, numbers = jax.eval_shape(module.init_with_output, jax.random.key(0), *SELF)
    assert output.dtype == output_dtype
    assert {x.dtype for x in jax.tree.leaves(numbers)} == {jnp.dtype(parameter_dtype)}


def test_projections_without_bias():
    tree = parameters(MultiHeadAttention(num_heads=1, use_bias=False), *SELF)
    assert {jax.tree_util.keystr(k[-1:]) for k, _ in jax.tree.leaves_with_path(tree)} == {
        "['kernel']"
    }


def test_dropout_is_drawn_from_its_stream():
    module = MultiHeadAttention(num_heads=4, qkv_features=24, dropout_rate=0.5)
    plain = MultiHeadAttention(num_heads=4, qkv_features=24)
    numbers = parameters(plain, *SELF)
    expected = jit(plain.apply)(numbers, *SELF)
    still = jit(functools.partial(module.apply, deterministic=True))(numbers, *SELF)
    np.testing.assert_array_equal(still, expected)

    def dropped(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return module.apply(numbers, *SELF, deterministic=False, rngs=rngs)

    first, again, other = (dropped(seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.all(np.abs(first - other) > 0)
    assert np.all(np.abs(first - expected) > 0)


@pytest.mark.parametrize(
    ("given", "arguments", "message"),
    [
        ({"dropout_rate": 0.1}, {}, r"deterministic is None; expected True or False"),
        ({"num_heads": 4}, {}, r"qkv_features is 11; expected a multiple of num_heads = 4"),
        ({"value_features": 10}, {}, r"value_features is 10; expected a multiple of num_heads = 3"),
        ({"num_key_heads": 2}, {}, r"num_key_heads is 2; expected a divisor of num_heads = 3"),
        ({"num_key_heads": 0}, {}, r"num_key_heads is 0; expected an int of 1 or more"),
        ({"out_features": 0}, {}, r"out_features is 0; expected an int of 1 or more"),
        ({"dropout_rate": -1.0}, {"deterministic": False}, r"dropout_rate is -1.0; expected one"),
        ({"dropout_rate": 2.0}, {"deterministic": True}, r"dropout_rate is 2.0; expected one in"),
        (
            {"qkv_features": 9, "rotary": True},
            {},
            r"qkv_features is 9, 3 for each of num_heads =",
        ),
        ({}, {"inputs_k": SELF[0][:1]}, r"inputs_k has shape \(1, .*expected leading axes \(2,\)"),
        (
            {},
            {"inputs_k": SELF[0], "inputs_v": SELF[0][:, 1:]},
            r"inputs_v has shape .*; expected \(2, 13, 'F'\)",
        ),
        ({}, {"sinks": np.zeros(2, np.float32)}, r"sinks has shape \(2,\); expected \(3,\)"),
        ({}, {"inputs_v": SELF[0]}, r"inputs_v is given without inputs_k"),
        ({}, {"mask": np.ones((B, T, T), bool)}, r"mask has shape \(2, 13, 13\)"),
        ({"implementation": "fast"}, {}, r"implementation is 'fast'; expected one of"),
    ],
)
def test_what_cannot_be_is_refused(given, arguments, message):
    sizes = {"num_heads": N, "qkv_features": 11 if "num_heads" in given else 12}
    module = MultiHeadAttention(**(sizes | given))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(functools.partial(module.init, **arguments), jax.random.key(0), *SELF)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_heads": "4"}, "num_heads is '4'; expected an int"),
        ({"num_heads": True}, "num_heads is True; expected an int"),
        ({"num_key_heads": 1.0}, "num_key_heads is 1.0; expected an int"),
        ({"qkv_features": "12"}, "qkv_features is '12'; expected an int"),
        ({"rotary": "yes"}, "rotary is 'yes'; expected a bool"),
        ({"dropout_rate": "0.1"}, "dropout_rate is a str; expected a Python float"),
        ({"deterministic": "no", "dropout_rate": 0.1}, "deterministic is 'no'; expected a bool"),
        ({"return_weights": 1}, "return_weights is 1; expected a bool"),
        ({"return_residual": True}, "return_residual is no option; expected of"),
        ({"inputs_q": None}, "inputs_q is a NoneType; expected an array"),
    ],
)
def test_what_is_of_another_type_is_refused_before_anything_is_projected(
    given, message, monkeypatch
):
    monkeypatch.setattr(linen, "DenseGeneral", None)
    fields = {name: x for name, x in given.items() if hasattr(MultiHeadAttention, name)}
    call = {name: x for name, x in given.items() if name not in (*fields, "num_heads")}
    fields = {"num_heads": given.get("num_heads", N), "qkv_features": 12} | fields
    with pytest.raises(TypeError, match=message):
        MultiHeadAttention(**fields).init(jax.random.key(0), **({"inputs_q": SELF[0]} | call))


def test_an_implementation_that_is_named_runs_over_a_sequence_axis_too():
    mesh = jax.make_mesh((1,), ("s",), axis_types=(jax.sharding.AxisType.Auto,))

    def kernels_of(named):
        module = MultiHeadAttention(2, sequence_axis="s", implementation=named)
        x = jnp.zeros((1, 256, 16))
        numbers = module.init(jax.random.key(0), x)
        traced = jax.jit(module.apply).trace(numbers, x)
        return traced.lower(lowering_platforms=("tpu",)).as_text().count("tpu_custom_call")

    with jax.sharding.set_mesh(mesh), attn.compiled_for("tpu"):
        assert [kernels_of(x) for x in (None, "fused", "blockwise", "xla")] == [1, 1, 0, 0]
        with pytest.raises(ValueError, match="expected one of 'blockwise', 'fused'"):
            kernels_of("reference")


def test_functions_are_asked_as_attention_asks_them():
    """On the device where they run, and of scores in the dtype that they have."""
    mesh = jax.make_mesh((1,), ("s",), axis_types=(jax.sharding.AxisType.Auto,))
    near = masks.Where(lambda at: at.key >= jax.lax.axis_index("s"))
    score = lambda s, at, _: s + jax.lax.axis_index("s")  # noqa: E731
    with jax.sharding.set_mesh(mesh):
        module = MultiHeadAttention(2, sequence_axis="s")
        found, numbers = module.init_with_output(
            jax.random.key(0), jnp.ones((1, 16, 8)), mask=near, score=score
        )
    expected = MultiHeadAttention(2).apply(numbers, jnp.ones((1, 16, 8)))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    numbers = jax.tree.map(lambda x: x.astype(jnp.bfloat16), numbers)
    with jax.numpy_dtype_promotion("strict"):
        found = MultiHeadAttention(2).apply(numbers, jnp.ones((1, 16, 8), jnp.bfloat16))
    assert found.dtype == jnp.bfloat16


def test_it_may_be_computed_again():
    """By ``linen.remat``, which traces flags too."""
    kinds = MultiHeadAttention, linen.remat(MultiHeadAttention)
    module, again = (kind(N, qkv_features=12) for kind in kinds)
    numbers = module.init(jax.random.key(0), *SELF)
    loss = lambda module, x: jnp.sum(module.apply(numbers, x, deterministic=True) ** 2)  # noqa: E731
    found, expected = (
        jax.grad(functools.partial(loss, x))(jnp.asarray(SELF[0])) for x in (again, module)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_it_is_the_public_name():
    assert attn.MultiHeadAttention is MultiHeadAttention
