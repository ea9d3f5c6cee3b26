"""Several processes on one machine: the numbers of one; and what is left when one is killed."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

import experiments.run
from experiments.config import Config
from experiments.processes import ProcessesConfig, join
from tests.quick import as_flags, quick_to_compile

ROOT = pathlib.Path(experiments.run.__file__).parent.parent
CONFIG = """
from experiments.config import Config, EvaluateConfig, ModelConfig, SweepConfig, TrainConfig
from experiments.tasks import Recall


def get_config():
    return Config(
        task=Recall(vocab_size=16, length=16, num_pairs=2),
        models=("attention",),
        model=ModelConfig(width=8, num_layers=1),
        sweep=SweepConfig(learning_rates=(3e-3, 1e-2), tuning_seeds=1, seeds=3),
        train=TrainConfig(steps=STEPS, batch_size=4, steps_per_dispatch=2, checkpoint_every=EVERY),
        evaluate=EvaluateConfig(num_answers=64, batch_size=8, num_probe_rows=4),
    )
"""
LONGER = 200
"""Steps enough for a kill in the middle."""
CHECKPOINTS = 10
"""Of a stage, each of which all processes wait for."""


@contextlib.contextmanager
def processes(folder, count, *overrides, steps, of_job=None, num_devices=2):
    """So many processes at work in a folder, told of each other by flags or as those of a job."""
    between = str(max(steps // CHECKPOINTS, 2))
    config = CONFIG.replace("STEPS", str(steps)).replace("EVERY", between)
    (folder / "config.py").write_text(config)
    flags = {"xla_force_host_platform_device_count": num_devices} | quick_to_compile()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": as_flags(flags),
    }
    command = [sys.executable, "-m", "experiments.run", "config.py", *overrides]
    port = free_port()
    together = ["--processes.coordinator", f"localhost:{port}", "--processes.count", str(count)]
    together = ["--processes.detect"] if of_job else together if count > 1 else []

    def begin(n):
        own = ["--processes.index", str(n)] if count > 1 and not of_job else []
        return subprocess.Popen(
            [*command, *together, *own],
            cwd=folder, env=environment | (of_job(n, count, port) if of_job else {}),
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    every = [begin(n) for n in range(count)]
    try:
        yield every
    finally:
        for process in every:
            process.kill()
            process.wait()
            process.stdout.close()
            process.stderr.close()


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def of_slurm(n, count, port):
    """The environment of a process of a Slurm job."""
    return {
        "SLURM_JOB_ID": str(port),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(n),
        "SLURM_LOCALID": str(n),
        "SLURM_STEP_NUM_NODES": "1",
    }


def of_open_mpi(n, count, port):
    """The environment of a process of an Open MPI job."""
    return {
        "OMPI_MCA_orte_hnp_uri": f"{port}.0;tcp://127.0.0.1:{port}",
        "OMPI_COMM_WORLD_SIZE": str(count),
        "OMPI_COMM_WORLD_RANK": str(n),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(n),
    }


def finish(folder, count, *overrides, steps=8, of_job=None):
    """The runs of a config as its evaluation has them, once all processes have ended well."""
    with processes(folder, count, *overrides, steps=steps, of_job=of_job) as every:
        for process in every:
            _, errors = process.communicate(timeout=600)
            assert process.returncode == 0, errors[-3000:]
    (path,) = folder.glob("runs/config-*/attention/evaluation.json")
    assert len([*folder.glob("runs/config-*/report.html")]) == 1
    return json.loads(path.read_text())["runs"]


def assert_alike(runs, expected):
    assert len(runs) == len(expected) == 3
    for run, other in zip(runs, expected, strict=True):
        score, wanted = (x["lengths"]["16"]["with_source"] for x in (run, other))
        assert run["seed"] == other["seed"]
        assert score["accuracy"] == wanted["accuracy"]
        assert score["loss"] == pytest.approx(wanted["loss"], rel=1e-4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return finish(tmp_path_factory.mktemp("alone"), 1)


@pytest.fixture(scope="module")
def longer_alone(tmp_path_factory):
    return finish(tmp_path_factory.mktemp("longer_alone"), 1, steps=LONGER)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "overrides"),
    [(2, ("--mesh.data", "2")), (4, ("--mesh.sequence", "4", "--mesh.model", "2"))],
)
def test_several_processes_give_the_numbers_of_one(alone, tmp_path, count, overrides):
    assert_alike(finish(tmp_path, count, *overrides), alone)


@pytest.mark.slow
@pytest.mark.parametrize("of_job", [of_slurm, of_open_mpi])
def test_what_starts_a_job_tells_them_of_each_other(alone, tmp_path, of_job):
    assert_alike(finish(tmp_path, 2, "--mesh.data", "2", of_job=of_job), alone)


@pytest.mark.slow
def test_one_that_fails_stops_the_others(tmp_path):
    """Of two, the first may not write: it says so, the other that it is alone, and both end."""
    with processes(tmp_path, 2, steps=LONGER) as every:
        wait_for_a_checkpoint(tmp_path)
        (folder,) = tmp_path.glob("runs/config-*/attention/search")
        (folder / "metrics.jsonl").unlink()
        (folder / "metrics.jsonl").mkdir()
        errors = [process.communicate(timeout=120)[1] for process in every]
    assert every[0].returncode == 1
    assert every[1].returncode, "ended by us or, if that is first, by JAX's runtime"
    assert "process 0 of 2 failed: [Errno 21] Is a directory" in errors[0]
    assert "another" in errors[1]


@pytest.mark.slow
def test_a_folder_at_which_others_work_stops_all(tmp_path):
    with processes(tmp_path, 1, steps=10 * LONGER) as (first,):
        wait_for_a_checkpoint(tmp_path)
        with processes(tmp_path, 2, steps=10 * LONGER) as every:
            errors = [process.communicate(timeout=120)[1] for process in every]
        assert first.poll() is None
    assert every[0].returncode == 1
    assert every[1].returncode, "as above"
    assert "another process is at work here" in errors[0]


@pytest.mark.slow
def test_a_process_without_a_device_is_refused(tmp_path):
    with processes(tmp_path, 3, "--mesh.data", "2", steps=8, num_devices=1) as every:
        errors = [process.communicate(timeout=120)[1] for process in every]
    assert all(process.returncode == 1 for process in every)
    assert all("leaves no device of the 3 for process 2" in x for x in errors)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "killed", "then"), [(4, 2, 2), (2, 0, 2)])
def test_one_that_dies_stops_the_others_and_nothing_is_lost(
    longer_alone, tmp_path, count, killed, then
):
    with processes(tmp_path, count, steps=LONGER) as every:
        wait_for_a_checkpoint(tmp_path)
        every[killed].send_signal(signal.SIGKILL)
        for n, process in enumerate(every):
            _, errors = process.communicate(timeout=120)
            assert process.returncode != 0
            if n != killed:  # One of the two is first: ours, or that of JAX's runtime.
                assert "has lost another" in errors or "another task died" in errors
    assert_alike(finish(tmp_path, then, steps=LONGER), longer_alone)


def wait_for_a_checkpoint(folder):
    for _ in range(6000):
        if [*folder.glob("runs/config-*/attention/*/checkpoints/[0-9]*/commit_success.txt")]:
            return
        time.sleep(0.05)
    raise AssertionError("no checkpoint")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 2}, "processes.coordinator is None and processes.count is 2; expected both"),
        ({"coordinator": "a:1"}, "expected both for several processes, neither for one"),
        ({"coordinator": "a:1", "count": 2, "index": 2}, r"index is 2; expected in \[0, 2\)"),
        ({"detect": True, "coordinator": "a:1", "count": 2}, "expected no processes.coordinator"),
    ],
)
def test_processes_that_do_not_add_up_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ProcessesConfig(**options)


def test_one_process_alone_joins_no_others(monkeypatch):
    monkeypatch.setattr(experiments.run.jax.distributed, "initialize", None)
    join(Config().processes)


def test_what_the_environment_tells_is_taken(monkeypatch):
    told = []
    monkeypatch.setattr(
        experiments.run.jax.distributed, "initialize", lambda **options: told.append(options)
    )
    join(ProcessesConfig(detect=True))
    join(ProcessesConfig(coordinator="host:1", count=3, index=1))
    assert "coordinator_address" not in told[0]
    assert told[1]["coordinator_address"] == "host:1"
    assert (told[1]["num_processes"], told[1]["process_id"]) == (3, 1)
