"""No mixing: an answer is a function of its own token."""

import dataclasses

import numpy as np

from tests.experiments.models.drawn import LENGTH, SMALL, draw_inputs, model


def test_the_same_token_has_the_same_answer_wherever_it_stands():
    config = dataclasses.replace(SMALL, mixer="none", short_convolution=0)
    params, apply, _ = model(config)
    assert "mixer_0" not in params
    tokens = draw_inputs(np.random.default_rng(1))
    order = np.random.default_rng(2).permutation(LENGTH)
    answers = np.asarray(apply(params, tokens))
    np.testing.assert_array_equal(apply(params, tokens[:, order]), answers[:, order])
