"""On several devices: the numbers of one, inside ``shard_map`` and on meshes of either kind."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import attn
from attn import diagnostics, masks, scores
from tests.attn.cases import assert_close, jit

B, T, N, H = 4, 12, 2, 4
RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=T)

# What every device has a part of, and what all of them have.
PARTS = {
    "x": RNG.normal(size=(B, T, N, H)),
    "ids": np.sort(RNG.integers(0, 3, (B, T))),
    "lengths": np.array([12, 5, 0, 9]),
}
WHOLE = {"w": RNG.normal(size=(H, H)), "slopes": RNG.normal(size=N)}


def of_segments(at, ids):
    batch, *_ = at.batch
    return ids[batch, at.query] == ids[batch, at.key]


def own_score(scores, at, slopes):
    return scores * jnp.cos(slopes[at.head] + at.key) + jnp.asarray(TABLE)[at.key]


OPTIONS = {
    "plain": lambda ids, lengths, slopes: {},
    "causal, segments, lengths": lambda ids, lengths, slopes: {
        "is_causal": True,
        "mask": masks.Segments(ids),
        "key_value_seq_lengths": lengths,
    },
    "scores": lambda ids, lengths, slopes: {
        "score": scores.Chain(scores.SoftCap(3.0), scores.ALiBi(slopes)),
        "sinks": slopes,
    },
    "functions": lambda ids, lengths, slopes: {
        "mask": masks.Where(of_segments, ids) | masks.Where(lambda at: at.key % 3 == 1),
        "score": own_score,
        "score_params": slopes,
    },
    "closed over": lambda ids, lengths, slopes: {
        "mask": masks.Segments(ids),
        "score": lambda scores, at, _: scores * jnp.cos(jnp.take(jnp.exp(slopes), at.head)),
    },
    "bias": lambda ids, lengths, slopes: {"bias": slopes[:, None, None] * np.sin(TABLE)},
}


def losses(name, implementation):
    """Returns the loss of every row of the batch, ``[B]``."""

    def loss(parts, whole):
        x, others = parts["x"], {"ids": parts["ids"], "lengths": parts["lengths"]}
        options = OPTIONS[name](**others, slopes=whole["slopes"])
        output, lse = attn.dot_product_attention(
            x @ whole["w"], x, x, implementation=implementation, return_residual=True, **options
        )
        return jnp.sum(jnp.sin(output), axis=(1, 2, 3)) + jnp.sum(jnp.tanh(lse), axis=(1, 2))

    return loss


def laws(function, parts, whole):
    """Returns value, gradients and Hessian-vector product of a function of both trees."""
    rest = {name: parts[name] for name in ("ids", "lengths")}

    def total(x, whole):
        return jnp.sum(function(rest | {"x": x}, whole))

    primals = parts["x"], whole
    gradient = jax.value_and_grad(total, (0, 1))
    return jax.jvp(gradient, primals, jax.tree.map(jnp.cos, primals))


@functools.cache
def expected(name):
    return jit(functools.partial(laws, losses(name, "reference")))(PARTS, WHOLE)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", OPTIONS)
def test_inside_shard_map(implementation, name):
    """As it is by default: types tell what varies over devices, and sums over them follow."""
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    sharded = jax.shard_map(
        losses(name, implementation),
        mesh=mesh,
        in_specs=(P(("a", "b")), P()),
        out_specs=P(("a", "b")),
    )
    found = jit(functools.partial(laws, sharded))(PARTS, WHOLE)
    assert_close(found, expected(name), rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("a", None, "b"), P(None, "a")], ids=["rows, heads", "tokens"])
def test_on_a_mesh(implementation, kind, spec):
    """Cut along rows and heads, or along tokens; where axes are explicit, the output too."""
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(kind,) * 2)
    query, key = (jnp.asarray(RNG.normal(size=(B, T, N, H))) for _ in range(2))

    def laws(query, key):
        def attend(query, key):
            return attn.dot_product_attention(
                query, key, key, is_causal=True, implementation=implementation
            )

        output, transposed = jax.vjp(attend, query, key)
        return output, transposed(output), jax.jvp(attend, (query, key), (key, query))[1]

    wanted = jit(laws)(query, key)
    with jax.set_mesh(mesh):
        query, key = (jax.device_put(x, NamedSharding(mesh, spec)) for x in (query, key))
        found = jit(laws)(query, key)
    if kind == AxisType.Explicit:
        assert found[0].sharding.is_equivalent_to(query.sharding, ndim=4)
    assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("float64")
def test_figures():
    """Of a map whose rows are on several devices."""

    def figures(x, ids):
        options = {"mask": masks.Causal() & masks.Segments(ids)}
        return [
            diagnostics.entropy(x, x, **options),
            diagnostics.distance_quantile(x, x, fraction=0.5, **options),
            diagnostics.top_keys(x, x, k=3, **options),
            diagnostics.mass_by_distance(x, x, edges=[0, 2, T], **options),
            diagnostics.column_sums(x, x, **options),
        ]

    x, ids = jnp.asarray(PARTS["x"]), jnp.asarray(PARTS["ids"])
    wanted = jit(figures)(x, ids)
    mesh = jax.make_mesh((4,), ("a",), axis_types=(AxisType.Auto,))
    spec = {"in_specs": P("a"), "out_specs": P("a")}
    found = jit(jax.shard_map(figures, mesh=mesh, **spec))(x, ids)
    assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    mesh = jax.make_mesh((4,), ("a",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        found = jit(figures)(*(jax.device_put(y, NamedSharding(mesh, P("a"))) for y in (x, ids)))
    assert_close(found, wanted, rtol=1e-10, atol=1e-10)
