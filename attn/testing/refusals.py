"""Laws of wrong input: it is refused, not answered with a number.

Any exception counts, as long as there is one.
"""

import functools

import jax
import numpy as np

from attn.testing.case import Case
from attn.testing.laws import law
from attn.testing.subject import Broken, Subject


@law()
def wrong_head_counts_are_refused(attend):
    """K must divide N, and values have as many heads as keys."""
    _check_refused(attend, Case(), key=(2, 13, 2, 5), value=(2, 13, 2, 5))
    _check_refused(attend, Case(), key=(2, 13, 6, 5), value=(2, 13, 6, 5))
    _check_refused(attend, Case(), value=(2, 13, 1, 5))
    _check_refused(attend, Case(), key=(2, 13, 1, 5))


@law()
def wrong_widths_are_refused(attend):
    """Query and key have the same head width; one of 1 does not stand for all."""
    _check_refused(attend, Case(), key=(2, 13, 3, 4))
    _check_refused(attend, Case(), key=(2, 13, 3, 1))


@law()
def wrong_lengths_are_refused(attend):
    """There is a value for every key; one value does not stand for all."""
    _check_refused(attend, Case(), value=(2, 12, 3, 5))
    _check_refused(attend, Case(), value=(2, 1, 3, 5))


@law()
def wrong_leading_axes_are_refused(attend):
    """Query, key and value have the same ones; a row of 1 does not stand for all."""
    _check_refused(attend, Case(), key=(3, 13, 3, 5), value=(3, 13, 3, 5))
    _check_refused(attend, Case(), key=(1, 13, 3, 5))


@law("bias")
def wrong_bias_is_refused(attend):
    """It must broadcast to [..., N, T, S], and not make the output larger."""
    for shape in ((2, 2, 13, 13), (2, 3, 13, 12), (5, 3, 13, 13)):
        _check_refused(attend, Case(bias=(2, 3, 13, 13)), bias=shape)


@law("mask")
def wrong_mask_is_refused(attend):
    """It must broadcast to [..., N, T, S], and not make the output larger."""
    for shape in ((2, 2, 13, 13), (2, 1, 13, 12), (5, 1, 13, 13)):
        _check_refused(attend, Case(mask="some"), mask=shape)


@law("key_value_seq_lengths")
def wrong_count_of_lengths_is_refused(attend):
    """There is a length for every row."""
    _check_refused(attend, Case(key_value_seq_lengths=(13, 7)), key_value_seq_lengths=(3,))


def _check_refused(attend: Subject, case: Case, **shapes: tuple[int, ...]) -> None:
    """Raises Broken if the function takes the case with other shapes of some arrays."""
    attend.check(case)
    inputs, arrays = ({**x} for x in (case.inputs(), case.arrays()))
    for name, shape in shapes.items():
        of_name = inputs if name in inputs else arrays
        of_name[name] = np.ones(shape, of_name[name].dtype)
    try:
        output = jax.eval_shape(functools.partial(attend.call, case), inputs, arrays)
    except Exception:
        return
    wrong = " and ".join(f"{name} of shape {shape}" for name, shape in shapes.items())
    shape = getattr(output, "shape", None)
    raise Broken(f"takes {wrong} beside query {inputs['query'].shape}; the output has {shape}")
