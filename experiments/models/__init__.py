"""The models: one decoder, and the mixers that can stand in it.

A new mixer is one file and one line of ``MIXERS``. A mixer is a linen module ``Mixer(config)`` from
``[B, L, D]`` to ``[B, L, D]`` that never looks ahead and keeps the dtype, with two static methods:

- ``reach(config)``: the farthest distance, in tokens, that one layer can see; None if unbounded;
- ``state_bytes(config, length)``: what one layer keeps of a row of ``length`` tokens to go on
  reading it token by token, in float32 (keys and values, or a recurrent state).

A mixer that has attention weights says so with ``has_weights = True``. It sows them
``[B, N, L, L]`` as ``weights`` where intermediates are collected, and takes
``blocked``, a bool ``[B, L, L]``: pairs of query and key that must not take part.
A mixer for which the position codes that act on scores mean something says ``takes_scores = True``;
the config refuses them for any other. The codes are those of ``experiments.models.positions``.
"""

from experiments.models.attention import FullAttention, WindowedAttention
from experiments.models.delta_rule import DeltaRule
from experiments.models.long_convolution import LongConvolution
from experiments.models.none import NoMixing
from experiments.models.positions import POSITIONS
from experiments.models.recurrent import GRU, LSTM
from experiments.models.state_space import SSD

MIXERS = {
    "attention": FullAttention,
    "window": WindowedAttention,
    "none": NoMixing,
    "gru": GRU,
    "lstm": LSTM,
    "long_convolution": LongConvolution,
    "ssd": SSD,
    "delta_rule": DeltaRule,
}
"""Name on the command line to module; see the module docstring."""

__all__ = ["MIXERS", "POSITIONS"]
