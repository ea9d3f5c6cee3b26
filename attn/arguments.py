"""What the caller meant: arguments checked before any computation, options turned into one mask.

Everything that can be wrong is found here and named: a ``ValueError`` says which argument has
which shape and which it should have, a ``TypeError`` the same of dtypes. What passes is correct
for every implementation, so none of them checks again.
"""

import functools
import numbers
import operator
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from attn import dropout
from attn.dtypes import accumulated
from attn.fields import broadcasts
from attn.indices import expand
from attn.masks import Dense, Lengths, Mask, Window
from attn.scores import Function, Score

Alignment = Literal["start", "end"]

FLOATS = ("float16", "bfloat16", "float32", "float64")
LAYOUT = {"query": "[..., T, N, H]", "key": "[..., S, K, H]", "value": "[..., S, K, V]"}


class Resolved(NamedTuple):
    """What every implementation takes beside query, key and value."""

    bias: Array | None
    mask: Mask | None
    scale: Array
    score: Score | None
    dropout_seed: Array | None = None
    dropout_rate: float = 0.0


def arrays(*, query: Any, key: Any, value: Any = None) -> tuple[Array, ...]:
    """Returns query, key and, if given, value as arrays that fit each other."""
    given = {"query": query, "key": key} | ({} if value is None else {"value": value})
    checked = {name: array(name, x) for name, x in given.items()}
    batch = checked["query"].shape[:-3]
    checked = {name: _beside_one_row(x, batch) for name, x in checked.items()}
    for name, x in checked.items():
        if x.ndim < 3:
            raise ValueError(f"{name} has shape {x.shape}; expected {LAYOUT[name]}")
        if 0 in x.shape[-3:]:
            raise ValueError(f"{name} has shape {x.shape}; {LAYOUT[name]} must all be at least 1")
        if x.dtype.name not in FLOATS:
            raise TypeError(f"{name} has dtype {x.dtype}; expected one of {', '.join(FLOATS)}")
    query, key = checked["query"], checked["key"]
    for name, x in checked.items():
        if x.dtype != query.dtype:
            raise TypeError(f"{name} has dtype {x.dtype}; expected {query.dtype}, as query has")
        if x.shape[:-3] != query.shape[:-3]:
            raise ValueError(
                f"{name} has shape {x.shape}; expected leading axes {query.shape[:-3]}, as query "
                f"of shape {query.shape} has"
            )
    if key.shape[-1] != query.shape[-1]:
        raise ValueError(
            f"key has shape {key.shape}; expected head width H = {query.shape[-1]}, as query of "
            f"shape {query.shape} has"
        )
    if query.shape[-2] % key.shape[-2]:
        raise ValueError(
            f"key has shape {key.shape}; expected a number of heads K that divides the N = "
            f"{query.shape[-2]} heads of query"
        )
    if value is not None and checked["value"].shape[:-1] != key.shape[:-1]:
        raise ValueError(
            f"value has shape {checked['value'].shape}; expected {(*key.shape[:-1], 'V')}, to go "
            f"with key of shape {key.shape}"
        )
    return tuple(checked.values())


def resolve(
    query: Array,
    key: Array,
    bias: Any,
    mask: Any,
    *,
    scale: Any = None,
    is_causal: bool = False,
    query_seq_lengths: Any = None,
    key_value_seq_lengths: Any = None,
    local_window_size: int | tuple[int, int] | None = None,
    alignment: Alignment = "start",
    score: Any = None,
    score_params: Any = None,
    **unknown: Any,
) -> Resolved:
    """Returns the options as implementations take them; the mask holds all that mask."""
    if unknown:
        expected = ", ".join(resolve.__kwdefaults__ or ())
        raise TypeError(f"{', '.join(sorted(unknown))} is no option; expected of {expected}")
    *batch, num_queries, num_heads, width = query.shape
    num_keys = key.shape[-3]
    pairs = (*batch, num_heads, num_queries, num_keys)

    check_choice("alignment", alignment, ("start", "end"))
    offset = num_keys - num_queries if alignment == "end" else 0
    masks: list[Mask] = []
    if isinstance(mask, Mask):
        mask.check(tuple(batch), num_heads, num_queries, num_keys)
        masks.append(mask)
    elif mask is not None:
        masks.append(Dense(_broadcastable("mask", mask, pairs, is_mask=True)))
    check_flag("is_causal", is_causal)
    if is_causal:
        masks.append(Window(right=0, offset=offset))
    if local_window_size is not None:
        left, right = _window(local_window_size)
        masks.append(Window(left, right, offset))
    if query_seq_lengths is not None or key_value_seq_lengths is not None:
        masks.append(
            Lengths(
                _lengths("query_seq_lengths", query_seq_lengths, tuple(batch)),
                _lengths("key_value_seq_lengths", key_value_seq_lengths, tuple(batch)),
            )
        )

    dtype = accumulated(query.dtype)
    return Resolved(
        bias=None if bias is None else _broadcastable("bias", bias, pairs, is_mask=False),
        mask=functools.reduce(operator.and_, masks) if masks else None,
        scale=_scale(scale, width, dtype),
        score=_score(score, score_params, tuple(batch), pairs[-3:], dtype),
    )


def sinks_of(sinks: Any, query: Array) -> Array:
    """Returns the logits of the sinks, broadcastable to ``[*B, T, N]``."""
    *batch, _, num_heads, _ = query.shape
    expected = (*batch, num_heads)
    x = array("sinks", sinks)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"sinks has dtype {x.dtype}; expected a floating one")
    if x.shape[-1:] != (num_heads,) or not broadcasts(x.shape, expected):
        raise ValueError(
            f"sinks has shape {x.shape}; expected {(num_heads,)}, a logit for every head, or one "
            f"broadcastable to {expected}"
        )
    return expand(x.astype(accumulated(query.dtype))[..., None, :], len(expected) + 1)


def check_choice(name: str, choice: Any, choices: Iterable[str]) -> None:
    """Raises ValueError unless ``choice`` is one of ``choices``."""
    if not isinstance(choice, str) or choice not in (choices := tuple(choices)):
        raise ValueError(f"{name} is {choice!r}; expected one of {', '.join(map(repr, choices))}")


def check_flag(name: str, x: Any) -> None:
    """Raises TypeError unless ``x`` is a bool."""
    if not isinstance(x, (bool, np.bool_)):
        raise TypeError(f"{name} is {x!r}; expected a bool")


def array(name: str, x: Any, expected: str = "an array") -> Array:
    """Returns ``x`` as an array, or raises TypeError or ValueError."""
    if not hasattr(x, "dtype") and not isinstance(x, (list, tuple, numbers.Number)):
        raise TypeError(f"{name} is a {type(x).__name__}; expected {expected}")
    _check_is_there(name, x, expected)
    try:
        return jnp.asarray(x)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name} is no array of numbers: {error}") from error


def _check_is_there(name: str, x: Any, expected: str) -> None:
    if isinstance(x, jax.ShapeDtypeStruct):
        raise TypeError(f"{name} is a ShapeDtypeStruct; expected {expected}")


def _beside_one_row(x: Array, batch: tuple[int, ...]) -> Array:
    """Returns ``x``; as jax.nn, one row is the same with and without its leading axis."""
    if batch == (1,) and x.ndim == 3:
        return x[None]
    return x[0] if batch == () and x.ndim == 4 and x.shape[0] == 1 else x


def _broadcastable(name: str, x: Any, pairs: tuple[int, ...], *, is_mask: bool) -> Array:
    x = array(name, x, "an array of booleans, or a value of attn.masks" if is_mask else "an array")
    if is_mask and x.dtype != bool:
        raise TypeError(
            f"mask has dtype {x.dtype}; expected bool, True where a query may attend (scores to "
            "add are a bias)"
        )
    if not is_mask and jnp.issubdtype(x.dtype, jnp.integer):
        x = x.astype(jnp.float32)
    if not is_mask and not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"bias has dtype {x.dtype}; expected a floating one")
    x = _beside_one_row(x, pairs[:-3])
    if not broadcasts(x.shape, pairs):
        raise ValueError(
            f"{name} has shape {x.shape}; expected one broadcastable to [..., N, T, S] = {pairs}"
        )
    return expand(x, len(pairs))


def _lengths(name: str, x: Any, batch: tuple[int, ...]) -> Array | None:
    if x is None:
        return None
    x = array(name, x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"{name} has dtype {x.dtype}; expected an integer one")
    if x.shape != batch and (batch or x.shape != (1,)):
        raise ValueError(f"{name} has shape {x.shape}; expected {batch}, the leading axes of query")
    return jnp.reshape(x, batch)


def _window(size: Any) -> tuple[int, int]:
    pair = size if isinstance(size, (tuple, list)) else (size, size)
    is_count = [isinstance(x, numbers.Integral) and not isinstance(x, bool) for x in pair]
    if len(pair) != 2 or not all(is_count) or min(pair) < 0:
        raise ValueError(f"local_window_size is {size!r}; expected an int of 0 or more, or two")
    return int(pair[0]), int(pair[1])


def _scale(scale: Any, width: int, dtype: Any) -> Array:
    if scale is None:
        return jnp.asarray(1 / np.sqrt(width), dtype)
    if not (hasattr(scale, "dtype") or isinstance(scale, numbers.Real)):
        raise TypeError(f"scale is {scale!r}; expected a real number")
    _check_is_there("scale", scale, "a real number")
    scale = jnp.asarray(scale)
    if not (jnp.issubdtype(scale.dtype, jnp.floating) or jnp.issubdtype(scale.dtype, jnp.integer)):
        raise TypeError(f"scale has dtype {scale.dtype}; expected a real one")
    if scale.ndim != 0:
        raise ValueError(f"scale has shape {scale.shape}; expected a single number")
    return scale.astype(dtype)


def _score(
    score: Any, params: Any, batch: tuple[int, ...], sizes: tuple[int, ...], dtype: Any
) -> Score | None:
    if not isinstance(score, Score):
        if params is not None and not callable(score):
            raise ValueError("score_params is given without a score function to take it")
        if score is None:
            return None
        if not callable(score) or isinstance(score, type):
            raise TypeError(
                f"score is a {type(score).__name__}; expected a value of attn.scores or a function "
                "(scores, indices, params)"
            )
        for x in jax.tree.leaves(params):
            _check_is_there("score_params", x, "arrays")
        score = Function(score, params)
    elif params is not None:
        raise ValueError(f"score_params is given, but score is {score!r}, which holds its own")
    num_heads, num_queries, num_keys = sizes
    score.check(batch, num_heads, num_queries, num_keys, dtype)
    return score


def rate_of(rate: Any) -> float:
    """Returns a rate of dropout, or raises TypeError or ValueError."""
    if not isinstance(rate, numbers.Real) or isinstance(rate, bool):
        raise TypeError(f"dropout_rate is a {type(rate).__name__}; expected a Python float")
    rate = float(rate)
    if not 0 <= rate < 1:
        raise ValueError(f"dropout_rate is {rate}; expected one in [0, 1)")
    return rate


def dropped(resolved: Resolved, rate: Any, rng: Any) -> Resolved:
    """Returns the options with dropout."""
    rate = rate_of(rate)
    if rate == 0:
        return resolved
    if rng is None:
        raise ValueError(f"dropout_rng is None; expected a random key, as dropout_rate is {rate}")
    if not hasattr(rng, "dtype"):
        raise TypeError(f"dropout_rng is a {type(rng).__name__}; expected a random key")
    _check_is_there("dropout_rng", rng, "a random key")
    wrong = f"dropout_rng has shape {rng.shape} and dtype {rng.dtype}; expected one random key"
    is_key = jnp.issubdtype(rng.dtype, jax.dtypes.prng_key)
    if rng.ndim != 0 if is_key else rng.dtype != jnp.uint32 or rng.ndim != 1:
        raise ValueError(wrong)
    try:
        seed = dropout.seed_of(rng)
    except TypeError:  # An old-style key of another length than the implementation's.
        raise ValueError(wrong) from None
    return resolved._replace(dropout_seed=seed, dropout_rate=rate)
