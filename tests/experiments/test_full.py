"""The settings of papers: that they run, cut down, and that their real step compiles for a TPU."""

import dataclasses
import importlib.util
import io
import os
import pathlib
import subprocess
import sys

import pytest
from rich.console import Console

import experiments.run
from experiments.config import SweepConfig
from experiments.models import MIXERS
from experiments.records import RunFolder

ROOT = pathlib.Path(experiments.run.__file__).parent.parent
FULL = sorted((ROOT / "configs" / "full").glob("*.py"))
STEPS = [
    *((path, next(iter(experiments.run.parse(path, []).values())).models[0]) for path in FULL),
    *((FULL[0].with_name("induction.py"), mixer) for mixer in MIXERS if mixer != "attention"),
]
"""Configs and models whose steps are compiled: the first of each, and every mixer."""
pytestmark = pytest.mark.slow


def shrunk(config):
    """The config with its task as it is, and as little of all else as runs through every part."""
    width = 4 * config.model.num_heads
    return dataclasses.replace(
        config,
        models=tuple(name.partition(",width")[0] for name in (config.models[0], config.models[-1])),
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
            num_probe_rows=2,
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


COMPILE = """
import pathlib, sys
import jax, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from experiments.run import parse
from experiments.train import TrainState, build_program

(config,) = parse(pathlib.Path(sys.argv[1]), ["--models", sys.argv[2]]).values()
devices = np.array(topologies.get_topology_desc("v5e:2x2", platform="tpu").devices).flatten()[:1]
one_chip = NamedSharding(Mesh(devices, ("run",)), PartitionSpec())
data = config.task.load("train")
program = build_program(config, sys.argv[2], 1, data)
params, opt_state = jax.eval_shape(lambda: program.init(0))
count, rate = (jax.ShapeDtypeStruct((), dtype) for dtype in ("int32", "float32"))
arguments = (TrainState(count, count, params, opt_state), count, rate, data)
on_chip = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one_chip)
compiled = jax.jit(program.one).lower(*jax.tree.map(on_chip, arguments)).compile()
memory = compiled.memory_analysis()
print("bytes", memory.temp_size_in_bytes + memory.argument_size_in_bytes)
"""


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the compiler, is not installed"
)
@pytest.mark.parametrize(("path", "model"), STEPS, ids=lambda x: getattr(x, "stem", x))
def test_the_step_of_a_full_config_compiles_for_a_tpu(path, model):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    compiled = subprocess.run(
        [sys.executable, "-c", COMPILE, str(path), model],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert compiled.returncode == 0, compiled.stderr[-3000:]
    used = int(compiled.stdout.split("bytes")[-1])
    assert 0 < used < 16e9, "the memory of a chip"
