"""A sequence spread over devices: what does not fit is named, and what functions may ask for."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import attn
from attn import masks, scores, sharded
from tests.attn.test_sharded import mesh_of

RNG = np.random.default_rng(0)
X = np.zeros((2, 12, 4, 8), np.float32)
WRONG = [
    ({"axis_name": ("sequence",)}, "axis_name is ('sequence',); expected the name of one axis"),
    ({"axis_name": "rows"}, "axis_name is 'rows'; expected an axis of the mesh: 'sequence'"),
    ({"method": "rings"}, "method is 'rings'; expected one of 'ring', 'gather', 'all_to_all'"),
    ({"placement": "striped"}, "placement is 'striped'; expected one of 'contiguous', 'zigzag'"),
    (
        {"query": X[:, :10]},
        "query has shape (2, 10, 4, 8); expected a sequence whose length is a multiple of 4, the "
        "size of axis 'sequence'",
    ),
    (
        {"placement": "zigzag"},
        "query has shape (2, 12, 4, 8); expected a sequence whose length is a multiple of 8, two "
        "blocks for each device of axis 'sequence'",
    ),
    (
        {"method": "all_to_all", "query": X[:, :, :3], "key": X[:, :, :1], "value": X[:, :, :1]},
        "query has N = 3 heads; expected a multiple of 4, the size of axis 'sequence', for "
        "all_to_all",
    ),
    (
        {"method": "all_to_all", "query": np.zeros((2, 12, 12, 8), np.float32)}
        | {name: np.zeros((2, 12, 3, 8), np.float32) for name in ("key", "value")},
        "key has K = 3 heads; expected a multiple or a divisor of 4, the size of axis 'sequence', "
        "for all_to_all",
    ),
    ({"bias": np.zeros((4, 7, 12), np.float32)}, "bias has shape (4, 7, 12)"),
    ({"mask": masks.Segments(np.zeros((2, 3), int))}, "mask Segments.query has shape (2, 3)"),
    ({"window": 3}, "window is no option"),
    ({"mesh": 4}, "mesh is a int; expected a jax.sharding.Mesh"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_what_does_not_fit_is_named_before_anything_is_spread(wrong, message, monkeypatch):
    monkeypatch.setattr(jax, "shard_map", None)
    call = {"query": X, "key": X, "value": X, "axis_name": "sequence", "mesh": mesh_of(4)}
    with pytest.raises((ValueError, TypeError)) as caught:
        sharded.dot_product_attention(**call | wrong)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["concrete", "abstract"])
def test_a_mesh_of_which_one_axis_is_the_callers(name):
    mesh = jax.make_mesh((2, 2), ("rows", "sequence"), (AxisType.Auto,) * 2)
    x = np.asarray(jax.random.normal(jax.random.key(0), (2, 12, 4, 8)))

    def of_rows(x):
        inner = mesh if name == "concrete" else jax.sharding.get_abstract_mesh()
        return sharded.dot_product_attention(
            x, x, x, is_causal=True, axis_name="sequence", mesh=inner
        )

    def of_all(x):
        return sharded.dot_product_attention(x, x, x, axis_name="sequence", mesh=mesh)

    spread = functools.partial(jax.shard_map, mesh=mesh, in_specs=P("rows"), out_specs=P("rows"))
    output = jax.jit(spread(of_rows, axis_names={"rows"}))(x)
    expected = attn.dot_product_attention(x, x, x, is_causal=True)
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"mesh is given inside .* over axis 'sequence'"):
        spread(of_all)(x)


def test_a_function_of_all_heads_is_told_that_it_sees_some():
    slopes = np.arange(4.0)[:, None, None]
    call = {"axis_name": "sequence", "mesh": mesh_of(4), "method": "all_to_all"}
    with pytest.raises((TypeError, ValueError)) as caught:
        sharded.dot_product_attention(X, X, X, score=lambda s, at, _: s * slopes, **call)
    assert "sees 1 of N = 4 heads; at.head says which" in caught.value.__notes__[0]


def test_a_function_may_ask_on_which_device_it_is():
    def shifted(score, at, _):
        return score + jax.lax.axis_index("sequence")

    x = RNG.normal(size=X.shape).astype(np.float32)
    found = sharded.dot_product_attention(
        x, x, x, axis_name="sequence", mesh=mesh_of(4), score=shifted
    )
    np.testing.assert_allclose(found, attn.dot_product_attention(x, x, x), rtol=1e-5, atol=1e-6)


class Twice(scores.Score):
    """No pytree."""

    def __call__(self, found, at):
        return 2 * found


@pytest.mark.parametrize("score", [Twice(), scores.RelativeBias(np.ones((8, 4), np.float32))])
def test_scores_on_a_mesh_of_which_an_axis_is_left(score):
    mesh = jax.make_mesh((2, 2), ("rows", "sequence"), (AxisType.Auto,) * 2)
    x = RNG.normal(size=X.shape).astype(np.float32)
    found = sharded.dot_product_attention(x, x, x, axis_name="sequence", mesh=mesh, score=score)
    expected = attn.dot_product_attention(x, x, x, score=score)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_share_of_odd_length_has_no_two_blocks():
    zigzag = functools.partial(
        sharded.dot_product_attention, axis_name="sequence", placement="zigzag"
    )
    rows = P(None, "sequence")
    spread = jax.shard_map(zigzag, mesh=mesh_of(4), in_specs=rows, out_specs=rows)
    with pytest.raises(ValueError, match=r"query has shape \(2, 3, 4, 8\); expected an even share"):
        spread(X, X, X)


def test_outside_of_a_mesh_the_axis_is_named():
    with pytest.raises(ValueError, match=r"'sequence'; expected an axis of the jax\.shard_map"):
        sharded.dot_product_attention(X, X, X, axis_name="sequence")
    with pytest.raises(ValueError, match="x has length 6; expected a multiple of 4"):
        sharded.place(np.arange(6), 2, axis=0)
    with pytest.raises(ValueError, match="num_devices is 0; expected an int of 1 or more"):
        sharded.place(np.arange(6), 0, axis=0)
    with pytest.raises(TypeError, match="num_devices is 'sequence'; expected an int"):
        sharded.place(np.arange(6), "sequence", axis=0)
