"""A sequence spread over devices: the numbers of one, at every transform, by every method."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import attn
from attn import masks, scores, sharded
from attn.overrides import KERNELS
from attn.tiles import TileSizes
from experiments.traffic import traffic
from tests.attn.cases import assert_close, jit

B, T, N, K, H, V = 2, 80, 8, 4, 5, 3
RNG = np.random.default_rng(0)
ARRAYS = {
    "query": RNG.normal(size=(B, T, N, H)),
    "key": RNG.normal(size=(B, T, K, H)),
    "value": RNG.normal(size=(B, T, K, V)),
}
IDS = np.sort(RNG.integers(0, 5, (B, T)))
ROWS = RNG.normal(size=(B, N, T, T))

OPTIONS = {
    "plain": {},
    "causal": {"is_causal": True},
    "segments, window": {
        "mask": masks.Segments(IDS) & masks.Window(9, 2),
        "key_value_seq_lengths": np.array([80, 31]),
    },
    "near": {"mask": masks.Window(25, 0), "key_value_seq_lengths": np.array([80, 31])},
    "dense": {"mask": masks.Causal() | masks.Dense(ROWS > 1)},
    "functions": {
        "mask": masks.Where(lambda at: (at.query + at.key + at.head) % 3 != 0),
        "score": lambda score, at, slopes: (
            score * jnp.cos(slopes[at.head]) - slopes[at.head] * jnp.abs(at.query - at.key)
        ),
        "score_params": np.linspace(0.1, 1.0, N),
    },
    "scores, sinks": {
        "is_causal": True,
        "score": scores.Chain(scores.SoftCap(2.0), scores.ALiBi(np.linspace(0.1, 1.0, N))),
        "sinks": RNG.normal(size=N),
    },
    "dropout": {"dropout_rate": 0.3, "dropout_rng": jax.random.key(3)},
}
"""Of calls; what they hold is of the whole sequence."""
BIASES = {"none": None, "all": ROWS, "keys": ROWS[:1, :, :1], "one head": ROWS[:, :1]}
METHODS = [*itertools.product(("ring", "gather", "all_to_all"), ("contiguous", "zigzag"))]
EXCHANGED = [("ring", "exchanged"), ("gather", "exchanged")]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch, request):
    """A block is of several tiles, the last of them beyond its end."""
    if "memory" not in request.node.name:
        monkeypatch.setattr("attn.plan.tile_sizes", lambda *_: TileSizes(query=4, key=3))


def calls(names):
    """Returns what is tested of each method, most of it among the slow tests."""
    found = []
    for name, (method, placement) in itertools.product(names, METHODS + EXCHANGED):
        is_shown = method == "ring" or name in ("segments, window", "functions", "all")
        is_one = is_shown and (placement == "zigzag") == (method == "ring")
        is_one |= (method, placement, name) == ("ring", "contiguous", "near")
        is_one |= (placement, name) in (("exchanged", "segments, window"), ("exchanged", "all"))
        marks = () if is_one else pytest.mark.slow
        found.append(pytest.param(name, method, placement, marks=marks))
    return found


def mesh_of(size, kind=AxisType.Auto):
    return jax.make_mesh((size,), ("sequence",), axis_types=(kind,))


def spread(size, method, placement, **options):
    """Returns attention to the whole sequence by devices that have a share of it each."""
    is_zigzag = placement == "zigzag"
    rows = P(None, "sequence")

    def of_whole(query, key, value, bias):
        def of_device(query, key, value, bias):
            return sharded.dot_product_attention(
                query,
                key,
                value,
                bias,
                axis_name="sequence",
                method=method,
                placement=placement,
                return_residual=True,
                **options,
            )

        of_bias = P()
        if bias is not None and bias.shape[-2] > 1:
            of_bias = P(None, None, "sequence")
            bias = sharded.place(bias, size, -2) if is_zigzag else bias
        if is_zigzag:
            query, key, value = (sharded.place(x, size) for x in (query, key, value))
        output, lse = jax.shard_map(
            of_device,
            mesh=mesh_of(size),
            in_specs=(rows, rows, rows, of_bias),
            out_specs=(rows, rows),
        )(query, key, value, bias)
        if is_zigzag:
            output, lse = sharded.restore(output, size), sharded.restore(lse, size, -2)
        return output, lse

    return of_whole


def laws(attend, primals):
    """Returns value, gradient, Hessian-vector product and gradient of a gradient."""

    def loss(primals):
        output, lse = attend(*primals)
        return jnp.sum(jnp.sin(output)) + jnp.sum(jnp.tanh(lse))

    def squared(primals):
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(jax.grad(loss)(primals)))

    tangents = jax.tree.map(jnp.cos, primals)
    value = attend(*primals)
    return value, *jax.jvp(jax.grad(loss), (primals,), (tangents,)), jax.grad(squared)(primals)


@functools.cache
def expected(name, bias):
    attend = functools.partial(
        attn.dot_product_attention,
        implementation="reference",
        return_residual=True,
        **OPTIONS[name],
    )
    return jit(functools.partial(laws, attend))((*ARRAYS.values(), BIASES[bias]))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("name", "method", "placement"), calls(OPTIONS))
def test_shares_add_up_to_the_whole(name, method, placement):
    attend = spread(4, method, placement, **OPTIONS[name])
    found = jit(functools.partial(laws, attend))((*ARRAYS.values(), None))
    assert_close(found, expected(name, "none"), rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("hardware", "method", "placement", "name", "bias"),
    [
        *(("tpu", "ring", "zigzag", name, "none") for name in OPTIONS if name != "plain"),
        *(("gpu", "ring", "zigzag", name, "none") for name in ("segments, window", "functions")),
        *((hardware, "ring", "zigzag", "near", "all") for hardware in ("tpu", "gpu")),
        *(("tpu", "gather", "contiguous", name, "none") for name in ("near", "dense", "dropout")),
        *(("tpu", "all_to_all", "contiguous", name, "none") for name in ("functions", "dense")),
        ("gpu", "all_to_all", "zigzag", "dropout", "none"),
        ("gpu", "all_to_all", "zigzag", "near", "all"),
    ],
)
def test_kernels_add_up_to_the_whole(name, bias, hardware, method, placement, monkeypatch):
    # They take a part of an array of pairs where tiles fill the blocks.
    sides = TileSizes(query=5, key=5) if name == "dense" else TileSizes(query=4, key=3)
    monkeypatch.setattr("attn.kernels.OF_KERNELS", {hardware: sides})
    of_hardware = {"kernels": hardware, "interpret": True}
    monkeypatch.setitem(KERNELS["fused"], "cpu", of_hardware)
    attend = spread(4, method, placement, implementation="fused", **OPTIONS[name])
    found = jit(functools.partial(laws, attend))((*ARRAYS.values(), BIASES[bias]))
    assert_close(found, expected(name, bias), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("hardware", ["tpu", "gpu"])
@pytest.mark.parametrize("method", ["ring", "gather", "all_to_all"])
def test_the_gradient_of_a_table_of_distances_by_kernels(hardware, method, monkeypatch):
    # They are told apart where tiles fill the blocks.
    monkeypatch.setattr("attn.kernels.OF_KERNELS", {hardware: TileSizes(query=4, key=5)})
    of_hardware = {"kernels": hardware, "interpret": True}
    monkeypatch.setitem(KERNELS["fused"], "cpu", of_hardware)

    def gradient(implementation, attend, **options):
        def loss(table):
            output = attend(
                ARRAYS["query"], ARRAYS["key"], ARRAYS["value"],
                score=scores.RelativeBias(table), is_causal=True,
                implementation=implementation, **options,
            )  # fmt: skip
            return jnp.sum(jnp.sin(output))

        return jit(jax.grad(loss))(np.random.default_rng(0).normal(size=(8, N)))

    over = {"axis_name": "sequence", "mesh": mesh_of(4), "method": method}
    found = gradient("fused", sharded.dot_product_attention, **over)
    expected = gradient("reference", attn.dot_product_attention)
    assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("bias", "method", "placement"), calls(list(BIASES)[1:]))
def test_a_bias_is_the_rows_of_a_device(bias, method, placement):
    attend = spread(4, method, placement, **OPTIONS["causal"])
    found = jit(functools.partial(laws, attend))((*ARRAYS.values(), BIASES[bias]))
    assert_close(found, expected("causal", bias), rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("size", [2, 8])
@pytest.mark.parametrize(("method", "placement"), METHODS[1::2] + EXCHANGED[:1])
def test_any_number_of_devices(size, method, placement):
    """Of 8 devices two hold each of the 4 key heads for all_to_all."""
    name = "segments, window"
    attend = spread(size, method, placement, **OPTIONS[name])
    found = jit(functools.partial(laws, attend))((*ARRAYS.values(), None))
    assert_close(found, expected(name, "none"), rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "kind", [pytest.param(AxisType.Auto, marks=pytest.mark.slow), AxisType.Explicit]
)
@pytest.mark.parametrize("method", ["ring", "all_to_all"])
@pytest.mark.parametrize("name", ["functions", "dropout"])
def test_whole_arrays_on_a_mesh(name, method, kind):
    """The rows are cut over another axis, which the call leaves as it is."""
    mesh = jax.make_mesh((2, 4), ("data", "sequence"), axis_types=(kind,) * 2)
    attend = functools.partial(
        sharded.dot_product_attention,
        axis_name="sequence",
        mesh=mesh,
        method=method,
        return_residual=True,
        **OPTIONS[name],
    )
    cut = jax.NamedSharding(mesh, P("data", "sequence"))
    primals = (*(jax.device_put(x, cut) for x in ARRAYS.values()), None)
    output, lse = jit(attend)(*primals)
    assert output.sharding.is_equivalent_to(cut, output.ndim)
    assert lse.sharding.is_equivalent_to(cut, lse.ndim)
    found = jit(functools.partial(laws, attend))(primals)
    assert_close(found, expected(name, "none"), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"mask": masks.Window(0, 0)}, 0),
        ({"mask": masks.Window(20, 0)}, 2),
        ({"mask": masks.Window(21, 0) & masks.Segments(IDS)}, 3),
        ({"is_causal": True, "local_window_size": 21}, 3),
        ({"mask": masks.Window(1000, 0)}, 4),
        ({"mask": masks.Window(20, 1)}, 4),
        ({"mask": masks.Window(20, 0) | masks.Segments(IDS)}, 4),
        ({"mask": masks.Window(20, 0, offset=np.array([0, 1]))}, 4),
    ],
)
def test_keys_go_no_farther_than_a_window_asks(options, steps):
    """Of four devices with 20 tokens each; keys and values are sent once a step, if any go."""
    x = ARRAYS["query"].astype(np.float32)
    attend = jit(spread(4, "ring", "contiguous", **options))
    sent = traffic(attend.lower(x, x, x, None).compile().as_text())
    assert sent.count["collective-permute"] == 2 * steps


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("heads", [1, N])
def test_a_share_of_one_query_has_a_row_of_the_bias(heads):
    query, bias = ARRAYS["query"][:, :4], ROWS[:, :heads, :4]
    call = query, ARRAYS["key"], ARRAYS["value"], bias
    for method in ("ring", "gather", "all_to_all"):
        found = jit(spread(4, method, "contiguous"))(*call)
        expected = attn.dot_product_attention(*call, return_residual=True)
        assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_options_may_be_numbers_of_numpy():
    x = ARRAYS["query"].astype(np.float32)
    options = {"is_causal": np.True_, "local_window_size": np.int64(3), "scale": np.float32(0.3)}
    options |= {"dropout_rate": np.float64(0.3), "dropout_rng": jax.random.key(0)}
    over = {"axis_name": "sequence", "mesh": mesh_of(4)}
    found = sharded.dot_product_attention(x, x, x, **over, **options)
    expected = attn.dot_product_attention(x, x, x, **options)
    assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("explicit", ["data", "sequence"])
def test_a_mesh_whose_axes_are_of_two_kinds(explicit):
    names = ("data", "sequence")
    types = [AxisType.Explicit if name == explicit else AxisType.Auto for name in names]
    mesh = jax.make_mesh((2, 2), names, axis_types=tuple(types))
    spec = P(*(name if name == explicit else None for name in names))
    x = ARRAYS["query"].astype(np.float32)
    cut = jax.device_put(x, jax.NamedSharding(mesh, spec))
    options = {"axis_name": "sequence", "mesh": mesh, "is_causal": True}
    found = jit(functools.partial(sharded.dot_product_attention, **options))(cut, cut, cut)
    expected = attn.dot_product_attention(x, x, x, is_causal=True)
    assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("float64")
def test_under_vmap():
    """Over three sets of queries, the keys the same."""
    queries = RNG.normal(size=(3, B, T, N, H))
    _, *others = ARRAYS.values()
    shares = spread(4, "ring", "zigzag", is_causal=True)
    whole = functools.partial(
        attn.dot_product_attention, is_causal=True, implementation="reference", return_residual=True
    )
    found, expected = (
        jit(jax.vmap(lambda query, f=f: laws(f, (query, *others, None))))(queries)
        for f in (shares, whole)
    )
    assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_low_precision_is_that_of_one_device():
    x = [jnp.asarray(a, jnp.bfloat16) for a in ARRAYS.values()]
    attend = functools.partial(attn.dot_product_attention, is_causal=True, return_residual=True)
    output, lse = jit(lambda *x: spread(4, "ring", "contiguous", is_causal=True)(*x, None))(*x)
    assert output.dtype == jnp.bfloat16
    assert lse.dtype == jnp.float32
    assert_close((output, lse), jit(attend)(*x), rtol=1e-2, atol=1e-2)


def gradient(attend, *x):
    return jax.grad(lambda *y: jnp.sum(jnp.sin(attend(*y))), argnums=range(len(x)))(*x)


def compiled(derivative, method, num_tokens, size=4):
    mesh = mesh_of(size)
    cut = jax.NamedSharding(mesh, P(None, "sequence"))
    x = jax.ShapeDtypeStruct((1, num_tokens, 4, 16), jnp.float32, sharding=cut)
    attend = functools.partial(
        sharded.dot_product_attention,
        axis_name="sequence",
        mesh=mesh,
        method=method,
        is_causal=True,
    )
    return jax.jit(functools.partial(derivative, attend)).lower(x, x, x).compile()


@pytest.mark.parametrize("method", ["ring", "gather", "all_to_all"])
def test_memory_is_linear_and_keys_move_as_said(method):
    few, many = (compiled(gradient, method, n) for n in (4096, 8192))
    few_bytes, many_bytes = (x.memory_analysis().temp_size_in_bytes for x in (few, many))
    assert many_bytes < 2.4 * few_bytes
    moves = {
        "ring": {"collective-permute"},
        "gather": {"all-gather", "reduce-scatter"},
        "all_to_all": {"all-to-all"},
    }
    text = few.as_text()
    for name in set.union(*moves.values(), {"all-reduce"}):
        assert (f" {name}(" in text or f" {name}-start(" in text) == (name in moves[method]), name


def hessian_vector(attend, *x):
    return jax.jvp(lambda *x: gradient(attend, *x), x, x)[1]


@pytest.mark.parametrize(
    "derivative", [gradient, pytest.param(hessian_vector, marks=pytest.mark.slow)]
)
def test_memory_is_that_of_a_share(derivative):
    """Half of what twice the devices save, four times save; what is left is that of tiles."""
    two, four, eight = (
        compiled(derivative, "ring", 8192, size).memory_analysis().temp_size_in_bytes
        for size in (2, 4, 8)
    )
    assert two - four == pytest.approx(2 * (four - eight), rel=0.1)
    assert four - eight > 8192 * 4 * 16 * 4 / 8, "an array, at least"


def test_a_zig_zag_gives_every_device_the_same_work():
    """Of a causal map of 2 n blocks a side, n devices and n steps: so many pairs of blocks each."""
    size = 4
    order = np.asarray(sharded.place(np.arange(2 * size), size, axis=0)).reshape(size, 2)
    work = [
        [np.sum(queries[:, None] >= keys) for keys in (order[(d - k) % size] for k in range(size))]
        for d, queries in enumerate(order)
    ]
    assert np.ptp(work, axis=0).tolist() == [0] * size
    x = np.arange(24).reshape(2, 12)
    np.testing.assert_array_equal(sharded.restore(sharded.place(x, 3, 1), 3, 1), x)
