"""Laws of values: the formula, for every shape and option."""

import functools

import jax
import numpy as np

from attn.testing.case import FEATURES, Case
from attn.testing.laws import FLOAT32, check_close, check_shape, law
from attn.testing.subject import Broken, NotOffered, Subject, precision


def check_values(attend: Subject, case: Case) -> None:
    """Compares outputs with the oracle's, but those of queries that may attend to nothing."""
    seen = np.swapaxes(case.allowed().any(axis=-1), -1, -2)[..., None]
    expected = case.expected()[0]
    actual = check_shape("output", attend.run(case), expected.shape)
    check_close("output", np.where(seen, actual, 0), np.where(seen, expected, 0), FLOAT32)


@law()
def plain_call(attend):
    """softmax(Q K^T / sqrt(H)) V, for float32 and as many key heads as query heads."""
    try:
        check_values(attend, Case())
    except NotOffered as error:
        raise Broken(f"refuses a call with query, key and value alone: {error}") from error


@law()
def shape_and_dtype(attend):
    """The output has shape [..., T, N, V] and the dtype of the query."""
    for dtype in ("float32", "float16", "bfloat16", "float64"):
        case = Case(dtype=dtype)
        if dtype == "float32" or attend.offers(dtype):
            call = functools.partial(attend.call, case)
            with precision(case):
                output = jax.eval_shape(call, case.inputs(), case.arrays())
            if not hasattr(output, "dtype") or output.dtype != dtype:
                raise Broken(f"output of {dtype} is {output}")


@law("cross attention")
def more_keys_than_queries(attend):
    """T < S, both prime."""
    check_values(attend, Case(num_keys=17))


@law("cross attention")
def more_queries_than_keys(attend):
    """T > S, both prime."""
    check_values(attend, Case(num_queries=17))


@law("cross attention")
def one_query(attend):
    """T = 1."""
    check_values(attend, Case(num_queries=1))


@law("cross attention")
def one_key(attend):
    """S = 1: the output is the value."""
    check_values(attend, Case(num_keys=1))


@law()
def many_tiles(attend):
    """Lengths past the usual tile sizes, divisible by none of them."""
    num_keys = 523 if attend.offers("cross attention") else 389
    check_values(attend, Case(batch=(1,), num_queries=389, num_keys=num_keys))


@law("is_causal")
def many_causal_tiles(attend):
    """The same under a causal mask."""
    check_values(attend, Case(batch=(1,), num_queries=389, num_keys=389, is_causal=True))


@law("value width")
def wide_values(attend):
    """V may differ from H."""
    check_values(attend, Case(value_width=7))


@law("grouped queries")
def grouped_queries(attend):
    """Query heads n G to n G + G - 1 share key head n."""
    check_values(attend, Case(num_heads=6))


@law("grouped queries")
def one_key_head(attend):
    """All query heads share the one key head."""
    check_values(attend, Case(num_key_heads=1))


@law("no leading axes")
def no_leading_axes(attend):
    """[T, N, H] is a call too."""
    check_values(attend, Case(batch=()))


@law("two leading axes")
def two_leading_axes(attend):
    """So is [A, B, T, N, H]."""
    check_values(attend, FEATURES["two leading axes"])


@law("bias")
def bias(attend):
    """It is added to the scaled scores."""
    check_values(attend, Case(bias=(2, 3, 13, 13)))


@law("bias")
def bias_that_broadcasts(attend):
    """Axes of size 1 stand for all of B, and of T."""
    check_values(attend, Case(bias=(1, 3, 1, 13)))


@law("scale")
def scale(attend):
    """It takes the place of 1 / sqrt(H)."""
    check_values(attend, Case(scale=0.3))


@law("bias", "scale")
def bias_is_not_scaled(attend):
    """Scores are scale Q K^T + bias."""
    check_values(attend, Case(scale=0.3, bias=(2, 3, 13, 13)))


@law("mask")
def mask(attend):
    """True may attend, False may not."""
    check_values(attend, Case(mask="some"))


@law("mask")
def mask_of_each_head(attend):
    """It may differ from head to head."""
    check_values(attend, Case(mask="heads"))


@law("is_causal")
def causal(attend):
    """A query sees its own position and those before it."""
    check_values(attend, Case(is_causal=True))


@law("is_causal", "cross attention")
def causal_with_more_keys_than_queries(attend):
    """T < S: query 0 sees key 0 alone, as in ``jax.nn``."""
    check_values(attend, Case(num_keys=17, is_causal=True))


@law("local_window_size")
def window(attend):
    """A query sees w positions before its own and w after."""
    check_values(attend, Case(local_window_size=4))


@law("local_window_size")
def window_of_two(attend):
    """(left, right) positions before and after its own."""
    check_values(attend, Case(local_window_size=(5, 2)))


@law("local_window_size", "cross attention")
def window_of_more_keys_than_queries(attend):
    """T < S: query i stands at key i, as in ``jax.nn``."""
    check_values(attend, Case(num_keys=17, local_window_size=(5, 2)))


@law("local_window_size", "is_causal")
def window_and_causal(attend):
    """Both hold together."""
    check_values(attend, Case(local_window_size=(5, 2), is_causal=True))


@law("local_window_size", "key_value_seq_lengths")
def window_and_lengths(attend):
    """Both hold together."""
    check_values(attend, Case(local_window_size=(5, 2), key_value_seq_lengths=(13, 7)))


@law("key_value_seq_lengths")
def key_lengths(attend):
    """Keys at or past their row's length are not attended."""
    check_values(attend, FEATURES["key_value_seq_lengths"])


@law("query_seq_lengths")
def query_lengths(attend):
    """Queries before their row's length are as without it."""
    check_values(attend, FEATURES["query_seq_lengths"])


@law("is_causal", "key_value_seq_lengths")
def causal_and_lengths(attend):
    """All masks hold together."""
    check_values(attend, Case(is_causal=True, key_value_seq_lengths=(13, 7)))


@law("mask", "bias", "is_causal")
def mask_bias_and_causal(attend):
    """All masks hold together, and beside a bias."""
    check_values(attend, Case(mask="some", bias=(2, 3, 13, 13), is_causal=True))
