"""Position codes: how a decoder may tell where a token stands.

A code acts at one of three places, by the methods that it overrides:

    x_0 = embed(inputs) + of_inputs      on what is embedded: for any mixer
    q, k turned by their positions       rotary, inside an attention mixer
    f(q . k / sqrt(H))                   of_scores, inside an attention mixer

A new one is a class here and a line of ``POSITIONS``. It belongs to a decoder's config alone: the
parameters that it makes are those of the module it is given.
"""

from typing import ClassVar

import jax.numpy as jnp
from flax import linen
from jaxtyping import Array, Float

import attn


class Position:
    """No code: what every other one departs from."""

    rotary: ClassVar[bool] = False
    """Whether queries and keys are turned."""
    needs_scores: ClassVar[bool] = False
    """Whether it acts inside a mixer, which must have scores (``Mixer.takes_scores``)."""
    knows_any_length: ClassVar[bool] = True
    """Whether it has a code for positions beyond the rows of training."""

    @staticmethod
    def divisor(num_heads: int) -> int:
        """Returns what the model width must be a multiple of."""
        return num_heads

    @staticmethod
    def of_inputs(
        module: linen.Module, length: int, width: int, max_length: int
    ) -> Float[Array, "L D"] | Float[Array, ""]:
        """Returns what is added to ``length`` embedded positions; 0 by default.

        Args:
          module: the decoder, for parameters.
          length: L.
          width: D.
          max_length: rows that a table of positions has.
        """
        del module, length, width, max_length
        return jnp.zeros(())

    @staticmethod
    def of_scores(module: linen.Module, num_heads: int) -> attn.scores.Score | None:
        """Returns the score function of ``num_heads`` heads; None by default.

        Args:
          module: the mixer, for parameters.
          num_heads: N.
        """
        del module, num_heads


class Learned(Position):
    """A row of a table for every position."""

    knows_any_length = False

    @staticmethod
    def of_inputs(module, length, width, max_length):
        """Returns the first ``length`` rows."""
        shape = (max_length, width)
        table = module.param("position", linen.initializers.normal(0.02), shape)
        return attn.positions.learned(table, length)


class Sinusoidal(Position):
    """Sines and cosines of falling frequencies, divided by sqrt(D), which is the embedding's scale.

    Vaswani et al., arXiv 1706.03762, section 3.4, multiply the embedding by sqrt(D) instead.
    """

    @staticmethod
    def divisor(num_heads):
        """Returns a number that makes the width even too."""
        return num_heads if num_heads % 2 == 0 else 2 * num_heads

    @staticmethod
    def of_inputs(module, length, width, max_length):
        """Returns ``attn.positions.sinusoidal``, scaled."""
        del module, max_length
        return attn.positions.sinusoidal(jnp.arange(length), width) / width**0.5


class Rotary(Position):
    """Queries and keys turned by angles in proportion to their positions (arXiv 2104.09864)."""

    rotary = True
    needs_scores = True

    @staticmethod
    def divisor(num_heads):
        """Returns a number that makes the width of a head even."""
        return 2 * num_heads


class ALiBi(Position):
    """A penalty in proportion to distance (Press et al., arXiv 2108.12409)."""

    needs_scores = True

    @staticmethod
    def of_scores(module, num_heads):
        """Returns the penalty, at the slopes of the paper."""
        del module
        return attn.scores.ALiBi(attn.positions.alibi_slopes(num_heads))


class Relative(Position):
    """T5's learned bias by range of distances (Raffel et al., arXiv 1910.10683)."""

    needs_scores = True

    @staticmethod
    def of_scores(module, num_heads):
        """Returns the bias: 32 ranges, the last of them from 128 tokens on."""
        init = linen.initializers.normal(0.02)
        table = module.param("relative", init, (32, num_heads), jnp.float32)
        return attn.scores.RelativeBias(table, bidirectional=False)


POSITIONS: dict[str, type[Position]] = {
    "none": Position,
    "learned": Learned,
    "sinusoidal": Sinusoidal,
    "rotary": Rotary,
    "alibi": ALiBi,
    "relative": Relative,
}
"""Name on the command line to code."""
