"""Programs that are compiled before they are measured."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def compiled(function: Callable, *arguments: Any) -> Callable[[], Any]:
    """Returns the call, compiled for its arguments."""
    program = jax.jit(function).lower(*arguments).compile()
    return lambda: program(*arguments)


def with_gradient(attend: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function's gradients in all its arguments, the output as its own cotangent."""

    def both(*inputs):
        output, pull_back = jax.vjp(attend, *inputs)
        return pull_back(output)

    return both


def derivatives(attend: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """Returns causal attention and its derivatives, each of query, key and value."""
    forward = functools.partial(attend, is_causal=True)

    def loss(*inputs):
        return jnp.sum(forward(*inputs) ** 2)

    gradient = jax.grad(loss, (0, 1, 2))

    def gradient_dot_inputs(*inputs):
        return sum(jnp.vdot(g, x) for g, x in zip(gradient(*inputs), inputs, strict=True))

    return {
        "forward": forward,
        "gradient": gradient,
        "jvp": lambda *inputs: jax.jvp(forward, inputs, inputs),
        "Hessian-vector": lambda *inputs: jax.jvp(gradient, inputs, inputs)[1],
        "grad-of-grad": jax.grad(gradient_dot_inputs, (0, 1, 2)),
    }


def temporary_bytes(function: Callable[..., Any], *inputs: Any) -> int:
    """Returns what the compiled function allocates beside its arguments and results.

    Inputs may be given by shape and dtype; nothing is run.
    """
    return jax.jit(function).lower(*inputs).compile().memory_analysis().temp_size_in_bytes
