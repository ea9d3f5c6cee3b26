"""Laws of ``vmap``: over any argument and axis, it is the calls one by one."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from attn.testing.case import Case
from attn.testing.derivatives import ALL, GRADIENT, check_tree, rich, true_derivative
from attn.testing.laws import FLOAT32, check_close, law
from attn.testing.subject import Subject, jit

CALLS = 3
"""How many are mapped."""


@law()
def vmap_of_queries(attend):
    """Over any axis, keys and values the same for all."""
    _check_vmap(attend, Case(), {"query": 0}, {"query": 2}, {"query": -1})


@law()
def vmap_of_keys(attend):
    """Over any axis, queries and values the same for all."""
    _check_vmap(attend, Case(), {"key": 0}, {"key": 1}, {"key": -1})


@law()
def vmap_of_values(attend):
    """Over any axis, the weights the same for all."""
    _check_vmap(attend, Case(), {"value": 0}, {"value": 3}, {"value": -2})


@law()
def vmap_of_all(attend):
    """Over queries, keys and values together, each with its own axis."""
    _check_vmap(attend, rich(attend), {"query": 1, "key": 0, "value": 4})


@law("bias")
def vmap_of_bias(attend):
    """Over any axis, all else the same."""
    _check_vmap(attend, Case(bias=(2, 3, 13, 13)), {"bias": 0}, {"bias": -1})


@law("mask")
def vmap_of_masks(attend):
    """Over any axis, all else the same."""
    masks = [Case(mask=name) for name in ("some", "none", "some")]
    arrays = [case.arrays()["mask"] for case in masks]
    compiled = jit(jax.vmap(_of(attend, masks[0], "mask"), in_axes=(None, 1)))
    attend.check(masks[0])
    actual = jax.device_get(compiled(masks[0].inputs(), np.stack(arrays, 1)))
    for i in (0, 2):
        check_close("output", actual[i], masks[0].expected()[0], FLOAT32)
    seen = np.swapaxes(masks[1].allowed().any(-1), 1, 2)[..., None]
    expected = masks[1].expected(masks[0].inputs())[0]
    check_close("output", np.where(seen, actual[1], 0), expected, FLOAT32)


@law("key_value_seq_lengths")
def vmap_of_lengths(attend):
    """A tile that is empty for one call is not for the next."""
    lengths = [(13, 7), (1, 13), (4, 4)]
    case = Case(key_value_seq_lengths=lengths[0])
    attend.check(case)
    compiled = jit(jax.vmap(_of(attend, case, "key_value_seq_lengths"), in_axes=(None, 0)))
    actual = jax.device_get(compiled(case.inputs(), np.asarray(lengths, np.int32)))
    for x, of_call in zip(actual, lengths, strict=True):
        one = dataclasses.replace(case, key_value_seq_lengths=of_call)
        check_close("output", x, one.expected(case.inputs())[0], FLOAT32)


@law()
def vmap_of_gradient(attend):
    """The gradients of several calls at once."""
    case = Case()
    attend.check(case)
    calls = [case.inputs(str(i)) for i in range(CALLS)]

    def gradient(inputs):
        return GRADIENT.of(lambda x: attend.call(case, x, {}), inputs, {})

    found = jax.device_get(jit(jax.vmap(gradient))(_stacked(calls, dict.fromkeys(ALL, 0))))
    for i, inputs in enumerate(calls):
        expected = true_derivative(case, GRADIENT, inputs)
        check_tree("gradient", {name: x[i] for name, x in found.items()}, expected)


def _of(attend: Subject, case: Case, name: str) -> Callable:
    return lambda inputs, array: attend.call(case, inputs, {name: array})


def _stacked(calls: list[dict[str, np.ndarray]], axes: dict[str, int]) -> dict[str, np.ndarray]:
    """Returns the inputs of the first call, those with an axis stacked along it for all."""
    return {
        name: np.stack([call[name] for call in calls], axes[name]) if name in axes else x
        for name, x in calls[0].items()
    }


def _check_vmap(attend: Subject, case: Case, *choices: dict[str, int]) -> None:
    """Maps over each choice of inputs and axes, all in one compiled program."""
    attend.check(case)
    calls = [case.inputs(str(i)) for i in range(CALLS)]

    @jit
    def mapped(stacked):
        return [
            jax.vmap(
                functools.partial(attend.call, case, arrays={}),
                in_axes=({name: axes.get(name) for name in calls[0]},),
                out_axes=i,
            )(inputs)
            for i, (axes, inputs) in enumerate(zip(choices, stacked, strict=True))
        ]

    actual = jax.device_get(mapped([_stacked(calls, axes) for axes in choices]))
    for i, (axes, outputs) in enumerate(zip(choices, actual, strict=True)):
        for output, call in zip(np.moveaxis(outputs, i, 0), calls, strict=True):
            inputs = calls[0] | {name: call[name] for name in axes}
            check_close(f"output mapped over {axes}", output, case.expected(inputs)[0], FLOAT32)
