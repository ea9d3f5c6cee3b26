"""The conformance suite: a right function passes, a wrong one fails the law that it breaks."""

import ast
import functools
import pathlib
import subprocess
import sys
import unittest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attn
import attn.testing
from attn.testing import __main__ as command_line
from attn.testing import laws, oracle
from attn.testing.subject import Broken, quick_to_compile

STOP = jax.lax.stop_gradient


def dense(
    query,
    key,
    value,
    bias=None,
    mask=None,
    *,
    scale=None,
    is_causal=False,
    query_seq_lengths=None,
    key_value_seq_lengths=None,
    local_window_size=None,
    return_residual=False,
    # From here on: what mutants change.
    head_of=lambda n, group: n // group,
    default_scale=lambda width: width**-0.5,
    compute=lambda dtype: jnp.promote_types(dtype, jnp.float32),
    of_bias=lambda bias: bias,
    of_lse=lambda lse: lse,
    of_nothing=0.0,
    scales_bias=False,
    first_after=1,
    wider=0,
    softmax_axis=-1,
    cleans=True,
    checks=True,
    of_mask=lambda mask: mask,
    stands_at=lambda i, num_queries, num_keys: i,
    alone=(),
):
    """Attention, right in all but memory, and every way to break it."""
    if checks:
        check_shapes(query, key, value, bias, mask, key_value_seq_lengths)
    *batch, num_queries, num_heads, width = query.shape
    num_keys, num_key_heads = key.shape[-3:-1]
    dtype = compute(query.dtype)
    scale = default_scale(width) if scale is None else scale

    i, j = jnp.arange(num_queries)[:, None], jnp.arange(num_keys)
    allowed = jnp.ones((*batch, num_heads, num_queries, num_keys), bool)
    if local_window_size is not None:
        is_causal = is_causal and "window, not causal" not in alone
        key_value_seq_lengths = None if "window, no lengths" in alone else key_value_seq_lengths
    if mask is not None:
        allowed &= of_mask(mask)
    if is_causal:
        allowed &= j < i + first_after
    if local_window_size is not None:
        size = local_window_size
        left, right = size if isinstance(size, tuple) else (size, size)
        ahead = j - stands_at(i, num_queries, num_keys)
        allowed &= (ahead >= -left - wider) & (ahead <= right)
    if query_seq_lengths is not None:
        allowed &= (i < query_seq_lengths[..., None, None])[..., None, :, :]
    if key_value_seq_lengths is not None:
        allowed &= (j < key_value_seq_lengths[..., None, None])[..., None, :, :]

    if cleans:
        if cleans != "keys":
            asks = jnp.swapaxes(allowed.any(-1), -1, -2)[..., None]
            query = jnp.where(asks, query, 0)
        of_group = allowed.reshape(*batch, num_key_heads, -1, num_keys).any(-2)
        seen = jnp.swapaxes(of_group, -1, -2)[..., None]
        key, value = jnp.where(seen, key, 0), jnp.where(seen, value, 0)
    heads = head_of(np.arange(num_heads), num_heads // num_key_heads)
    key, value = (x[..., heads, :].astype(dtype) for x in (key, value))
    scores = jnp.einsum("...inh,...jnh->...nij", query.astype(dtype), key)
    if bias is not None and scales_bias:
        scores += bias
    scores *= scale
    if bias is not None and not scales_bias:
        scores += of_bias(bias)
    scores = scores.astype(dtype)
    some = allowed.any(softmax_axis, keepdims=True)
    largest = jnp.where(allowed, scores, -jnp.inf).max(softmax_axis, keepdims=True)
    largest = jax.lax.stop_gradient(jnp.where(some, largest, 0))
    weights = jnp.where(allowed, jnp.exp(jnp.where(allowed, scores - largest, 0)), 0)
    total = jnp.where(some, weights.sum(softmax_axis, keepdims=True), 1)
    weights = jnp.where(some, weights / total, of_nothing / num_keys)
    output = jnp.einsum("...nij,...jnv->...inv", weights, value).astype(query.dtype)
    lse = jnp.swapaxes(jnp.where(some, largest + jnp.log(total), -jnp.inf)[..., 0], -1, -2)
    return (output, of_lse(lse)) if return_residual else output


def check_shapes(query, key, value, bias, mask, lengths):
    *batch, num_queries, num_heads, width = query.shape
    *key_batch, num_keys, num_key_heads, key_width = key.shape
    pairs = (*batch, num_heads, num_queries, num_keys)
    fits = (
        key_batch == batch
        and value.shape[:-1] == key.shape[:-1]
        and key_width == width
        and num_heads % num_key_heads == 0
        and all(x is None or np.broadcast_shapes(x.shape, pairs) == pairs for x in (bias, mask))
        and (lengths is None or lengths.shape == tuple(batch))
    )
    if not fits:
        raise ValueError("shapes that do not fit")


def reverse_only(query, key, value):
    """A derivative rule of its own, as kernels have: no forward mode."""

    @jax.custom_vjp
    def attention(*inputs):
        return dense(*inputs)

    def backward(inputs, cotangent):
        return jax.vjp(dense, *inputs)[1](cotangent)

    attention.defvjp(lambda *inputs: (dense(*inputs), inputs), backward)
    return attention(query, key, value)


def without_second_derivatives(query, key, value):
    """The same, and its backward pass is not to be differentiated, but does not say so."""

    @jax.custom_vjp
    def attention(*inputs):
        return dense(*inputs)

    def backward(inputs, cotangent):
        return jax.vjp(dense, *map(STOP, inputs))[1](STOP(cotangent))

    attention.defvjp(lambda *inputs: (dense(*inputs), inputs), backward)
    return attention(query, key, value)


def with_a_wrong_rule(query, key, value):
    """A backward pass that forgets the scale in one of three."""

    @jax.custom_vjp
    def attention(*inputs):
        return dense(*inputs)

    def backward(inputs, cotangent):
        in_query, in_key, in_value = jax.vjp(dense, *inputs)[1](cotangent)
        return in_query, in_key * query.shape[-1] ** 0.5, in_value

    attention.defvjp(lambda *inputs: (dense(*inputs), inputs), backward)
    return attention(query, key, value)


def no_batching(query, key, value):
    """Asks for a shape that only an argument without vmap has."""
    if isinstance(query, jax.core.Tracer) and type(query).__name__ == "BatchTracer":
        raise NotImplementedError("no batching rule")
    return dense(query, key, value)


def first_tile_only(query, key, value):
    """Right up to 128 keys, as whoever never tested more would find."""
    return dense(query, key[..., :128, :, :], value[..., :128, :, :])


def with_mask_as_bias(query, key, value, mask=None):
    """Safe in its output only: NaN is replaced after it has been made."""
    scores = jnp.einsum("...inh,...jnh->...nij", query, key) * query.shape[-1] ** -0.5
    if mask is not None:
        scores += jnp.where(mask, 0, -jnp.inf)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    weights = jnp.nan_to_num(weights / weights.sum(-1, keepdims=True))
    return jnp.einsum("...nij,...jnv->...inv", weights, value)


def without_largest(query, key, value):
    scores = jnp.einsum("...inh,...jnh->...nij", query, key) * query.shape[-1] ** -0.5
    weights = jnp.exp(scores)
    return jnp.einsum("...nij,...jnv->...inv", weights / weights.sum(-1, keepdims=True), value)


def mutant(**changes):
    return functools.partial(dense, **changes)


MUTANTS = {
    "no scale": (mutant(default_scale=lambda width: 1.0), ["plain call"]),
    "bias is scaled too": (mutant(scales_bias=True), ["bias", "bias is not scaled"]),
    "softmax over queries": (mutant(softmax_axis=-2), ["plain call"]),
    "heads interleaved": (
        mutant(head_of=lambda n, group: n % (len(n) // group)),
        ["grouped queries", "grouped gradient"],
    ),
    "causal without itself": (mutant(first_after=0), ["causal", "no gradient into the future"]),
    "causal one too far": (mutant(first_after=2), ["causal", "no gradient into the future"]),
    "window one too wide": (mutant(wider=1), ["window", "window of two"]),
    "first tile only": (first_tile_only, ["many tiles", "gradient across tiles"]),
    "no gradient in the log-sum-exp": (
        mutant(of_lse=STOP),
        ["log sum exp gradient", "log sum exp jvp", "log sum exp second derivative"],
    ),
    "log-sum-exp in the layout of heads": (
        mutant(of_lse=lambda lse: jnp.swapaxes(lse, -1, -2)),
        ["log sum exp"],
    ),
    "log-sum-exp of base 2": (mutant(of_lse=lambda lse: lse / np.log(2)), ["log sum exp"]),
    "no gradient in the bias": (
        mutant(of_bias=STOP),
        ["bias gradient", "gradient of a two dimensional bias", "bias jvp"],
    ),
    "mean of values for nothing": (
        mutant(of_nothing=1.0, cleans=False),
        [
            "query that sees nothing is zero",
            "gradient through a query that sees nothing is zero",
            "row without keys is zero",
        ],
    ),
    "log-sum-exp of nothing is the least number": (
        mutant(of_lse=lambda lse: jnp.maximum(lse, -1e30)),
        ["log sum exp of nothing"],
    ),
    "float32 inside": (
        mutant(compute=lambda dtype: jnp.float32),
        [
            "float64 is computed in float64",
            "float64 gradient is computed in float64",
            "float64 log sum exp is computed in float64",
        ],
    ),
    "half precision inside": (
        mutant(compute=lambda dtype: dtype),
        ["float16 scores do not overflow", "log sum exp is in float32"],
    ),
    "NaN leaks": (
        mutant(cleans=False),
        [
            "masked nan reaches no output",
            "masked nan reaches no gradient",
            "nan past the length reaches no output",
            "nan past the length reaches no gradient",
            "nan past the last query reaches no gradient",
        ],
    ),
    "NaN comes back": (
        with_mask_as_bias,
        ["gradient is finite beside a query that sees nothing"],
    ),
    "softmax without its largest": (without_largest, ["large scores"]),
    "wrong rule": (
        with_a_wrong_rule,
        ["gradient", "gradient across tiles", "grouped gradient", "vmap of gradient"],
    ),
    "no forward mode": (reverse_only, ["jvp", "reverse over forward"]),
    "second derivatives are 0": (
        without_second_derivatives,
        ["forward over reverse", "reverse over reverse"],
    ),
    "no vmap": (no_batching, ["vmap of queries"]),
    "takes whatever broadcasts": (
        mutant(checks=False),
        ["wrong widths are refused", "wrong leading axes are refused"],
    ),
    "bias of the first head for all": (
        mutant(of_bias=lambda bias: bias[:, :1], checks=False),
        ["bias", "wrong bias is refused"],
    ),
    "mask of the first head for all": (
        mutant(of_mask=lambda mask: mask[:, :1]),
        ["mask of each head"],
    ),
    "window from the last key": (
        mutant(stands_at=lambda i, num_queries, num_keys: i + num_keys - num_queries),
        ["window of more keys than queries"],
    ),
    "window forgets the causal mask": (
        mutant(alone=("window, not causal",)),
        ["window and causal"],
    ),
    "window forgets lengths": (mutant(alone=("window, no lengths",)), ["window and lengths"]),
    "log-sum-exp of heads interleaved": (
        mutant(of_lse=lambda lse: lse[..., [0, 2, 4, 1, 3, 5]] if lse.shape[-1] == 6 else lse),
        ["log sum exp of grouped queries"],
    ),
    "log-sum-exp of another scale": (
        mutant(of_lse=lambda lse: lse * 1.01),
        ["log sum exp of scaled scores"],
    ),
    "log-sum-exp past the length": (
        mutant(of_lse=lambda lse: jnp.where(jnp.isneginf(lse), 0, lse)),
        ["log sum exp past the length"],
    ),
    "bias in float32": (
        mutant(of_bias=lambda bias: bias.astype(jnp.float32)),
        ["float64 bias is not rounded"],
    ),
    "NaN leaks from queries": (
        mutant(cleans="keys"),
        ["nan in a query past its length reaches nothing"],
    ),
    "quadratic memory": (
        dense,
        ["memory of output", "memory of gradient", "memory of hessian vector product"],
    ),
}


@pytest.mark.parametrize("law", attn.testing.LAWS)
def test_attn_keeps_every_law(law):
    attn.testing.run(law, attn.dot_product_attention)


DENSE_LAWS = [
    pytest.param(law, marks=() if law.group == "memory" else pytest.mark.slow)
    for law in attn.testing.LAWS
]


@pytest.mark.parametrize("law", DENSE_LAWS)
def test_a_right_dense_function_breaks_the_laws_of_memory_alone(law):
    [result] = attn.testing.check(dense, laws=[law.name]).results
    assert result.status == ("failed" if law.group == "memory" else "passed"), result.reason


CAUGHT = [
    pytest.param(name, law, marks=pytest.mark.slow if i else ())
    for name, (_, laws) in MUTANTS.items()
    for i, law in enumerate(laws)
]


@pytest.mark.parametrize(("name", "law"), CAUGHT)
def test_a_mutant_breaks_the_law_that_it_breaks(name, law):
    with pytest.raises(AssertionError, match=law):
        attn.testing.run(law, MUTANTS[name][0])


def plain(query, key, value):
    return dense(query, key, value)


SOME = ["plain call", "grouped queries", "bias", "log sum exp", "memory of output"]


def test_report():
    report = attn.testing.check(plain, laws=SOME)
    assert report.name == "plain"
    assert [result.status for result in report.results] == [
        *("passed", "passed", "not offered", "not offered", "failed")
    ]
    assert [len(x) for x in (report.passed, report.failed, report.not_offered)] == [2, 1, 2]
    assert not report.ok
    lines = str(report).splitlines()
    assert lines[0].startswith("plain: 2 passed, 1 failed, 2 not offered, ")
    assert "  passed       grouped queries" in lines
    assert any(line.endswith("bias: not in its signature") for line in lines)
    assert any("memory of output" in line and "4.0 times as much" in line for line in lines)
    with pytest.raises(AssertionError, match="memory of output"):
        report.raise_if_failed()
    attn.testing.check(plain, laws=["plain call"]).raise_if_failed()


def test_report_of_nothing_is_not_ok():
    report = attn.testing.check(plain, laws=["bias"])
    assert not report.failed
    assert not report.ok


def test_what_is_refused_is_not_offered():
    def square(query, key, value, bias=None):
        if query.shape != key.shape:
            raise NotImplementedError("query and key must have one shape")
        if bias is not None:
            raise ValueError("no bias on this platform")
        return dense(query, key, value)

    report = attn.testing.check(square, laws=["one query", "one key head", "bias", "plain call"])
    assert len(report.passed) == 1
    reasons = [result.reason for result in report.not_offered]
    assert [reason.partition(": ")[2] for reason in reasons] == [
        "NotImplementedError: query and key must have one shape",
        "NotImplementedError: query and key must have one shape",
        "ValueError: no bias on this platform",
    ]
    with pytest.raises(unittest.SkipTest, match="no bias"):
        attn.testing.run("bias", square)


def test_what_is_said_to_be_taken_may_not_be_refused():
    report = attn.testing.check(plain, takes=["bias"], laws=["bias", "mask"])
    assert [result.law.name for result in report.failed] == ["bias"]
    assert "refused: TypeError" in report.failed[0].reason
    assert report.not_offered[0].reason == "mask: not said to be taken"


def test_a_plain_call_may_not_be_refused():
    def refuses(query, key, value):
        raise ValueError("H must be a multiple of 128")

    report = attn.testing.check(refuses, laws=["plain call", "gradient"])
    assert [result.law.name for result in report.failed] == ["plain call"]
    assert "H must be a multiple of 128" in report.failed[0].reason


def test_an_error_that_is_no_refusal_is_a_failure():
    def breaks(query, key, value, bias=None):
        if bias is not None:
            raise RuntimeError("out of luck")
        return dense(query, key, value)

    report = attn.testing.check(breaks, laws=["bias"])
    assert report.failed[0].reason == "raises RuntimeError: out of luck"


@pytest.mark.parametrize("returned", [lambda x: x[:, :-1], lambda x: (x, x), lambda x: x * np.nan])
def test_what_is_no_output_at_all(returned):
    with pytest.raises(AssertionError, match=r"plain call: output"):
        attn.testing.run("plain call", lambda *inputs: returned(dense(*inputs)))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"laws are \['prose'\]; expected some of "):
        attn.testing.check(plain, laws=["prose"])
    with pytest.raises(ValueError, match=r"law is 'prose'; expected one of plain call, "):
        attn.testing.run("prose", plain)
    with pytest.raises(ValueError, match=r"takes \['prose'\]; expected some of bias, "):
        attn.testing.check(plain, takes=["prose"])
    with pytest.raises(ValueError, match=r"a law needs \['prose'\]; expected some of bias, "):
        attn.testing.law("prose")


def test_a_new_law_is_one_function(monkeypatch):
    registry = list(attn.testing.LAWS)
    monkeypatch.setattr(laws, "LAWS", registry)

    def my_law(attend):
        """Nothing is compiled in a hurry where a law would fail."""
        if quick_to_compile():
            raise Broken("compiled in a hurry")

    attn.testing.law("mask")(my_law)
    assert registry[-1].name == registry[-1].__name__ == str(registry[-1]) == "my law"
    assert registry[-1].statement.startswith("Nothing is compiled")
    attn.testing.run(registry[-1], dense)
    with pytest.raises(unittest.SkipTest):
        attn.testing.run(registry[-1], plain)
    with pytest.raises(ValueError, match="a name that no other law has"):
        attn.testing.law("mask")(my_law)


def test_oracles_by_hand():
    """Two keys with scores log 1 and log 3."""
    query, key = np.ones((1, 1, 1)), np.log([[[1.0]], [[3.0]]])
    value = np.array([[[2.0, 0.0]], [[6.0, 4.0]]])
    for attention in (oracle.attention, oracle.dense):
        output, lse = attention(query, key, value, allowed=np.ones((1, 1, 2), bool))
        np.testing.assert_allclose(output, [[[5, 3]]], rtol=1e-6)
        np.testing.assert_allclose(lse, [[np.log(4)]], rtol=1e-6)
        output, lse = attention(query, key, value, allowed=np.zeros((1, 1, 2), bool))
        assert np.all(np.asarray(output) == 0)
        assert np.all(np.isneginf(lse))


def test_nothing_of_the_library_is_used():
    """Or it would be compared with itself."""
    for path in pathlib.Path(attn.testing.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not node.module.startswith("attn") or "attn.testing" in node.module
            elif isinstance(node, ast.Import):
                assert not any(name.name.startswith("attn") for name in node.names)


def test_command_line(capsys):
    assert command_line.main(["jax.nn:dot_product_attention", "--laws", "plain call"]) == 0
    assert "jax.nn:dot_product_attention: 1 passed, 0 failed" in capsys.readouterr().out
    broken = ["jax.nn:dot_product_attention", "--laws", "float64 is computed in float64"]
    assert command_line.main(broken) == 1
    assert "output is off by " in capsys.readouterr().out
    takes_none = ["jax.nn:dot_product_attention", "--takes", "--laws", "bias", "plain call"]
    assert command_line.main(takes_none) == 0
    assert "bias: not said to be taken" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["", "jax.nn", "jax.nn:attention", "no.such.module:attention"])
def test_command_line_that_names_no_function(name, capsys):
    with pytest.raises(SystemExit) as exit_:
        command_line.main([name])
    assert exit_.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_module_lists_its_laws():
    command = [sys.executable, "-m", "attn.testing", "--list"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(attn.testing.LAWS)
    assert lines[0].startswith("values: plain call. ")
