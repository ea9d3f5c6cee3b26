"""Values and derivatives of a function ``inputs -> (output, lse)``, by name, to be compared."""

import jax
import jax.numpy as jnp


def loss(outputs):
    """A nonlinear function of output and log-sum-exp, finite where the latter is -inf."""
    output, lse = outputs
    return jnp.sum(jnp.sin(output) * output) + jnp.sum(jnp.tanh(lse / 4))


def inner(a, b):
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def gradient(attention):
    """Returns a function that returns the gradient of the loss and, beside it, the outputs."""

    def loss_and_outputs(inputs):
        outputs = attention(inputs)
        return loss(outputs), outputs

    return jax.grad(loss_and_outputs, has_aux=True)


def first_order(attention, inputs, tangents=None):
    del tangents
    found, value = gradient(attention)(inputs)
    return {"value": value, "gradient": found}


def second_order(attention, inputs, tangents):
    """All of first order, the jvp, and the Hessian-vector product: forward over reverse."""
    (found, value), (hvp, jvp) = jax.jvp(gradient(attention), (inputs,), (tangents,))
    return {"value": value, "gradient": found, "jvp": jvp, "hvp": hvp}


def reversed_second_order(attention, inputs, tangents):
    """All of second order, and the Hessian-vector product twice more: reverse over either."""

    def slope_by_reverse(x):
        return inner(gradient(attention)(x)[0], tangents)

    def slope_by_forward(x):
        return jax.jvp(lambda y: loss(attention(y)), (x,), (tangents,))[1]

    return second_order(attention, inputs, tangents) | {
        "reverse over reverse": jax.grad(slope_by_reverse)(inputs),
        "reverse over forward": jax.grad(slope_by_forward)(inputs),
    }


LAWS = {1: first_order, 2: second_order, 3: reversed_second_order}
