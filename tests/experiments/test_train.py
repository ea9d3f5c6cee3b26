"""The learning rate rises, peaks and falls, however few the steps."""

import numpy as np
import pytest

from experiments.config import OptimizerConfig
from experiments.train import learning_rate_schedule


@pytest.mark.parametrize("steps", [1, 49, 50, 51, 200])
@pytest.mark.parametrize("warmup", [0, 50])
def test_rate_of_every_step(steps, warmup):
    schedule = learning_rate_schedule(OptimizerConfig(0.25, warmup), steps)
    rates = np.array([schedule(step) for step in range(steps)])
    assert np.isfinite(rates).all()
    assert (rates >= 0).all()
    assert rates.max() <= 0.25
    if steps > warmup:
        assert rates[warmup] == pytest.approx(0.25)
        assert (np.diff(rates[warmup:]) <= 0).all()
    rising = 0.25 * np.arange(min(steps, warmup)) / (warmup or 1)
    np.testing.assert_allclose(rates[:warmup], rising, rtol=1e-5)
