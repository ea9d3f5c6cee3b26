"""How far back answers depend, against the Jacobian of the decoder."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import probes
from experiments.models.decoder import build_decoder
from experiments.tasks import (
    Induction,
)
from tests.experiments.probed import (
    CONFIGS,
    INDUCTION,
    RECALL,
    draw_params,
    drawn,
    expected_spans,
    reach_of,
)

pytestmark = pytest.mark.usefixtures("quick_to_compile", "quick_keys")


@functools.cache
def build_jacobian(config, model):
    decoder = build_decoder(config.task, config.model_of(model))
    shape = (1, config.task.length, config.model_of(model).width)

    @jax.jit
    def jacobian(params, row):
        def true_answers(change):
            variables = {"params": params, "perturbations": {"embedded": change}}
            result = decoder.apply(variables, row.inputs[None], row.positions[None])[0]
            if config.task.num_classes is None:
                return result
            return jnp.stack([result[i, row.targets[i]] for i in range(len(result))])

        return jax.jacobian(true_answers)(jnp.zeros(shape))[:, 0]

    return jacobian


def norms_by_jacobian(config, model, params):
    """For each answer with a source: norms of the derivative by every embedded input."""
    jacobian, batch = build_jacobian(config, model), drawn(config)
    rows = [jax.tree.map(lambda x, i=i: x[i], batch) for i in range(len(batch.inputs))]
    by_row = [np.asarray(jacobian(params, row)) for row in rows]
    for row, answer, asked, places in expected_spans(config):
        yield answer, asked, places, np.linalg.norm(by_row[row][answer], axis=-1)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("recall", "attention"),
        ("text", "window"),
        ("induction", "gru"),
        ("copy", "attention"),
        ("adding", "gru"),
    ],
)
def test_reach_is_that_of_the_jacobian(name, model):
    config = CONFIGS[name]
    result = reach_of(config, model)
    for seed, which in ((1, "trained"), (2, "initial")):
        found = list(norms_by_jacobian(config, model, draw_params(config, model, seed)))
        columns = sorted({answer for answer, *_ in found})
        if len(columns) > probes.MAX_ANSWERS:  # evenly spaced
            assert name == "text"
            columns = [columns[i * 11 // 7] for i in range(8)]
        by_distance = [[] for _ in range(config.task.length)]
        on_source, uniform, totals = [], [], []
        for answer, asked, places, norms in found:
            if answer in columns:
                assert not norms[asked + 1 :].any()
                share = norms / norms.sum()
                totals.append(norms.sum())
                on_source.append(share[places].sum())
                uniform.append(len(places) / (asked + 1))
                for place in range(asked + 1):
                    by_distance[asked - place].append(share[place])
        means = [np.mean(shares) if shares else 0.0 for shares in by_distance]
        np.testing.assert_allclose(result[which]["by_distance"], means, rtol=2e-3, atol=1e-6)
        assert result[which]["share_at_source"] == pytest.approx(np.mean(on_source), rel=1e-3)
        assert result[which]["norm"] == pytest.approx(np.mean(totals), rel=1e-3)
        assert result[which]["uniform"] == pytest.approx(np.mean(uniform))
    assert json.loads(json.dumps(result)) == result


def test_shares_of_questions_at_one_place_sum_to_one():
    for which in ("initial", "trained"):
        assert sum(reach_of(INDUCTION, "gru")[which]["by_distance"]) == pytest.approx(1, abs=2e-3)


def test_nothing_reaches_beyond_a_window():
    config = dataclasses.replace(RECALL, task=Induction(length=12))
    spans = probes.spans_of(config, "window", drawn(config))
    reach_of_params = probes.gradient_reach(config, "window", drawn(config), spans)
    for seed in (1, 2):
        reach = np.array(reach_of_params(draw_params(config, "window", seed))["by_distance"])
        assert (reach[: config.model.window] > 0).all()
        assert not reach[config.model.window :].any()
