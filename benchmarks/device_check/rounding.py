"""Value, gradient, jvp and Hessian-vector product as they are rounded, against the dense formula.

What is exact is the dense formula in more precision than what is examined. The error allowed is
twice that of the dense formula in the same precision, as in the tests of FlashAttention; and a unit
or two in the last place of the largest number.

In float32 all is examined with products of float32. With those that JAX makes on a device if it is
asked for nothing, on a GPU of TF32, only value and gradient are, which kernels compute: beyond them
loops have the error of TF32, and of a number that is a sum of many that nearly cancel, such as a
derivative of second order of a parameter, that is as large as itself.
"""

import dataclasses
import functools
import itertools
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attn import masks, positions, scores
from attn.testing import oracle
from attn.testing.precision import ROUNDING
from attn.testing.subject import jit, summary
from benchmarks.device_check.check import Check, OutOfTime
from benchmarks.device_check.implementations import implementations
from benchmarks.device_check.workers import side_by_side

BATCH, HEADS, WIDTH, NUM_BUCKETS, NUM_DISTANCES = 2, 2, 64, 16, 100
SINGLE = "causal", "segments", "user's score", "relative bias"
"""Calls in float32."""
ROUNDING_OF_SINGLE = 1e-5
"""Of the largest number, in float32: where products are in two parts of bfloat16."""
KINDS = "value", "gradient", "jvp", "Hessian-vector"
"""Of what is compared."""
ROUNDINGS = {"bfloat16": ROUNDING, "float32": ROUNDING_OF_SINGLE}
EXACT = {"bfloat16": "float32", "float32": "float64"}
"""In which the dense formula is exact."""
EXAMINED = {
    "bfloat16": {"default": KINDS},
    "float32": {"default": KINDS[:2], "highest": KINDS},
}
"""What is compared, by the precision that products are asked for."""
ALONE = threading.Lock()
"""Held by what runs: XLA cannot capture cuDNN as a CUDA graph while other threads of the process
use the device."""


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of ours, and what says the same to the dense formula."""

    allowed: np.ndarray
    """Which pairs take part, broadcastable to ``[B, N, T, S]``."""
    arrays: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments of ours that hold arrays, without derivatives."""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Static arguments of ours."""
    shapes: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    """Of what is differentiated, where they are not as usual; ``score_params`` among them."""
    change: Callable | None = None
    """``(scores, score_params) -> scores``, for the dense formula."""
    padding: int = 0
    """Keys at the end that are NaN for ours."""


@functools.cache
def calls(length: int) -> dict[str, Call]:
    """Returns calls of that many queries, of every kind."""
    rng = np.random.default_rng(0)
    fewer = length * 7 // 8
    i, j = np.arange(length)[:, None], np.arange(length)
    buckets = positions.relative_buckets(j - i, NUM_BUCKETS)
    causal, everything = j <= i, np.ones((1, length), bool)
    ids = np.stack([j * 5 // length, j * 3 // length])
    lengths = np.array([length, fewer], np.int32)
    some = rng.random((BATCH, 1, length, length)) < 0.5
    few = causal & (i % 5 != 0)
    wide = {"query": (BATCH, length, HEADS, WIDTH), "key": (BATCH, fewer, HEADS, WIDTH)}
    grouped = (BATCH, length, 1, WIDTH)

    def decay(found, at, rate):
        return found - rate[at.head] * jnp.log1p(jnp.abs(at.query - at.key))

    def dense_decay(found, rate):
        distance = jnp.asarray(np.log1p(np.abs(i - j)), found.dtype)
        return found - rate[:, None, None] * distance

    def looked_up(found, at, table):
        distance = jnp.minimum(jnp.abs(at.key - at.query), NUM_DISTANCES - 1)
        return found + table[at.head, distance]

    def with_rules(found):
        return jax.nn.softplus(found) + jax.nn.relu(found)

    def with_operations(found):
        return jax.nn.gelu(found, approximate=False) + jnp.arcsinh(found) + jax.nn.elu(found)

    return {
        "causal": Call(causal, options={"is_causal": True}),
        "window": Call(causal & (i - j <= 50), {"mask": masks.Window(50, 0)}),
        "segments": Call(
            causal & (ids[:, None, :, None] == ids[:, None, None]),
            {"mask": masks.Causal() & masks.Segments(jnp.asarray(ids))},
        ),
        "lengths": Call(
            (i < lengths[:, None, None, None]) & (j < lengths[::-1, None, None, None]),
            {"query_seq_lengths": lengths, "key_value_seq_lengths": lengths[::-1].copy()},
        ),
        "dense mask": Call(some, {"mask": some}),
        "user's mask": Call(
            causal & ((i + j) % 3 != 0),
            {"mask": masks.Causal() & masks.Where(lambda at: (at.query + at.key) % 3 != 0)},
        ),
        "soft cap": Call(
            causal,
            options={"is_causal": True, "score": scores.SoftCap(2.0)},
            change=lambda found, _: 2 * jnp.tanh(found / 2),
        ),
        "user's score": Call(
            causal,
            options={"is_causal": True, "score": decay},
            shapes={"score_params": (HEADS,)},
            change=dense_decay,
        ),
        "relative bias": Call(
            causal,
            options={
                "is_causal": True,
                "score": lambda found, at, table: scores.RelativeBias(table)(found, at),
            },
            shapes={"score_params": (NUM_BUCKETS, HEADS)},
            change=lambda found, table: found + jnp.moveaxis(table[buckets], -1, 0),
        ),
        "table by distance": Call(
            causal,
            options={"is_causal": True, "score": looked_up},
            shapes={"score_params": (HEADS, NUM_DISTANCES)},
            change=lambda found, table: found + table[:, np.minimum(abs(i - j), NUM_DISTANCES - 1)],
        ),
        "rules of derivatives": Call(
            causal,
            options={"is_causal": True, "score": lambda found, at, _: with_rules(found)},
            change=lambda found, _: with_rules(found),
        ),
        "operations by others": Call(
            causal,
            options={"is_causal": True, "score": lambda found, at, _: with_operations(found)},
            change=lambda found, _: with_operations(found),
        ),
        "bias": Call(everything, shapes={"bias": (1, HEADS, length, length)}),
        "grouped queries": Call(
            causal, options={"is_causal": True}, shapes={"key": grouped, "value": grouped}
        ),
        "S != T, V != H": Call(
            np.ones((1, fewer), bool), shapes=wide | {"value": (BATCH, fewer, HEADS, 96)}
        ),
        "queries that see nothing": Call(
            few, {"mask": masks.Causal() & masks.Where(lambda at: at.query % 5 != 0)}
        ),
        "NaN in padding": Call(
            j < fewer,
            {"key_value_seq_lengths": np.full(BATCH, fewer, np.int32)},
            padding=length - fewer,
        ),
    }


def numbers(call: Call, length: int, dtype: str) -> list[dict[str, np.ndarray]]:
    """Returns all that is differentiated, and a tangent of it."""
    shapes = dict.fromkeys(("query", "key", "value"), (BATCH, length, HEADS, WIDTH)) | call.shapes
    return [
        {name: rng.normal(size=x).astype(jnp.dtype(dtype)) for name, x in shapes.items()}
        for rng in (np.random.default_rng(seed) for seed in (0, 1))
    ]


def derivatives(
    attend: Callable, inputs: Any, tangents: Any, kinds: tuple[str, ...]
) -> dict[str, Any]:
    """Returns the value and the derivatives of attention, those of one argument by its name."""

    def gradient(inputs):
        return jax.grad(lambda x: jnp.sum(jnp.sin(attend(x).astype(jnp.float32))))(inputs)

    functions = (
        lambda: attend(inputs),
        lambda: gradient(inputs),
        lambda: jax.jvp(attend, (inputs,), (tangents,))[1],
        lambda: jax.jvp(gradient, (inputs,), (tangents,))[1],
    )
    return {kind: f() for kind, f in zip(KINDS, functions, strict=True) if kind in kinds}


def expected(call: Call, length: int, dtype: str, precision: str) -> list[Any]:
    """Returns them by the dense formula, rounded and exact; compiled quickly."""
    kinds = EXAMINED[dtype][precision]

    def run(inputs, tangents, allowed):
        def attend(inputs):
            arrays = dict(inputs)
            params = arrays.pop("score_params", None)
            of_call = call.change
            change = None if of_call is None else lambda found: of_call(found, params)
            return oracle.dense(**arrays, allowed=allowed, change=change)[0]

        return derivatives(attend, inputs, tangents, kinds)

    def computed_in(of_arrays, precision):
        given = jax.tree.map(lambda x: x.astype(of_arrays), numbers(call, length, dtype))
        with jax.enable_x64(of_arrays == "float64"), jax.default_matmul_precision(precision):
            program = jit(run).lower(*given, call.allowed).compile()
            with ALONE:
                return jax.device_get(program(*given, call.allowed))

    of_rounded = precision if dtype == "float32" else "highest"
    return [computed_in(dtype, of_rounded), computed_in(EXACT[dtype], "highest")]


def our_derivatives(
    call: Call, attend: Callable, inputs: Any, tangents: Any, dtype: str, precision: str
) -> Any:
    """Returns them by an implementation."""
    kinds = EXAMINED[dtype][precision]

    def run(inputs, tangents, arrays):
        return derivatives(lambda x: attend(**x, **arrays, **call.options), inputs, tangents, kinds)

    if call.padding:
        inputs = dict(inputs)
        for name in ("key", "value"):
            inputs[name] = inputs[name].copy()
            inputs[name][:, -call.padding :] = np.nan
    with jax.default_matmul_precision(precision):
        program = jax.jit(run).lower(inputs, tangents, call.arrays).compile()
    with ALONE:
        return jax.device_get(program(inputs, tangents, call.arrays))


def excess(ours: Any, dense: Any, exact: Any, rounding: float) -> dict[str, float]:
    """Returns the greatest error of each derivative, in units of what is allowed."""

    def of_leaf(ours, dense, exact):
        ours, dense, exact = (np.asarray(x).astype(np.float64) for x in (ours, dense, exact))
        error, of_dense = np.max(np.abs(ours - exact)), np.nanmax(np.abs(dense - exact))
        allowed = 2 * of_dense + rounding * np.max(np.abs(exact))
        return np.inf if np.isnan(error) else 0.0 if error == 0 else float(error / allowed)

    of_leaves = jax.tree.map(of_leaf, ours, dense, exact)
    return {kind: max(jax.tree.leaves(x)) for kind, x in of_leaves.items()}


def bfloat16(check: Check) -> bool:
    """Returns whether no error in bfloat16 is greater than allowed, of the calls done in time."""
    return _is_rounded(check, "bfloat16", list(implementations("bfloat16")), None)


def float32(check: Check) -> bool:
    """Returns the same of some calls in float32, where nothing is named."""
    return _is_rounded(check, "float32", ["default"], SINGLE)


def examine(
    implementation: str, precision: str, name: str, length: int, dtype: str
) -> dict[str, float] | str:
    """Returns the errors of a call, or what it raised."""
    call, attend = calls(length)[name], implementations(dtype)[implementation]
    try:
        inputs, formula = numbers(call, length, dtype), _by_formula(name, length, dtype, precision)
        ours = our_derivatives(call, attend, *inputs, dtype, precision)
        return excess(ours, *formula, ROUNDINGS[dtype])
    except Exception as error:
        return summary(error)


@functools.cache
def _by_formula(name: str, length: int, dtype: str, precision: str) -> list[Any]:
    return expected(calls(length)[name], length, dtype, precision)


def _lost(*item_and_why: Any) -> str:
    """Returns what is known of a call whose worker was lost."""
    return item_and_why[-1]


def _is_rounded(
    check: Check, dtype: str, named: list[str], of_these: tuple[str, ...] | None
) -> bool:
    """Returns whether no error is greater than allowed."""
    length, wanted = check.sizes.ragged_length, check.sizes.calls
    wanted = of_these if wanted is None else wanted
    every = [name for name in calls(length) if wanted is None or name in wanted]
    results = check.found["errors"] = {implementation: {} for implementation in named}
    check.say(f"Errors, in units of those allowed: above 1 is wrong. T = {length}.")
    row = check.table("implementation", "precision of products", "call", *KINDS)
    failing, errors = [], []
    items = [
        (*of_call, length, dtype) for of_call in itertools.product(named, EXAMINED[dtype], every)
    ]
    examined = side_by_side(examine, items, check.until, _lost)
    for (implementation, precision, name, *_), found in zip(items, examined, strict=True):
        if found is None:
            continue
        results[implementation].setdefault(precision, {})[name] = found
        figures = {} if isinstance(found, str) else found
        cells = [f"{figures[kind]:.2f}" if kind in figures else "-" for kind in KINDS]
        row(implementation, precision, name, *(cells if figures else [found]))
        greatest = max(figures.values(), default=np.inf)
        errors.append(greatest)
        failing += [f"{implementation}: {name}, {precision}"] if greatest > 1 else []
    if not errors:
        raise OutOfTime
    total, names = len(items), f" ({'; '.join(failing)})" if failing else ""
    check.found["left"] = total - len(errors)
    check.found["summary"] = (
        f"{len(errors)} of {total} calls done, {len(failing)} fail{names}; the greatest error is "
        f"{max(errors):.2f} of what is allowed"
    )
    return not failing
