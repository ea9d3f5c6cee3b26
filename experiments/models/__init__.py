"""The models: one decoder, and the mixers that can stand in it.

A new mixer is one file and one line of ``MIXERS``. A mixer is a linen module
``Mixer(config)`` from ``[B, L, D]`` to ``[B, L, D]`` that never looks ahead, with a static method
``reach(config)``: the farthest distance, in tokens, that one layer can see; None if unbounded.
"""

from experiments.models.attention import FullAttention, WindowedAttention

MIXERS = {"attention": FullAttention, "window": WindowedAttention}
"""Name on the command line to module; see the module docstring."""
