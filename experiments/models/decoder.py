"""The decoder that every mixer is tried in: embed, mix, answer.

    x_0 = embed(inputs) + position code
    x   = x + mixer(convolve(norm(x)))        once a layer
    x   = x + mlp(norm(x))                    once a layer, if there is one
    answer = norm(x)[positions] E^T           E the embedding itself where answers are tokens

Answers that are numbers have one output and no class axis, ``[B, A]``.

From x_0 to the last layer, x is in ``ModelConfig.dtype``, and so are its products with matrices.
Parameters are in float32, and what adds up over positions: the gradients of embedding, taps, scales
and biases. So are statistics of norms, and the answers: a logit of 10 in bfloat16 is off by up to
0.03. What else a mixer keeps in float32, it says itself.

The mixer is all that differs between the models of a comparison. Answers are computed only at the
positions that are asked: with a large vocabulary they are the dearest part of a step.

Letters: B rows, L positions, A answers, C classes, D model width, F features.
"""

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen
from jaxtyping import Array, Bool, Float, Int

from experiments.config import ModelConfig
from experiments.mesh import along_rows
from experiments.models import MIXERS
from experiments.models.mixer import FLOAT_BYTES
from experiments.models.positions import POSITIONS
from experiments.tasks import Task


class Decoder(linen.Module):
    """Rows and positions in, logits out; see the module docstring."""

    config: ModelConfig
    vocab_size: int | None
    """Tokens; None for real-valued inputs."""
    num_classes: int | None
    """Classes of an answer; None for answers that are numbers."""
    max_length: int
    """Rows of a learned position code."""

    @linen.compact
    def __call__(
        self,
        inputs: Int[Array, "B L"] | Float[Array, "B L F"],
        positions: Int[Array, "B A"],
        blocked: Bool[Array, "B L L"] | None = None,
    ) -> Float[Array, "B A C"] | Float[Array, "B A"]:
        """Returns the logits of the answers asked at ``positions``, or the numbers.

        The derivative by the embedded inputs is that by ``embedded``, ``[B, L, D]``, of a
        collection ``perturbations`` passed to ``apply`` with zeros in it.

        Args:
          inputs: tokens or real-valued inputs.
          positions: where an answer is asked.
          blocked: pairs of query and key that take no part in any layer's mixer; none if None.

        Raises:
          ValueError: if pairs are blocked and the mixer has none: it has no weights.
        """
        width = self.config.width
        mixer = MIXERS[self.config.mixer]
        if blocked is not None and not mixer.has_weights:
            raise ValueError(
                f"blocked is given and mixer is {self.config.mixer!r}; expected one with weights: "
                + ", ".join(name for name, module in MIXERS.items() if module.has_weights)
            )
        options = {} if blocked is None else {"blocked": blocked}
        if self.vocab_size is None:
            embed = None
            x = linen.Dense(width, name="embed")(inputs)
        else:
            embed = linen.Embed(self.vocab_size, width, name="embed")
            x = along_rows(
                lambda tokens, table: jnp.take(table, tokens, axis=0), inputs, embed.embedding
            )
        if not self.is_initializing():  # whose variables are to be the parameters alone
            x = self.perturb("embedded", x)
        position = POSITIONS[self.config.position]
        x = x + position.of_inputs(self, x.shape[-2], width, self.max_length)
        x = x.astype(self.config.dtype)
        for layer in range(self.config.num_layers):
            h = linen.RMSNorm(dtype=x.dtype, name=f"norm_{layer}")(x)
            if self.config.short_convolution:
                h = ShortConvolution(self.config.short_convolution, name=f"convolution_{layer}")(h)
            x = x + mixer(self.config, name=f"mixer_{layer}")(h, **options)
            if self.config.mlp_ratio:
                dense = functools.partial(linen.Dense, dtype=x.dtype, promote_dtype=all_but_bias)
                h = linen.RMSNorm(dtype=x.dtype, name=f"mlp_norm_{layer}")(x)
                h = linen.gelu(dense(self.config.mlp_ratio * width, name=f"mlp_in_{layer}")(h))
                x = x + dense(width, name=f"mlp_out_{layer}")(h).astype(x.dtype)
        asked = jnp.take_along_axis(x, positions[..., None], axis=-2)
        asked = linen.RMSNorm(name="norm_out")(asked)
        if self.num_classes is None:
            return linen.Dense(1, name="answer")(asked)[..., 0]
        if embed is not None and self.num_classes == self.vocab_size:
            return embed.attend(asked)
        return linen.Dense(self.num_classes, name="answer")(asked)


def all_but_bias(*operands: Any, dtype: Any = None, inexact: bool = True) -> list[Any]:
    """Returns input and kernel of a dense layer in ``dtype``, and its bias as it is.

    A bias's gradient is the sum over all positions of all rows: in bfloat16, where 256 + 1 is 256,
    it can come to half of what it should be.
    """
    del inexact  # of Flax's function, in whose place this is
    x, kernel, bias = operands
    return [x.astype(dtype), kernel.astype(dtype), bias]


class ShortConvolution(linen.Module):
    """Each feature's weighted sum over its last ``size`` positions: ``y_t = sum_i w_i x_{t-i}``.

    Begins as the identity, with random taps besides. Gives every position a look at what stood
    just before it, which is what recall needs first (Poli et al., arXiv 2302.10866, section 3;
    Arora et al., arXiv 2312.04927).
    """

    size: int

    @linen.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """Returns the convolved features, in the dtype of ``x``; O(B L D size) time.

        Products and sums are in float32 at least, here and in the gradient of the taps.
        """

        def identity_and_noise(rng, shape):
            return linen.initializers.normal(shape[0] ** -0.5)(rng, shape).at[0].add(1.0)

        taps = self.param("taps", identity_and_noise, (self.size, x.shape[-1]))

        def mix(padded, taps):
            length = padded.shape[-2] - self.size + 1
            mixed: Any = sum(
                taps[i] * padded[:, self.size - 1 - i : self.size - 1 - i + length]
                for i in range(self.size)
            )
            return mixed.astype(x.dtype)

        return along_rows(mix, x, taps, past=self.size - 1)


def build_decoder(task: Task, config: ModelConfig) -> Decoder:
    """Returns the decoder that reads the task's rows and gives its answers."""
    return Decoder(config, task.vocab_size, task.num_classes, task.length)


def receptive_field(config: ModelConfig) -> int | None:
    """Returns the farthest distance at which a token can change an answer; None if unbounded."""
    mixer = MIXERS[config.mixer]
    if mixer.is_blind:
        return 0
    reach = mixer.reach(config)
    if reach is None:
        return None
    return config.num_layers * (reach + max(config.short_convolution - 1, 0))


def state_bytes(config: ModelConfig, length: int) -> int:
    """Returns what the decoder keeps of ``length`` tokens to read on token by token, in float32.

    The states of all layers' mixers, and the tokens that the next output of each short
    convolution needs beside its own.
    """
    of_mixer = MIXERS[config.mixer].state_bytes(config, length)
    kept = min(max(config.short_convolution - 1, 0), length)
    return config.num_layers * (of_mixer + kept * config.width * FLOAT_BYTES)
