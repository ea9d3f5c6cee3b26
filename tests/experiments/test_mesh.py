"""Training over a mesh: the numbers of one device, compiled once, cut where it is said."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from experiments.config import Config, ModelConfig, TrainConfig
from experiments.console import describe_mesh
from experiments.mesh import MeshConfig, build_mesh
from experiments.records import StageRecord
from experiments.runs import Run, fetch, places_for, stack_runs
from experiments.tasks import Recall
from experiments.traffic import traffic
from experiments.train import build_program, initial_state, train

pytestmark = pytest.mark.usefixtures("quick_to_compile")
CONFIG = Config(
    task=Recall(vocab_size=16, length=16, num_pairs=2),
    models=("attention,position=rotary,mlp_ratio=2", "window", "attention,position=alibi", "gru"),
    model=ModelConfig(width=8, num_layers=1, window=3),
    train=TrainConfig(steps=4, batch_size=4, steps_per_dispatch=2, checkpoint_every=2),
)
RUNS = (Run(3, 3e-3), Run(4, 1e-2))
MESHES = {
    "rows": MeshConfig(data=2),
    "tokens": MeshConfig(sequence=4),
    "heads": MeshConfig(model=2),
    "all": MeshConfig(data=2, sequence=2, model=2),
}


def program_on(shape, model):
    config = dataclasses.replace(CONFIG, mesh=shape)
    return config, build_program(config, model, places_for(shape, len(RUNS)), ())


@functools.cache
def trained(shape, model):
    """Losses of every dispatch, the states at the end, and the program."""
    config, program = program_on(shape, model)
    losses = []
    state = train(
        config,
        program,
        RUNS,
        initial_state(program, RUNS),
        (),
        record=lambda metrics: losses.append(metrics.loss[: len(RUNS)]),
        save=lambda state: None,
    )
    return np.array(losses), state, program


def assert_close(actual, expected):
    """To the rounding of float32, after steps of Adam, which knows only the sign of a gradient."""
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


FIRST, *OTHERS = CONFIG.models
SLOW = [*((name, FIRST) for name in MESHES if name != "all"), *(("all", x) for x in OTHERS)]


@pytest.mark.parametrize(
    ("name", "model"), [("all", FIRST), *(pytest.param(*x, marks=pytest.mark.slow) for x in SLOW)]
)
def test_a_run_on_a_mesh_is_that_on_one_device(name, model):
    losses, state, program = trained(MESHES[name], model)
    expected, alone, _ = trained(MeshConfig(), model)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert_close(fetch(state.params), fetch(alone.params))
    assert program.dispatch._cache_size() == 1, "compiled once"


MIXERS = ("ssd,num_heads=1", "delta_rule,num_heads=1", "long_convolution", "lstm")


@pytest.mark.slow
@pytest.mark.parametrize("model", MIXERS)
def test_mixers_that_do_not_attend_are_spread_over_rows(model):
    losses, _, _ = trained(MESHES["rows"], model)
    expected, _, _ = trained(MeshConfig(), model)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


def test_a_step_is_given_the_memory_of_the_state_before():
    _, _, program = trained(MESHES["all"], FIRST)
    state = initial_state(program, RUNS)
    program.dispatch(state, *stack_runs(RUNS, program.places), ())
    assert all(x.is_deleted() for x in jax.tree.leaves((state.params, state.opt_state)))


def test_parameters_and_their_moments_stand_where_they_are_used():
    _, state, _ = trained(MESHES["all"], FIRST)
    cut = {
        jax.tree_util.keystr(path): x.sharding.spec
        for path, x in jax.tree_util.tree_leaves_with_path(state)
        if "model" in x.sharding.spec
    }
    for name in ("query", "key", "value", "out", "mlp_in_0", "mlp_out_0", "embed"):
        found = [path for path in cut if f"'{name}'" in path and "bias" not in path]
        assert len(found) == 3, f"{name}: the parameter and two moments"


@pytest.mark.parametrize("tokens", [64, 256])
def test_no_device_gathers_what_others_hold_of_a_row(tokens):
    """What is gathered does not grow with the row: keys go round, and two tokens to the next."""
    config = dataclasses.replace(
        CONFIG, task=Recall(vocab_size=16, length=tokens, num_pairs=2), mesh=MESHES["tokens"]
    )
    places = places_for(config.mesh, 1)
    program = build_program(config, FIRST, places, ())
    arrays = program.stacked, *stack_runs(RUNS[:1], places), ()
    sent = traffic(program.dispatch.lower(*arrays).compile().as_text())
    row = tokens * config.model.width * 4
    gathered = sent.bytes["all-gather"] / max(sent.count["all-gather"], 1)
    assert gathered < row / 4
    assert sent.count["all-to-all"] == 0
    assert sent.count["collective-permute"] > 0


def test_a_checkpoint_is_restored_onto_another_mesh(tmp_path):
    _, state, _ = trained(MESHES["all"], FIRST)
    stage = StageRecord(tmp_path / "fresh", RUNS)
    stage.path.mkdir()
    stage.save(state)
    for shape in (MeshConfig(), MESHES["all"]):
        blank = initial_state(program_on(shape, FIRST)[1], RUNS)
        restored = stage.resume(blank)
        for new, like, old in zip(*map(jax.tree.leaves, (restored, blank, state)), strict=True):
            assert new.sharding == like.sharding
            np.testing.assert_array_equal(fetch(new)[: len(RUNS)], fetch(old)[: len(RUNS)])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (MeshConfig(data=3), r"mesh.data is 3; expected a divisor of train.batch_size: 4"),
        (MeshConfig(sequence=5), r"mesh.sequence is 5; expected a divisor of .*length.*: 16"),
        (MeshConfig(model=4), r"mesh.model is 4; expected a divisor of num_heads of attention: 2"),
    ],
)
def test_what_does_not_divide_is_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, mesh=shape)


def test_a_mesh_larger_than_the_machine_is_refused():
    with pytest.raises(ValueError, match=r"mesh is data 16 .*; expected at most the 8 devices"):
        places_for(MeshConfig(data=16), 1)


def test_a_mesh_is_no_part_of_what_is_computed():
    from experiments.config import from_dict, to_dict

    config = dataclasses.replace(CONFIG, mesh=MESHES["all"])
    assert to_dict(config) == to_dict(CONFIG)
    assert from_dict(to_dict(config)) == CONFIG


def test_what_the_mesh_cannot_cut_is_said():
    model = ModelConfig(width=12, num_heads=3, num_layers=1)
    config = dataclasses.replace(
        CONFIG, mesh=MeshConfig(model=3), models=CONFIG.models[:1], model=model
    )
    assert describe_mesh(config) == (
        "data 1 x sequence 1 x model 3 devices a run; model 3 divides no axis of these, whole on "
        "each: embed.embedding [16, 12]"
    )
    task = dataclasses.replace(config.task, vocab_size=18)
    config = dataclasses.replace(config, task=task)
    assert describe_mesh(config) == "data 1 x sequence 1 x model 3 devices a run"


def test_the_nearest_devices_are_along_the_axes_that_most_is_sent_along():
    mesh = build_mesh(MeshConfig(data=2, sequence=2, model=2), 1)
    places = np.vectorize(lambda x: x.id)(mesh.devices)
    steps = {name: np.unique(np.diff(places, axis=n)) for n, name in enumerate(mesh.axis_names)}
    assert {name: list(x) for name, x in steps.items()} == {
        "run": [],
        "sequence": [2],
        "data": [4],
        "model": [1],
    }


@pytest.mark.parametrize(("version", "runs"), [((0, 11, 2), 1), ((0, 10, 2), 2)])
def test_what_xla_cannot_compile_is_refused(version, runs, monkeypatch):
    """Two runs at a time, each cut along two axes: XLA of jax 0.11 ends the process."""
    monkeypatch.setattr(jax, "__version_info__", version)
    shape = MeshConfig(data=2, model=2)
    assert dict(build_mesh(shape, runs).shape) == {
        "run": runs,
        "sequence": 1,
        "data": 2,
        "model": 2,
    }
    if runs == 1:
        with pytest.raises(ValueError, match="a run along data and model, and 2 runs at a time"):
            build_mesh(shape, 2)
