"""Calls of cuDNN: what is done around them, with XLA in its place; their lowering; refusals.

A GPU is not needed, nor is cuDNN.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import attn
from attn import masks, scores
from attn.overrides import KERNELS, USUAL, Refused

T, N, K, H = 13, 6, 3, 8
RNG = np.random.default_rng(0)
CALLS = {
    "all": {},
    "causal": {"is_causal": True},
    "causal as a mask": {"mask": masks.Causal() & masks.Window(left=20, right=0)},
    "window": {"is_causal": True, "local_window_size": (3, 5)},
    "window of one": {"local_window_size": 0},
}
ARGUMENTS = (0, 1, 2)


def arrays(num_queries=T, num_keys=T, dtype=jnp.float32):
    """Query, key and value, of grouped heads."""
    shapes = (num_queries, N), (num_keys, K), (num_keys, K)
    return [jnp.asarray(RNG.normal(size=(2, *shape, H)), dtype) for shape in shapes]


@pytest.fixture
def by_xla(monkeypatch):
    """XLA does what cuDNN would, if cuDNN is named."""
    monkeypatch.setitem(KERNELS["cudnn"], "cpu", {"kernels": "cudnn", "interpret": True})


@pytest.fixture
def on_hopper(monkeypatch):
    """As if the GPU were one, to JAX's checks; there is no other way to be asked as on one."""
    monkeypatch.setitem(KERNELS["cudnn"], "cpu", {"kernels": "cudnn", "interpret": False})
    monkeypatch.setitem(USUAL, "cpu", ("cudnn",))
    of_jax = "jax._src.cudnn.fused_attention_stablehlo."
    monkeypatch.setattr(of_jax + "check_cudnn_version", lambda: 91100)
    monkeypatch.setattr(of_jax + "check_compute_capability", lambda _: True)
    monkeypatch.setattr(of_jax + "is_cuda_compute_capability_equal", lambda _: False)


def loss_of(implementation, **options):
    """A loss that is not linear in the output."""

    def loss(*arrays):
        output = attn.dot_product_attention(*arrays, implementation=implementation, **options)
        return jnp.sum(jnp.sin(output.astype(jnp.float32)))

    return loss


def value_and_grad(loss, tangents):
    return jax.value_and_grad(loss, ARGUMENTS)


def jvp(loss, tangents):
    return lambda *arrays: jax.jvp(loss, arrays, tangents)


def forward_over_reverse(loss, tangents):
    return lambda *arrays: jax.jvp(jax.grad(loss, ARGUMENTS), arrays, tangents)


def reverse_over_forward(loss, tangents):
    return jax.grad(lambda *arrays: jax.jvp(loss, arrays, tangents)[1], ARGUMENTS)


def reverse_over_reverse(loss, tangents):
    def along(*arrays):
        gradients = jax.grad(loss, ARGUMENTS)(*arrays)
        return sum(jnp.vdot(x, dx) for x, dx in zip(gradients, tangents, strict=True))

    return jax.grad(along, ARGUMENTS)


def under_remat(loss, tangents):
    return jax.grad(jax.checkpoint(loss), ARGUMENTS)


def under_vmap_of_one(loss, tangents):
    gradient = jax.grad(loss, ARGUMENTS)

    def of_scales(query, key, value):
        return jax.vmap(lambda x: gradient(query, key * x, value))(jnp.array([1.0, 2.0, -1.0]))

    return of_scales


def under_two_vmaps(loss, tangents):
    gradient = jax.grad(lambda q, k, v, x: loss(q[None] * x, k[None], v[None] - x), ARGUMENTS)
    of_rows = jax.vmap(gradient, (0, 0, 0, None))
    return lambda *arrays: jax.vmap(of_rows, (None, None, None, 0))(*arrays, jnp.array([1.0, 2.0]))


TRANSFORMS = [
    value_and_grad,
    jvp,
    forward_over_reverse,
    reverse_over_forward,
    reverse_over_reverse,
    under_remat,
    under_vmap_of_one,
    under_two_vmaps,
]


@pytest.mark.usefixtures("by_xla")
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda x: x.__name__)
def test_it_is_right_under_every_transform(transform, name):
    given = arrays()
    tangents = tuple(jnp.cos(x) for x in given)
    found, expected = (
        jax.jit(transform(loss_of(implementation, **CALLS[name]), tangents))(*given)
        for implementation in ("cudnn", "reference")
    )
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=3e-5)


@pytest.mark.usefixtures("by_xla")
@pytest.mark.parametrize("lengths", [(7, 11), (8, 11), (7, 12), (1, 12), (1, 11), (4, 1)])
def test_queries_and_keys_of_other_lengths(lengths):
    given = arrays(*lengths)
    found, expected = (
        jax.jit(jax.value_and_grad(loss_of(x), ARGUMENTS))(*given) for x in ("cudnn", "reference")
    )
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


BEYOND = {
    "the last query": ((1, 11), {"is_causal": True, "alignment": "end"}),
    "the last query of a long window": ((1, 11), {"local_window_size": 11, "alignment": "end"}),
    "a window of all": ((8, 8), {"is_causal": True, "local_window_size": (7, 0)}),
    "a window of all, both ways": ((8, 5), {"local_window_size": (7, 4)}),
}
"""Masks that reach as far as there are keys."""


@pytest.mark.usefixtures("by_xla")
@pytest.mark.parametrize("name", BEYOND)
def test_what_a_mask_does_not_limit_is_no_limit(name):
    lengths, options = BEYOND[name]
    given = arrays(*lengths)
    found, expected = (
        jax.jit(jax.value_and_grad(loss_of(x, **options), ARGUMENTS))(*given)
        for x in ("cudnn", "reference")
    )
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("by_xla")
def test_what_it_limits_by_one_is():
    given, options = arrays(8, 8), {"local_window_size": (6, 0)}
    found, expected = (loss_of(x, **options)(*given) for x in ("cudnn", "reference"))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    with pytest.raises(ValueError, match=NO_BAND):
        loss_of("cudnn", local_window_size=(7, 3))(*arrays(8, 5))


@pytest.mark.usefixtures("by_xla")
def test_rows_of_a_batch_over_devices():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec("data")
    given = arrays()

    def gradient_by(implementation):
        def local(*arrays):
            return jax.grad(loss_of(implementation, is_causal=True), ARGUMENTS)(*arrays)

        return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec))(*given)

    for x, y in zip(gradient_by("cudnn"), gradient_by("reference"), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("by_xla")
def test_the_gradient_computes_no_log_sum_exp():
    gradient = jax.grad(loss_of("cudnn"))
    twice = jax.grad(lambda query, *rest: jnp.sum(gradient(query, *rest) ** 2))
    given = arrays(2000, 2000)
    loops = [
        jax.jit(f).lower(*given).compile().as_text().count(" while(") for f in (gradient, twice)
    ]
    assert loops[0] == 0
    assert loops[1] > 0


@pytest.mark.usefixtures("on_hopper")
@pytest.mark.parametrize("named", [None, "cudnn"])
@pytest.mark.parametrize(
    ("options", "window"), [({}, 0), ({"is_causal": True}, 0), ({"local_window_size": (16, 0)}, 17)]
)
def test_it_is_lowered_for_cuda(named, options, window):
    given = [jnp.zeros((2, 128, n, 64), jnp.bfloat16) for n in (4, 2, 2)]
    gradient = jax.jit(jax.value_and_grad(loss_of(named, **options), ARGUMENTS))
    text = gradient.trace(*given).lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaSoftmax(" in text
    assert "__cudnn$fmhaSoftmaxBackward(" in text
    assert set(re.findall(r"sliding_window_length\W+22: (\d+)", text)) == {str(window)}
    is_causal = "NO_MASK" not in text
    assert is_causal == bool(options)
    assert "while" not in text, "loops over tiles"


@pytest.mark.usefixtures("on_hopper")
@pytest.mark.parametrize("lengths", [(127, 128), (128, 127), (1, 255)])
def test_odd_lengths_are_lowered(lengths):
    given = [jax.ShapeDtypeStruct((2, n, 4, 64), jnp.bfloat16) for n in (*lengths, lengths[1])]
    loss = loss_of("cudnn")
    both = jax.jit(jax.value_and_grad(loss, ARGUMENTS)).trace(*given)
    forward, both = (
        x.lower(lowering_platforms=("cuda",)).as_text() for x in (jax.jit(loss).trace(*given), both)
    )
    assert "__cudnn$fmhaSoftmaxBackward(" in both
    assert ("PADDING" in both) == (lengths[1] % 2 == 1)
    if lengths[0] == 1:
        assert "stablehlo.pad" not in forward
        assert "PADDING" not in forward


@pytest.mark.usefixtures("on_hopper")
def test_a_program_that_xla_divides_runs_in_loops_over_tiles():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, PartitionSpec("data"))
    shape = jax.ShapeDtypeStruct((2, 128, 4, 64), jnp.bfloat16, sharding=sharding)
    traced = jax.jit(loss_of(None)).trace(shape, shape, shape)
    assert "cudnn" not in traced.lower(lowering_platforms=("cuda",)).as_text()
    traced = jax.jit(loss_of("cudnn")).trace(shape, shape, shape)
    with pytest.raises(Refused, match=r"XLA divides it over devices; call it in jax.shard_map"):
        traced.lower(lowering_platforms=("cuda",))


def test_without_cudnn_loops_over_tiles_run(monkeypatch):
    monkeypatch.setitem(KERNELS["cudnn"], "cpu", {"kernels": "cudnn", "interpret": False})
    monkeypatch.setitem(USUAL, "cpu", ("cudnn",))
    given = arrays(12, 12, dtype=jnp.bfloat16)
    expected = attn.dot_product_attention(*given, implementation="blockwise")
    np.testing.assert_array_equal(attn.dot_product_attention(*given), expected)
    # The latter where JAX for CUDA is installed, and has no device.
    with pytest.raises(Refused, match=r"cuDNN (is not detected|not found)"):
        attn.dot_product_attention(*given, implementation="cudnn")


NO_BAND = "its mask is neither causal nor a window of the past"
REFUSED = {
    "scale": ({"scale": 0.5}, "it asks for a scale"),
    "a scale that may move": ({"scale": jnp.float32(H**-0.5)}, "it asks for a scale"),
    "sinks": ({"sinks": jnp.zeros(N)}, "it asks for sinks"),
    "dropout": ({"dropout_rate": 0.5, "dropout_rng": jax.random.key(0)}, "it asks for dropout"),
    "residual": ({"return_residual": True}, "it asks for the log-sum-exp"),
    "more": ({"sinks": jnp.zeros(N), "scale": 2}, "it asks for a scale, sinks"),
    "bias": ({"bias": jnp.zeros((T, T))}, "it changes scores"),
    "score": ({"score": scores.SoftCap(5.0)}, "it changes scores"),
    "mask": ({"mask": masks.Segments(np.zeros((2, T), int))}, NO_BAND),
    "lengths": ({"key_value_seq_lengths": jnp.array([3, 4])}, NO_BAND),
    "ahead": ({"local_window_size": (4, 1)}, NO_BAND),
    "past": ({"mask": masks.Causal(offset=-1)}, NO_BAND),
    "traced": ({"mask": masks.Causal(offset=jnp.array(0))}, NO_BAND),
    "before itself alone": ({"mask": masks.Window(0, offset=1) & masks.Causal()}, NO_BAND),
    "or": ({"mask": masks.Causal() | masks.Window(left=1)}, NO_BAND),
}


@pytest.mark.usefixtures("by_xla")
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why_and_runs_where_nothing_is_named(name, monkeypatch):
    options, reason = REFUSED[name]
    given = arrays()
    with pytest.raises(ValueError, match=f"implementation is 'cudnn', and .*{reason}"):
        attn.dot_product_attention(*given, **options, implementation="cudnn")
    expected = attn.dot_product_attention(*given, **options, implementation="blockwise")
    monkeypatch.setitem(USUAL, "cpu", ("cudnn",))
    found = attn.dot_product_attention(*given, **options)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    ("shapes", "options", "reason"),
    [
        ({"dtype": "float32"}, {}, "it is of float32; products are of half precision"),
        ({"width": 60}, {}, "its heads are 60 wide, no multiple of 8 up to 128"),
        ({"width": 136}, {}, "its heads are 136 wide"),
        ({"value_width": 32}, {}, "its heads are 64 wide, its values 32"),
        ({"num_keys": 256}, {"is_causal": True}, "it is causal, 128 x 256"),
        ({}, {"scale": 0.1}, "it asks for a scale"),
        ({}, {"scale": 64**-0.5}, None),
        ({}, {}, None),
        ({"num_keys": 255}, {}, None),
        ({"num_keys": 256}, {}, None),
    ],
)
def test_explain_says_what_is_for_cudnn(shapes, options, reason):
    width, dtype = shapes.get("width", 64), shapes.get("dtype", "bfloat16")
    num_keys, value_width = shapes.get("num_keys", 128), shapes.get("value_width", width)
    given = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape in ((128, 4, width), (num_keys, 4, width), (num_keys, 4, value_width))
    ]
    found = attn.explain(*given, **options, platform="gpu")
    if reason is None:
        assert found.implementation == "cudnn"
        assert "it runs if it is named" in found.refused["blockwise"]
        attn.explain(*given, **options, platform="gpu", implementation="cudnn")
    else:
        assert found.implementation == "fused"
        assert reason in found.refused["cudnn"]
        with pytest.raises(ValueError, match=re.escape(reason)):
            attn.explain(*given, **options, platform="gpu", implementation="cudnn")


def test_it_is_for_gpu_alone():
    given = arrays(dtype=jnp.bfloat16)
    with pytest.raises(ValueError, match="its kernels are for gpu; this is cpu"):
        attn.dot_product_attention(*given, implementation="cudnn")
