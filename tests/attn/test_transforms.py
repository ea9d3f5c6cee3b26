"""Every implementation goes through JAX's transformations, alone and in each other."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import attn
from attn.testing import oracle
from tests.attn.cases import FLOAT64, Case, assert_close, call, dense, differentiable, jit
from tests.attn.laws import first_order, second_order

CAUSAL = {"is_causal": True, "alignment": "end"}


def laws(case, implementation):
    """Returns ``(inputs, arrays) -> value and gradient``."""

    def of_inputs(inputs, arrays):
        return first_order(functools.partial(call(case, implementation), arrays=arrays), inputs)

    return of_inputs


@pytest.mark.usefixtures("float64")
def test_vmap_of_gradient(implementation):
    """All is mapped, lengths too: a tile that is empty for one element is not for the next."""
    case = Case(batch=(), num_heads=3, bias=(3, 1, 17), scale=True)
    calls = [differentiable(case, str(i)) for i in range(3)]
    inputs = {name: np.stack([x[name] for x in calls]) for name in calls[0]}
    lengths = {"key_value_seq_lengths": np.array([17, 0, 6], np.int32)}
    shapes = inputs["query"].shape, inputs["key"].shape
    allowed = oracle.allowed_pairs(*shapes, **lengths)
    expected = jit(jax.vmap(lambda x, allowed: first_order(dense(allowed), x)))(inputs, allowed)

    ours = jit(jax.vmap(laws(case, implementation)))
    assert_close(ours(inputs, lengths), expected, **FLOAT64)
    unseen = ~allowed.any(axis=(1, 2))[..., None, None]
    for name in ("key", "value"):
        inputs[name] = np.where(unseen, np.nan, inputs[name])
    assert_close(ours(inputs, lengths), expected, **FLOAT64)


@pytest.mark.usefixtures("float64")
def test_gradient_of_vmap_over_lengths_alone(implementation):
    case = Case(batch=(), num_heads=3, options=CAUSAL)
    inputs = differentiable(case)
    lengths = {
        "query_seq_lengths": np.array([13, 2, 9], np.int32),
        "key_value_seq_lengths": np.array([17, 3, 8], np.int32),
    }

    def mapped(inputs):
        return jax.vmap(call(case, implementation), (None, 0))(inputs, lengths)

    def repeated(inputs):
        shapes = (3, *inputs["query"].shape), (3, *inputs["key"].shape)
        attention = dense(oracle.allowed_pairs(*shapes, **lengths, **CAUSAL))
        return attention({name: jnp.repeat(x[None], 3, axis=0) for name, x in inputs.items()})

    actual = jit(functools.partial(first_order, mapped))(inputs)
    expected = jit(functools.partial(first_order, repeated))(inputs)
    assert_close(actual, expected, **FLOAT64)


@pytest.mark.usefixtures("float64")
def test_gradient_in_one_input_is_its_part_of_the_whole(implementation):
    """What is at rest is left out of the rule, not out of the numbers."""
    case = Case(batch=(), num_heads=3, bias=(17,), options=CAUSAL)
    inputs = differentiable(case)
    allowed = oracle.allowed_pairs(inputs["query"].shape, inputs["key"].shape, **CAUSAL)
    whole = jit(functools.partial(first_order, dense(allowed)))(inputs)["gradient"]
    attention = functools.partial(call(case, implementation), arrays={})

    def part(inputs, name):
        return first_order(lambda x: attention(inputs | {name: x}), inputs[name])["gradient"]

    parts = jit(lambda inputs: {name: part(inputs, name) for name in ("value", "bias")})(inputs)
    for name, found in parts.items():
        np.testing.assert_allclose(found, whole[name], err_msg=name, **FLOAT64)


@pytest.mark.usefixtures("float64")
def test_hessian(implementation):
    """The whole matrix: forward over reverse, both vmapped over a basis."""
    case = Case(batch=(), num_queries=5, num_keys=7, num_heads=2, num_key_heads=1, head_width=3)
    inputs = differentiable(case)

    def hessian(attention):
        def of_query(query):
            output, lse = attention(inputs | {"query": query})
            return jnp.sum(jnp.sin(output)) + jnp.sum(lse**2)

        return jit(jax.hessian(of_query))(inputs["query"])

    actual = hessian(functools.partial(call(case, implementation), arrays={}))
    expected = hessian(dense(np.ones((5, 7), bool)))
    assert_close(actual, expected, **FLOAT64)


@pytest.mark.usefixtures("float64")
def test_gradient_through_a_scan_of_checkpointed_layers(implementation):
    x = np.random.default_rng(0).normal(size=(13, 3, 5))

    def layers(attention):
        def layer(x, _):
            output, lse = attention(query=x, key=x, value=x)
            return output + jnp.sin(lse)[..., None], None

        def loss(x):
            return jnp.sum(jax.lax.scan(jax.checkpoint(layer), x, length=3)[0] ** 2)

        return jit(jax.value_and_grad(loss))(x)

    ours = functools.partial(
        attn.dot_product_attention, implementation=implementation, return_residual=True
    )
    dense = functools.partial(oracle.dense, allowed=np.ones((13, 13), bool))
    assert_close(layers(ours), layers(dense), **FLOAT64)


@pytest.mark.usefixtures("float64")
def test_linearize_and_its_transpose(implementation):
    case = Case(batch=(), num_heads=3, bias=(3, 13, 17), scale=True, options=CAUSAL)
    inputs, tangents = differentiable(case), differentiable(case, "tangents")
    allowed = oracle.allowed_pairs(inputs["query"].shape, inputs["key"].shape, **CAUSAL)

    def linearized(attention):
        def both(inputs, tangents):
            value, linear = jax.linearize(attention, inputs)
            moved = linear(tangents)
            (back,) = jax.linear_transpose(linear, inputs)(value)
            return value, moved, back

        return jit(both)(inputs, tangents)

    ours = functools.partial(call(case, implementation), arrays={})
    assert_close(linearized(ours), linearized(dense(allowed)), **FLOAT64)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "policy", ["nothing_saveable", "everything_saveable", "dots_with_no_batch_dims_saveable"]
)
def test_checkpoint_policies(policy, implementation):
    case = Case(batch=(), num_heads=3, options=CAUSAL)
    inputs, tangents = differentiable(case), differentiable(case, "tangents")
    attention = functools.partial(call(case, implementation), arrays={})
    kept = jax.checkpoint(attention, policy=getattr(jax.checkpoint_policies, policy))
    laws = [jit(functools.partial(second_order, x)) for x in (kept, attention)]
    assert_close(*(law(inputs, tangents) for law in laws), **FLOAT64)


@pytest.mark.usefixtures("float64")
def test_vmap_over_any_axis(implementation):
    """The lanes are the last axis of one argument, a middle one of another, in and out."""
    case = Case(num_heads=3, bias=(3, 13, 17))
    calls = [differentiable(case, str(i)) for i in range(3)]
    axes = {"query": 4, "key": 1, "value": 2, "bias": -1}
    inputs = {k: np.stack([x[k] for x in calls], axis) for k, axis in axes.items()}
    attention = functools.partial(call(case, implementation), arrays={})
    law = functools.partial(first_order, attention)
    found = jit(jax.vmap(law, (axes,), {"value": (1, 0), "gradient": axes}))(inputs)
    every = np.ones((13, 17), bool)
    for lane, one in enumerate(calls):
        expected = jit(functools.partial(first_order, dense(every)))(one)
        output, lse = found["value"]
        assert_close((output[:, lane], lse[lane]), expected["value"], **FLOAT64)
        gradient = {
            k: np.take(np.asarray(found["gradient"][k]), lane, axis) for k, axis in axes.items()
        }
        assert_close(gradient, expected["gradient"], **FLOAT64)


def test_export_with_a_symbolic_width():
    """Of which the scale is not known, but may be given."""
    (width,) = jax.export.symbolic_shape("h")
    attend = jax.jit(lambda x: attn.dot_product_attention(x, x, x, scale=0.25))
    exported = jax.export.export(attend)(jax.ShapeDtypeStruct((1, 16, 2, width), jnp.float32))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 16, 2, 8)), jnp.float32)
    np.testing.assert_allclose(exported.call(x), attend(x), rtol=1e-5, atol=1e-6)


def test_export_with_symbolic_batch_and_lengths():
    """One program for all of them: values, gradients and Hessian-vector products."""
    batch, queries, keys = jax.export.symbolic_shape("b, t, s")

    def attend(inputs):
        return attn.dot_product_attention(
            **inputs,
            mask=attn.masks.Causal() | attn.masks.Prefix(3),
            score=attn.scores.SoftCap(20.0),
            sinks=jnp.ones(4),
            return_residual=True,
        )

    def laws(inputs):
        return second_order(attend, inputs, inputs)

    def shapes(batch, queries, keys):
        sizes = {"query": (queries, 4), "key": (keys, 2), "value": (keys, 2)}
        return {
            name: jax.ShapeDtypeStruct((batch, *size, 8), np.float32)
            for name, size in sizes.items()
        }

    program = jax.jit(laws)
    exported = jax.export.export(program, platforms=["cpu", "cuda", "tpu"])(
        shapes(batch, queries, keys)
    )
    again = jax.export.deserialize(exported.serialize())
    rng = np.random.default_rng(0)
    for sizes in ((2, 5, 7), (1, 600, 513), (3, 1, 1)):
        inputs = {k: rng.normal(size=x.shape).astype(x.dtype) for k, x in shapes(*sizes).items()}
        assert_close(again.call(inputs), program(inputs), rtol=1e-3, atol=1e-4)


def test_lowers_for_every_platform(implementation):
    """Of which the machine that runs this may have only the first."""
    case = Case(bias=(17,), scale=True, options=CAUSAL)
    arrays = {"key_value_seq_lengths": np.array([17, 6], np.int32)}
    program = jax.jit(laws(case, implementation))
    inputs = differentiable(case, dtype=np.float32)
    # Kernels that are named run where they are, or the export fails.
    platforms = ["cpu"] if "fused" in implementation else ["cpu", "cuda", "tpu"]
    exported = jax.export.export(program, platforms=platforms)(inputs, arrays)
    assert exported.platforms == tuple(platforms)
