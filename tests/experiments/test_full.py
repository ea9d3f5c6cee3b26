"""The settings of papers: that they run, cut down, and that their real step compiles for a TPU."""

import dataclasses
import io

import pytest
from rich.console import Console

import experiments.run
from experiments.config import SweepConfig
from experiments.models import MIXERS
from experiments.records import RunFolder
from tests.compilers import ROOT, needs_tpu_compiler, run_python

FULL = sorted((ROOT / "configs" / "full").glob("*.py"))


def first_model(path):
    """The first model of a config, of one layer: more are compiled like it."""
    (config,) = experiments.run.parse(path, []).values()
    layers = "" if "num_layers" in config.models[0] else ",num_layers=1"
    return f"{config.models[0]}{layers}"


STEPS = [
    *((path, first_model(path)) for path in FULL),
    *(
        (FULL[0].with_name("induction.py"), f"{mixer},num_layers=1")
        for mixer in MIXERS
        if mixer != "attention"
    ),
]
"""Configs and models whose steps are compiled: the first of each, and a layer of every mixer."""
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_to_compile")]


def shrunk(config):
    """The config with its task as it is, and as little of all else as runs through every part."""
    width = 4 * config.model.num_heads
    return dataclasses.replace(
        config,
        models=(config.models[0].partition(",width")[0],),
        model=dataclasses.replace(config.model, width=width, num_layers=1, mlp_ratio=1),
        sweep=SweepConfig(learning_rates=(1e-3, 1e-2), tuning_seeds=1, seeds=1),
        train=dataclasses.replace(
            config.train, steps=1, batch_size=2, steps_per_dispatch=1, checkpoint_every=1
        ),
        evaluate=dataclasses.replace(
            config.evaluate,
            num_answers=2,
            batch_size=2,
            lengths=config.evaluate.lengths[:2],
            num_probe_rows=min(2, config.evaluate.num_probe_rows),
        ),
    )


def test_there_are_full_configs():
    assert len(FULL) >= 8


@pytest.mark.parametrize("path", FULL, ids=lambda path: path.stem)
def test_a_full_config_runs(path, tmp_path):
    (config,) = experiments.run.parse(path, []).values()
    small = shrunk(config)
    folder = experiments.run.run(small, path.stem, tmp_path, Console(file=io.StringIO()))
    assert RunFolder(folder.path).finished is not None
    for model in small.models:
        assert folder.model(model).is_evaluated


@needs_tpu_compiler
@pytest.mark.parametrize(("path", "model"), STEPS, ids=lambda x: getattr(x, "stem", x))
def test_the_step_of_a_full_config_compiles_for_a_tpu(path, model):
    compiled = run_python("-m", "experiments.compile", str(path), "--models", model)
    assert compiled.returncode == 0, compiled.stdout + compiled.stderr[-3000:]
    assert "yes" in compiled.stdout
