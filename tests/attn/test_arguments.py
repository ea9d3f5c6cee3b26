"""Wrong input is found before any computation, and named: what came, what was expected."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attn
from attn import masks
from attn.dot_product import IMPLEMENTATIONS


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


FITTING = {
    "query": zeros(2, 13, 6, 5),
    "key": zeros(2, 17, 3, 5),
    "value": zeros(2, 17, 3, 7),
}

WRONG_VALUES = {
    "query without heads": ({"query": zeros(13, 5)}, "query", "(13, 5)", "[..., T, N, H]"),
    "key without heads": ({"key": zeros(17, 5)}, "key", "(17, 5)", "[..., S, K, H]"),
    "value without heads": ({"value": zeros(17, 7)}, "value", "(17, 7)", "[..., S, K, V]"),
    "no queries": ({"query": zeros(2, 0, 6, 5)}, "query", "(2, 0, 6, 5)", "at least 1"),
    "no keys": (
        {"key": zeros(2, 0, 3, 5), "value": zeros(2, 0, 3, 7)},
        "key",
        "(2, 0, 3, 5)",
        "at least 1",
    ),
    "no width": ({"value": zeros(2, 17, 3, 0)}, "value", "(2, 17, 3, 0)", "at least 1"),
    "leading axes of key": (
        {"key": zeros(3, 17, 3, 5)},
        "key",
        "(3, 17, 3, 5)",
        "leading axes (2,)",
    ),
    "missing leading axis of key": (
        {"key": zeros(17, 3, 5)},
        "key",
        "(17, 3, 5)",
        "leading axes (2,)",
    ),
    "leading axes of value": (
        {"value": zeros(1, 17, 3, 7)},
        "value",
        "(1, 17, 3, 7)",
        "leading axes (2,)",
    ),
    "head width of key": ({"key": zeros(2, 17, 3, 4)}, "key", "(2, 17, 3, 4)", "H = 5"),
    "key heads that do not divide": (
        {"key": zeros(2, 17, 4, 5), "value": zeros(2, 17, 4, 7)},
        "key",
        "(2, 17, 4, 5)",
        "6 heads",
    ),
    "more key heads than query heads": (
        {"key": zeros(2, 17, 12, 5), "value": zeros(2, 17, 12, 7)},
        "key",
        "12",
        "6 heads",
    ),
    "value of other length": (
        {"value": zeros(2, 16, 3, 7)},
        "value",
        "(2, 16, 3, 7)",
        "(2, 17, 3, 'V')",
    ),
    "value of other heads": (
        {"value": zeros(2, 17, 6, 7)},
        "value",
        "(2, 17, 6, 7)",
        "(2, 17, 3, 'V')",
    ),
    "bias": ({"bias": zeros(6, 17, 13)}, "bias", "(6, 17, 13)", "(2, 6, 13, 17)"),
    "bias of key heads": ({"bias": zeros(3, 13, 17)}, "bias", "(3, 13, 17)", "(2, 6, 13, 17)"),
    "bias of too many axes": (
        {"bias": zeros(1, 2, 6, 13, 17)},
        "bias",
        "(1, 2, 6, 13, 17)",
        "(2, 6, 13, 17)",
    ),
    "mask": ({"mask": zeros(2, 13, 17, dtype=bool)}, "mask", "(2, 13, 17)", "(2, 6, 13, 17)"),
    "mask of too many axes": (
        {"mask": zeros(1, 1, 1, 1, 17, dtype=bool)},
        "mask",
        "(1, 1, 1, 1, 17)",
        "(2, 6, 13, 17)",
    ),
    "mask value of more queries": (
        {"mask": masks.Dense(zeros(14, 17, dtype=bool))},
        "mask",
        "(14, 17)",
        "(2, 6, 13, 17)",
    ),
    "mask value of fewer queries": (
        {"mask": masks.Dense(zeros(12, 17, dtype=bool))},
        "mask",
        "(12, 17)",
        "(2, 6, 13, 17)",
    ),
    "lengths in a mask value": (
        {"mask": masks.Causal() & masks.Lengths(key=zeros(3, dtype=int))},
        "mask",
        "(3,)",
        "(2,)",
    ),
    "query_seq_lengths": (
        {"query_seq_lengths": zeros(3, dtype=int)},
        "query_seq_lengths",
        "(3,)",
        "(2,)",
    ),
    "key_value_seq_lengths": (
        {"key_value_seq_lengths": zeros(2, 1, dtype=int)},
        "key_value_seq_lengths",
        "(2, 1)",
        "(2,)",
    ),
    "scale": ({"scale": zeros(6)}, "scale", "(6,)", "single number"),
    "negative window": ({"local_window_size": -1}, "local_window_size", "-1", "0 or more"),
    "negative side": ({"local_window_size": (2, -3)}, "local_window_size", "(2, -3)", "0 or more"),
    "window of three": ({"local_window_size": (1, 2, 3)}, "local_window_size", "(1, 2, 3)", "two"),
    "fraction of a window": ({"local_window_size": 1.5}, "local_window_size", "1.5", "int"),
    "alignment": ({"alignment": "left"}, "alignment", "'left'", "'start', 'end'"),
    "implementation": (
        {"implementation": "fast"},
        "implementation",
        "'fast'",
        "'blockwise', 'reference'",
    ),
}

WRONG_TYPES = {
    "no array": ({"query": None}, "query", "NoneType", "array"),
    "text": ({"key": "key"}, "key", "str", "array"),
    "integers": ({"query": zeros(2, 13, 6, 5, dtype=int)}, "query", "int", "float32"),
    "complex": ({"query": zeros(2, 13, 6, 5, dtype=complex)}, "query", "complex", "float32"),
    "dtype of key": ({"key": zeros(2, 17, 3, 5, dtype=np.float16)}, "key", "float16", "float32"),
    "dtype of value": (
        {"value": zeros(2, 17, 3, 7).astype(jnp.bfloat16)},
        "value",
        "bfloat16",
        "float32",
    ),
    "bias of booleans": ({"bias": zeros(13, 17, dtype=bool)}, "bias", "bool", "float"),
    "mask of floats": ({"mask": zeros(13, 17)}, "mask", "float32", "bool"),
    "mask of integers": ({"mask": zeros(13, 17, dtype=int)}, "mask", "int", "bool"),
    "mask that is a class": ({"mask": masks.Window}, "mask", "type", "array"),
    "mask value of floats": ({"mask": masks.Dense(zeros(13, 17))}, "mask", "float32", "bool"),
    "lengths of floats": (
        {"query_seq_lengths": zeros(2)},
        "query_seq_lengths",
        "float32",
        "integer",
    ),
    "lengths of booleans": (
        {"key_value_seq_lengths": zeros(2, dtype=bool)},
        "key_value_seq_lengths",
        "bool",
        "integer",
    ),
    "is_causal": ({"is_causal": 1}, "is_causal", "1", "bool"),
    "text as scale": ({"scale": "half"}, "scale", "half", "number"),
    "complex scale": ({"scale": 1j}, "scale", "1j", "number"),
}


@pytest.fixture
def _nothing_runs(monkeypatch):
    def run(*_):
        raise AssertionError("computed before the arguments were checked")

    for name in IMPLEMENTATIONS:
        monkeypatch.setitem(IMPLEMENTATIONS, name, run)


def assert_refused(function, error, wrong, name, came, expected):
    """The message begins with the argument and tells what came and what was expected."""
    with pytest.raises(error) as caught:
        function(**(FITTING | wrong))
    message = str(caught.value)
    assert message.startswith(f"{name} "), message
    assert came in message
    assert expected in message


@pytest.mark.usefixtures("_nothing_runs")
@pytest.mark.parametrize("wrong", WRONG_VALUES)
def test_wrong_value(wrong):
    assert_refused(attn.dot_product_attention, ValueError, *WRONG_VALUES[wrong])


@pytest.mark.usefixtures("_nothing_runs")
@pytest.mark.parametrize("wrong", WRONG_TYPES)
def test_wrong_type(wrong):
    assert_refused(attn.dot_product_attention, TypeError, *WRONG_TYPES[wrong])


@pytest.mark.parametrize("named", [name for name in IMPLEMENTATIONS if name != "cudnn"])
def test_implementation_that_is_named_runs_and_no_other(named, monkeypatch):

    def never(*_):
        raise AssertionError("not the one that was named")

    marked = IMPLEMENTATIONS[named]
    for name, function in IMPLEMENTATIONS.items():
        monkeypatch.setitem(IMPLEMENTATIONS, name, function if function is marked else never)
    attend = functools.partial(attn.dot_product_attention, implementation=named)
    assert jax.eval_shape(attend, **FITTING).shape == (2, 13, 6, 7)


@pytest.mark.parametrize("function", [attn.attention_scores, attn.attention_weights])
def test_maps_refuse_the_same(function):
    def of_query_and_key(value, **arguments):
        return function(**arguments)

    for wrong in ("head width of key", "bias", "mask", "query_seq_lengths", "alignment"):
        assert_refused(of_query_and_key, ValueError, *WRONG_VALUES[wrong])


@pytest.mark.usefixtures("_nothing_runs")
def test_wrong_value_is_refused_while_tracing():
    wrong = WRONG_VALUES["bias"]
    assert_refused(lambda **x: jax.eval_shape(attn.dot_product_attention, **x), ValueError, *wrong)


def test_a_function_may_be_wrapped():
    def of_positions(function):
        @functools.wraps(function)
        def wrapped(at):
            return function(at.query, at.key)

        return wrapped

    near = masks.Where(of_positions(lambda query, key: abs(query - key) < 3))
    assert attn.dot_product_attention(X, X, X, mask=near).shape == X.shape


def test_what_is_accepted():
    """Lists, NumPy's scalars, and lengths of one call without leading axes."""
    one = [[[1.0, 2.0]], [[3.0, 4.0]]]
    output = attn.dot_product_attention(
        one, one, one, key_value_seq_lengths=[1], is_causal=np.bool_(True), local_window_size=[1, 1]
    )
    np.testing.assert_allclose(output, [one[0], one[0]])


ROW = np.random.default_rng(0)
ONE_ROW = {
    "mask of four axes": ((13, 6, 5), (17, 3, 5), {"mask": ROW.random((1, 6, 13, 17)) < 0.5}),
    "bias of four axes": ((13, 6, 5), (17, 3, 5), {"bias": ROW.normal(size=(1, 1, 13, 17))}),
    "keys of four axes": ((13, 6, 5), (1, 17, 3, 5), {}),
    "keys of three axes": ((1, 13, 6, 5), (17, 3, 5), {}),
    "bias of integers": ((1, 13, 6, 5), (1, 17, 3, 5), {"bias": np.arange(17)[None, None, None]}),
}


@pytest.mark.parametrize("name", ONE_ROW)
def test_one_row_is_taken_as_jax_nn_takes_it(name):
    query_shape, key_shape, options = ONE_ROW[name]
    query, key = (np.float32(ROW.normal(size=shape)) for shape in (query_shape, key_shape))
    options = {name: x if x.dtype == bool else np.float32(x) for name, x in options.items()}
    expected = jax.nn.dot_product_attention(query, key, key, **options)
    if name == "bias of integers":
        options = {"bias": np.int32(options["bias"])}
    output = attn.dot_product_attention(query, key, key, **options)
    assert output.shape == expected.shape
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-6)


X = np.ones((5, 3, 4), np.float32)
STATE = attn.attend_partial(X, X, X)
OTHER_ERRORS = {
    "an option that is none": (lambda: attn.attend_partial(X, X, X, foo=1), "foo is no option"),
    "the same, explained": (lambda: attn.explain(X, X, X, foo=1), "foo is no option"),
    "a map's": (lambda: attn.attention_weights(X, X, sinks=1), "sinks is no option"),
    "no state": (lambda: attn.finish(tuple(STATE)), "state is a tuple; expected a state of"),
    "no second state": (lambda: attn.merge(STATE, 3), "b is a int; expected a state of"),
    "ragged": (lambda: attn.dot_product_attention([[1], [1, 2]], X, X), "query is no array of"),
    "text": (lambda: attn.dot_product_attention(X, np.array([[["a"]]]), X), "key is no array of"),
    "a mask by its name": (
        lambda: attn.dot_product_attention(X, X, X, mask="causal"),
        "mask is a str; expected an array of booleans, or a value of attn.masks",
    ),
    "a score of two": (
        lambda: attn.dot_product_attention(X, X, X, score=lambda s, at: s),
        "which takes (s, at); expected a function of (scores, indices, params)",
    ),
    "a mask of none": (
        lambda: attn.dot_product_attention(X, X, X, mask=masks.Where(lambda: True)),
        "which takes (); expected a function of (indices)",
    ),
    "a tile rule without params": (
        lambda: attn.dot_product_attention(
            X, X, X, mask=masks.Where(lambda at, p: at.query > p, 1, tile=lambda at: (False, False))
        ),
        "which takes (at); expected a function of (indices, params)",
    ),
    "no key of dropout": (
        lambda: attn.dot_product_attention(
            X, X, X, dropout_rate=0.5, dropout_rng=np.zeros(3, np.uint32)
        ),
        "dropout_rng has shape (3,) and dtype uint32; expected one random key",
    ),
}


@pytest.mark.parametrize("name", OTHER_ERRORS)
def test_what_else_is_wrong_is_named(name):
    call, words = OTHER_ERRORS[name]
    with pytest.raises((TypeError, ValueError), match=re.escape(words)):
        call()
