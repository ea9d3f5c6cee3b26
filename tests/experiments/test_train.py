"""The axis of runs: each run is what it would be alone, whatever the others do."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import experiments.train
from experiments.config import (
    Config,
    ModelConfig,
    OptimizerConfig,
    SweepConfig,
    TrainConfig,
)
from experiments.mesh import MeshConfig
from experiments.runs import Run, Status, each_run, places_for, stack_runs
from experiments.tasks import Adding, Induction, Recall, StringCopy
from experiments.train import build_program, initial_state, learning_rate_schedule, train

CONFIG = Config(
    task=Induction(length=8),
    models=("attention", "window"),
    model=ModelConfig(width=8, num_layers=1, num_heads=1, window=2),
    optimizer=OptimizerConfig(warmup_steps=2),
    sweep=SweepConfig(learning_rates=(1e-2,), seeds=1),
    train=TrainConfig(steps=12, batch_size=4, steps_per_dispatch=4, checkpoint_every=4),
)
RUNS = [Run(3, 1e-2), Run(4, 1e-3), Run(3, 3e-2)]

places = functools.partial(places_for, MeshConfig())


@functools.cache
def program_of(config, model, count):
    return build_program(config, model, places(count), ())


@pytest.mark.parametrize("steps", [1, 49, 50, 51, 200])
@pytest.mark.parametrize("warmup", [0, 50])
@pytest.mark.parametrize("decay", [0.0, 0.3, 1.0])
def test_rate_of_every_step_as_a_share_of_the_peak(steps, warmup, decay):
    schedule = learning_rate_schedule(OptimizerConfig(warmup, decay), steps)
    rates = np.array([schedule(step) for step in range(steps + 1)])
    assert np.isfinite(rates).all()
    assert (rates >= 0).all()
    assert rates.max() <= 1
    if steps > warmup:
        assert rates[warmup] == pytest.approx(1)
        assert (np.diff(rates[warmup:]) <= 0).all()
    rising = np.arange(min(steps, warmup)) / (warmup or 1)
    np.testing.assert_allclose(rates[: len(rising)], rising, rtol=1e-5)
    if steps > warmup:
        fall = min(max(round(decay * steps), 1), steps - warmup)
        falling = (1 + np.cos(np.pi * np.arange(fall + 1) / fall)) / 2
        np.testing.assert_allclose(rates[-fall - 1 :], falling, atol=1e-6)
        assert (rates[warmup:-fall] == 1).all()


def do(config, runs, count=None):
    """States, metrics and saved steps of runs that are trained together."""
    program = program_of(config, "attention", count or len(runs))
    recorded, saved = [], []
    state = train(
        config,
        program,
        runs,
        initial_state(program, runs),
        (),
        record=recorded.append,
        save=lambda state: saved.append((len(recorded), jax.device_get(state.step))),
    )
    return jax.tree.map(lambda x: np.asarray(x)[: len(runs)], state), recorded, saved


def assert_same(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b)


def of_run(state, i):
    return jax.tree.map(lambda x: x[i], state)


@pytest.fixture(scope="module")
def together():
    return do(CONFIG, RUNS)


@pytest.mark.parametrize("i", range(3))
def test_a_run_among_others_is_the_run_alone(together, i):
    alone, _, _ = do(CONFIG, RUNS[i : i + 1])
    assert_same(of_run(together[0], i), of_run(alone, 0))


def test_seeds_and_rates_make_runs_apart(together):
    kernels = [jax.tree.leaves(of_run(together[0], i).params)[0] for i in range(3)]
    for i in range(3):
        assert not np.array_equal(kernels[i], kernels[i - 1])


def test_places_without_a_run_do_nothing(together):
    filled, _, _ = do(CONFIG, RUNS, count=4)
    assert_same(filled, together[0])
    state = initial_state(program_of(CONFIG, "attention", 4), RUNS)
    assert state.status.tolist() == [Status.RUNNING] * 3 + [Status.FINISHED]


def test_a_run_that_diverges_stops_alone_with_the_state_before(together):
    runs = [RUNS[0], Run(3, 1e30), RUNS[2]]
    state, recorded, _ = do(CONFIG, runs)
    assert state.status.tolist() == [Status.FINISHED, Status.DIVERGED, Status.FINISHED]
    for i in (0, 2):
        assert_same(of_run(state, i), of_run(together[0], i))
    step = int(state.step[1])
    assert 0 < step < 12
    for leaf in jax.tree.leaves(of_run(state, 1)):
        assert np.isfinite(leaf).all()
    # The state is that of a run that goes step by step until the one that fails.
    one = dataclasses.replace(CONFIG.train, steps_per_dispatch=1, checkpoint_every=1)
    slowly, _, _ = do(dataclasses.replace(CONFIG, train=one), runs[1:2])
    assert_same(of_run(state, 1), of_run(slowly, 0))
    assert [int(m.step[1]) for m in recorded] == [min(step, at) for at in (4, 8, 12)]


def test_a_run_that_reaches_its_aim_stops_alone(together):
    accuracies = np.array([[m.accuracy[i] for m in together[1]] for i in range(3)])
    aim = max(float(np.sort(accuracies[:, 0])[1]), 1e-6)
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, stop_accuracy=aim))
    state, recorded, _ = do(config, RUNS)
    assert Status.REACHED in state.status
    for i in range(3):
        at = next((k for k in range(3) if accuracies[i, k] >= aim), None)
        if at is None:
            assert state.status[i] == Status.FINISHED
            assert_same(of_run(state, i).params, of_run(together[0], i).params)
        else:
            assert state.status[i] == Status.REACHED
            assert state.step[i] == 4 * (at + 1)
            for later in recorded[at + 1 :]:
                assert np.isnan(later.loss[i])
                assert later.step[i] == state.step[i]


def test_every_dispatch_is_recorded_before_the_state_that_holds_it_is_saved(together):
    _, recorded, saved = together
    steps = [[4] * 3, [8] * 3, [12] * 3]
    assert [m.step.tolist() for m in recorded] == steps
    assert [(count, at.tolist()) for count, at in saved] == list(zip((1, 2, 3), steps, strict=True))


def test_metrics_are_means_over_the_steps_of_a_dispatch(together):
    one = dataclasses.replace(CONFIG.train, steps_per_dispatch=1)
    _, steps, saved = do(dataclasses.replace(CONFIG, train=one), RUNS)
    assert [at.tolist() for _, at in saved] == [[4] * 3, [8] * 3, [12] * 3]
    for name in ("loss", "accuracy", "gradient_norm"):
        each = np.array([getattr(m, name) for m in steps]).reshape(3, 4, 3).mean(axis=1)
        means = np.array([getattr(m, name) for m in together[1]])
        np.testing.assert_allclose(means, each, rtol=1e-5)


def test_models_of_one_shape_start_from_the_same_parameters():
    attention, window = (
        initial_state(program_of(CONFIG, model, 1), RUNS[:1]).params for model in CONFIG.models
    )
    assert_same(attention, window)


def test_states_are_drawn_on_the_host(monkeypatch):
    *_, host = jax.devices()
    monkeypatch.setattr(experiments.train, "_host", lambda: host)
    drawn = program_of(CONFIG, "attention", 1).init(0)
    assert all(x.devices() == {host} for x in jax.tree.leaves(drawn))


def test_answers_that_were_not_asked_weigh_nothing():
    config = dataclasses.replace(CONFIG, task=StringCopy(max_characters=5))
    program = program_of(config, "attention", 1)
    state = initial_state(program, RUNS[:1])
    metrics = jax.device_get(program.dispatch(state, *stack_runs(RUNS[:1], places(1)), ())[1])
    assert 2 < metrics.loss[0] < 5, "near log 30 a letter, however few are asked"


def test_answers_that_are_numbers_are_learned_by_their_squared_error():
    _, recorded, _ = do(dataclasses.replace(CONFIG, task=Adding(length=8)), RUNS[:1])
    assert 0 < recorded[-1].loss[0] < 10
    assert 0 <= recorded[-1].accuracy[0] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_recall_is_learned_in_either_dtype(dtype):
    config = dataclasses.replace(
        CONFIG,
        task=Recall(vocab_size=32, length=16, num_pairs=3),
        model=ModelConfig(width=32, num_layers=1, num_heads=1, dtype=dtype),
        optimizer=OptimizerConfig(warmup_steps=20),
        train=TrainConfig(
            steps=400,
            batch_size=32,
            steps_per_dispatch=20,
            checkpoint_every=400,
            stop_accuracy=0.99,
        ),
    )
    state, _, _ = do(config, [Run(0, 1e-2), Run(1, 1e-2)])
    assert state.status.tolist() == [Status.REACHED] * 2
    for leaf in jax.tree.leaves((state.params, state.opt_state)):
        assert leaf.dtype in (np.float32, np.int32)


@pytest.mark.parametrize("together", [1, 2, 4])
def test_runs_at_once_are_runs_one_by_one(together):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 8, 3)).astype(np.float32)
    function = each_run(lambda x, y, z: jnp.sin(x) @ y + z, places(8), together=together)
    np.testing.assert_allclose(function(x, y, 2.0), np.sum(np.sin(x) * y, 1) + 2, rtol=1e-5)


@pytest.mark.parametrize(("counts", "expected"), [((1,), 1), ((3,), 3), ((5, 8), 8), ((9,), 16)])
def test_places_fill_the_devices_alike(counts, expected):
    assert len(jax.local_devices()) == 8, "as tests/conftest.py says"
    assert places(*counts).count == expected
    assert places(*counts).mesh.size == min(expected, 8)
