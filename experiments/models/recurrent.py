"""Recurrent networks as mixers: a state of fixed width, rewritten at every token.

GRU (Cho et al., arXiv 1406.1078), s the sigmoid, ``*`` elementwise:

    r = s(W_r x_t + U_r h_{t-1})        z = s(W_z x_t + U_z h_{t-1} + 1)
    n = tanh(W_n x_t + r * (U_n h_{t-1}))
    y_t = h_t = (1 - z) * n + z * h_{t-1}

LSTM (Hochreiter and Schmidhuber, 1997; with forget gates, Gers et al., 2000):

    i, o = s(W x_t + U h_{t-1}), a matrix pair each        g = tanh(W_g x_t + U_g h_{t-1})
    f = s(W_f x_t + U_f h_{t-1} + 1)
    c_t = f * c_{t-1} + i * g        y_t = h_t = o * tanh(c_t)

The 1 lets both begin by remembering (Jozefowicz et al., 2015, for LSTMs). These are Flax's cells,
biases included, scanned over positions one by one. The state has the width of the model; a GRU has
6 D^2 parameters and an LSTM 8 D^2 (and 4 D biases), to attention's 4 D^2. O(B L D^2) time, in L
steps that cannot overlap. Gates and state are in float32: in bfloat16 z and f, when above 0.998,
would be 1, and a state could not take in what is less than 1/512 of it. The cells' gradients of
biases are sums over a step's rows in the dtype of the inputs: in bfloat16, of 256 rows at most.
"""

from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from experiments.models.mixer import FLOAT_BYTES, Mixer, widened

if TYPE_CHECKING:
    from experiments.config import ModelConfig


def remembering(cell: type[linen.RNNCellBase], gate: str) -> Any:
    """Returns the cell with 1 added to the bias of the gate by which it remembers."""

    def add_one(variables: dict[str, Any]) -> dict[str, Any]:
        params = variables["params"]
        return {"params": {**params, gate: {**params[gate], "bias": params[gate]["bias"] + 1.0}}}

    return linen.map_variables(cell, "params", trans_in_fn=add_one, init=True)


class GRU(Mixer):
    """A gated recurrent unit, whose state is its output."""

    cell: ClassVar[Any] = remembering(linen.GRUCell, "iz")
    vectors: ClassVar[int] = 1
    """That make up its state."""

    @linen.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """Returns the state after each position."""
        cell = self.cell(
            self.config.width,
            gate_fn=lambda sums: linen.sigmoid(widened(sums)),
            recurrent_kernel_init=orthogonal,
            dtype=x.dtype,
            parent=None,
        )
        states: Any = linen.RNN(cell, name="steps")(x)
        return states.astype(x.dtype)

    @classmethod
    def state_bytes(cls, config: "ModelConfig", length: int) -> int:
        """Returns the bytes of the state: D numbers a vector, whatever the length."""
        del length
        return cls.vectors * config.width * FLOAT_BYTES


class LSTM(GRU):
    """A long short-term memory, whose state is its output and its cell."""

    cell = remembering(linen.OptimizedLSTMCell, "hf")
    vectors = 2


def orthogonal(
    rng: PRNGKeyArray, shape: tuple[int, int], dtype: DTypeLike = jnp.float32
) -> Float[Array, "D D"]:
    """Returns a random orthogonal matrix, each as likely: the polar factor of a Gaussian one.

    Flax's own start of a recurrent matrix finds it by a QR decomposition. On CPU several of these
    in one program, mapped over seeds, can wait for each other forever. This is products alone:
    ``X <- (3 X - X X^T X) / 2`` moves every singular value in (0, 1] to 1 (Bjorck and Bowie, 1971),
    a small one by a factor of 1.5 a step.
    """
    gaussian = jax.random.normal(rng, shape, dtype)

    def step(_, x):
        return 1.5 * x - 0.5 * x @ x.T @ x

    return jax.lax.fori_loop(0, 60, step, gaussian / jnp.linalg.norm(gaussian))
