"""Every feature under the strictest settings of JAX: no implicit promotion of dtypes or ranks.

Code that is written under these settings differentiates our functions under them too.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attn
from attn import diagnostics, masks, positions, scores

T, N = 12, 4
IDS = np.repeat(np.arange(3, dtype=np.int32), 4)
PAIR = np.array([5, 9], np.int32)

FEATURES = {
    "offsets": {"mask": masks.Causal(PAIR)},
    "patterns": {"mask": masks.Window(3, 2) & ~masks.Strided(3) | masks.Dilated(2, 0, 2)},
    "lengths": {"mask": masks.Lengths(PAIR, PAIR) & masks.Lengths(3, 4) | masks.Prefix(PAIR)},
    "segments": {"mask": masks.Segments(IDS) | masks.Segments(np.stack([IDS, IDS[::-1]]))},
    "arrays": {"mask": masks.Dense(np.eye(T, dtype=bool)) | ~masks.Dense(IDS < 2)},
    "own mask": {"mask": masks.Causal() & masks.Where(lambda at: at.key % 3 == at.query % 3)},
    "jax.nn's": {"is_causal": True, "local_window_size": 3, "query_seq_lengths": PAIR},
    "soft cap": {"score": scores.SoftCap(np.ones(N, np.float32)), "alignment": "end"},
    "alibi": {"score": scores.ALiBi(positions.alibi_slopes(N)), "is_causal": True},
    "relative bias": {"score": scores.RelativeBias(np.ones((32, N), np.float32))},
    "log length": {"score": scores.Chain(scores.LogLength(1.0), scores.LogLength(2.0, PAIR))},
    "bias": {"bias": np.ones((T, T), np.float32), "scale": 2.0},
    "bias of keys": {"bias": np.ones((N, 1, T), np.float16)},
}
CALLS = {
    "sinks": {"sinks": np.ones(N, np.float32)},
    "dropout": {"dropout_rate": 0.5, "dropout_rng": jax.random.key(0)},
}


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


def heads(num):
    return jnp.ones((2, T, num, 8), jnp.bfloat16)


def total(tree):
    return sum(jnp.sum(x.astype(jnp.float32)) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", FEATURES | CALLS)
def test_a_hessian_vector_product(implementation, name):
    options = {"implementation": implementation, "return_residual": True}
    options |= (FEATURES | CALLS)[name]

    def loss(query, key):
        return total(attn.dot_product_attention(query, key, key, **options))

    inputs = heads(N), heads(2)
    moved = jax.eval_shape(lambda *x: jax.jvp(jax.grad(loss, (0, 1)), x, x), *inputs)
    assert {x.dtype.name for x in jax.tree.leaves(moved)} == {"bfloat16"}


@pytest.mark.parametrize("name", FEATURES)
def test_the_gradient_of_every_figure(name):
    options = FEATURES[name]

    def loss(query, key):
        distances = {"edges": [0, 3, 9]}
        return total(
            [
                diagnostics.entropy(query, key, **options),
                diagnostics.expected_distance(query, key, **options),
                diagnostics.distance_quantile(query, key, fraction=0.5, **options),
                diagnostics.mass_by_distance(query, key, **distances, **options),
                diagnostics.mass_on(query, key, positions=np.full(T, 3, np.int32), **options),
                diagnostics.top_keys(query, key, k=3, **options),
                diagnostics.column_sums(query, key, **options),
            ]
        )

    jax.eval_shape(jax.grad(loss, (0, 1)), heads(N), heads(2))
