"""Runs from the command line to the report: finished, started again, killed, gone wrong.

One short run is trained without interruption and shared; what a test interrupts must end at its
very bytes. Its programs are kept in a compilation cache that all processes here share, so that the
minutes go into running: the slow test at the end compiles everything anew.
"""

import contextlib
import fcntl
import io
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.experimental.compilation_cache import compilation_cache

import experiments.run
from experiments.records import RunFolder
from experiments.sweep import Diverged

ROOT = pathlib.Path(experiments.run.__file__).parent.parent
SMOKE = ROOT / "configs" / "smoke.py"
# One layer is enough, compiles in half the time, and leaves no doubt where the window ends.
ONE_LAYER = ("--model.num-layers", "1", "--model.window", "10")
OVERRIDES = (*ONE_LAYER, "--train.checkpoint-every", "25")
CONFIG = experiments.run.parse(SMOKE, list(OVERRIDES))["smoke"]
STEPS = CONFIG.train.steps
STAGES = ("search", "fresh")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder that all workers of this session share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "runs_of_smoke"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module", autouse=True)
def cache(shared):
    """The folder of the compilation cache, in use while this module runs."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(shared / "cache"))
    compilation_cache.reset_cache()
    yield shared / "cache"
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def finished(shared, cache):
    """The folder of a run that was never interrupted; what it printed is in ``printed.txt``."""
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        printed = shared / "printed.txt"
        if not printed.exists():
            status, out, err = run_here(shared, *OVERRIDES)
            assert (status, err) == (0, "")
            printed.write_text(out)
    (folder,) = shared.glob("smoke-*")
    return folder


def run_here(parent, *overrides, config=SMOKE):
    """Exit status, stdout and stderr of a command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(experiments.run, "RUNS", parent)
        patch.setattr(experiments.run, "prepare_jax", lambda: None)
        patch.setenv("COLUMNS", "100")
        patch.delenv("FORCE_COLOR", raising=False)
        status = experiments.run.main([str(config), *overrides])
    return status, out.getvalue(), err.getvalue()


@contextlib.contextmanager
def started(parent, *overrides, cache=None):
    """The command line as a process that is killed on leaving; runs lie in ``parent / "runs"``."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        # As this process is set; the program and so its rounding may depend on it.
        "JAX_DEFAULT_MATMUL_PRECISION": jax.config.jax_default_matmul_precision or "default",
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "")
        + f" --xla_force_host_platform_device_count={len(jax.devices())}",
    }
    if cache is not None:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    command = [sys.executable, "-m", "experiments.run", str(SMOKE), *overrides]
    with (parent / "output.txt").open("a") as output:
        process = subprocess.Popen(
            command, cwd=parent, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def kill_when(process, condition, timeout=300):
    """Kills the process as soon as the condition holds, which must be before it ends."""
    end = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL


def num_lines(parent, model):
    """How many dispatches of a model's fresh runs are recorded by now."""
    files = list(parent.glob(f"runs/smoke-*/{model}/fresh/metrics.jsonl"))
    return sum(file.read_bytes().count(b"\n") for file in files)


def restored(stage):
    """The last checkpoint's step and its values by path, read by orbax alone."""
    with ocp.CheckpointManager((stage / "checkpoints").resolve()) as manager:
        step = manager.latest_step()
        state = manager.restore(step, args=ocp.args.StandardRestore())
    values = jax.tree_util.tree_leaves_with_path(state)
    return step, {jax.tree_util.keystr(path): np.asarray(value) for path, value in values}


def assert_same_run(folder, reference):
    """Every number of a finished run is bitwise that of another."""
    for model in CONFIG.models:
        for name in ("search.json", "evaluation.json"):
            assert (folder / model / name).read_bytes() == (reference / model / name).read_bytes()
        for stage in STAGES:
            ours, theirs = (path / model / stage for path in (folder, reference))
            for name in ("metrics.jsonl", "runs.json"):
                assert (ours / name).read_bytes() == (theirs / name).read_bytes()
            (step, values), (other_step, others) = restored(ours), restored(theirs)
            assert step == other_step
            assert set(values) == set(others)
            for name, value in values.items():
                assert value.dtype == others[name].dtype
                assert value.tobytes() == others[name].tobytes(), name
    assert (folder / "config.json").read_bytes() == (reference / "config.json").read_bytes()
    assert (folder / "finished.json").exists()
    assert not list(folder.rglob("*.part"))


def test_attention_learns_and_the_window_does_not_beyond_its_reach(finished):
    attention, window = (RunFolder(finished).model(model).evaluation for model in CONFIG.models)
    assert attention["reach"] is None
    assert window["reach"] == 11
    chance = CONFIG.task.floors()["chance"].accuracy
    for run in attention["runs"]:
        assert run["lengths"]["32"]["with_source"]["accuracy"] >= 0.99
        assert min(run["lengths"]["32"]["by_distance"]["accuracy"]) >= 0.97
    for run in window["runs"]:
        bins = run["lengths"]["32"]["by_distance"]
        beyond = [i for i, low in enumerate(bins["from"]) if low > 11]
        right = sum(bins["answers"][i] * bins["accuracy"][i] for i in beyond)
        assert right / sum(bins["answers"][i] for i in beyond) < 2 * chance
        assert bins["accuracy"][0] >= 0.9, "it does learn what it can see"


def test_metrics_hold_every_dispatch_once(finished):
    for model in CONFIG.models:
        for stage in STAGES:
            text = (finished / model / stage / "metrics.jsonl").read_text()
            lines = [json.loads(line) for line in text.splitlines()]
            assert text.endswith("\n")
            for run in range(2):
                steps = [line["step"][run] for line in lines]
                assert steps[0] == 25
                assert set(np.diff(steps)) <= {0, 25}
                losses = [line["loss"][run] for line in lines if line["loss"][run] is not None]
                assert len(losses) == max(steps) // 25
                assert 2 < losses[0] < 5, "near log 17, having seen little"
                assert losses[-1] < losses[0]


def test_the_run_folder_is_complete(finished):
    folder = RunFolder(finished)
    assert folder.config == CONFIG
    assert folder.data == CONFIG.task.describe()
    (environment,) = folder.environments
    assert environment["packages"]["jax"] == jax.__version__
    assert environment["device"].endswith(f"({jax.default_backend()})")
    assert re.fullmatch(r"[0-9a-f]{12}\+?|unknown", environment["commit"])
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))
    length = str(CONFIG.task.length)
    assert folder.finished["floors"][length]["chance"] == {"accuracy": 1 / 16, "loss": 4.0}
    for model in CONFIG.models:
        cost = json.loads((finished / model / "cost.json").read_text())
        assert set(cost["seconds"]) == {"train", "evaluate"}
        for stage in STAGES:
            step, values = restored(finished / model / stage)
            assert 0 < step <= STEPS
            params = {name: value for name, value in values.items() if "params" in name}
            assert sum(value[0].size for value in params.values()) == 17792
            assert all(np.isfinite(value).all() for value in values.values())


def test_a_report_is_written(finished):
    for page in ("report.html", "report.md"):
        assert CONFIG.claim in (finished / page).read_text()


def test_the_command_says_what_it_will_do_and_prints_the_results(finished, shared):
    printed = (shared / "printed.txt").read_text()
    for word in ("claim", "task", "models", "runs", "device", "budget", "folder"):
        assert re.search(rf"^{word} ", printed, re.MULTILINE), word
    assert finished.name in printed.replace("\n", "")
    for model in CONFIG.models:
        for stage in STAGES:
            assert f"{model}, {stage}: " in printed, "progress, also into a file"
    assert "report.md" in printed
    assert "0.062" in printed


def test_a_finished_run_started_again_says_so_and_costs_nothing(finished, shared, monkeypatch):
    def records():
        pages = ("figures", "report.html", "report.md")
        files = (p for p in finished.rglob("*") if p.is_file())
        return {p: p.read_bytes() for p in files if p.relative_to(finished).parts[0] not in pages}

    def fail(*_, **__):
        raise AssertionError("a finished run was worked on")

    for name in ("sweep", "environment"):
        monkeypatch.setattr(experiments.run, name, fail)
    compiled = []

    def listen(event, *_, **__):
        if "compile" in event:
            compiled.append(event)

    before = records()
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        status, out, err = run_here(shared, *OVERRIDES)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert (status, err) == (0, "")
    assert "has finished: nothing to do" in out.replace("\n", " ")
    assert "0.062" in out
    assert not compiled
    assert records() == before


def test_a_model_is_added_to_a_finished_run(finished, shared, tmp_path):
    folder = tmp_path / finished.name
    shutil.copytree(finished, folder)

    def records(model):
        return {p: p.read_bytes() for p in (folder / model).rglob("*") if p.is_file()}

    before = {model: records(model) for model in CONFIG.models}
    status, out, err = run_here(tmp_path, *OVERRIDES, "--models", *CONFIG.models, "none")
    assert (status, err) == (0, "")
    assert {model: records(model) for model in CONFIG.models} == before
    assert RunFolder(folder).finished is not None
    assert RunFolder(folder).model("none").is_evaluated
    assert "\n| none | 0 |" in (folder / "report.md").read_text()
    status, out, err = run_here(tmp_path, *OVERRIDES)
    assert "has finished: nothing to do" in " ".join(out.split())
    assert "\n| none |" not in (folder / "report.md").read_text()


def test_killed_twice_and_started_again_ends_at_the_same_bytes(finished, cache, tmp_path):
    def is_second_checkpoint_begun():
        return list(tmp_path.glob("runs/smoke-*/window/fresh/checkpoints/50*"))

    with started(tmp_path, *OVERRIDES, cache=cache) as process:
        kill_when(process, is_second_checkpoint_begun)
    with started(tmp_path, *OVERRIDES, cache=cache) as process:
        kill_when(process, lambda: num_lines(tmp_path, "window") > 3)
    output = (tmp_path / "output.txt").read_text()
    assert "attention, fresh: going on" not in output, "it was trained to its end at first"
    assert re.search(r"window, fresh: going on from step (25|50)\b", output)

    status, out, err = run_here(tmp_path / "runs", *OVERRIDES)
    assert (status, err) == (0, "")
    assert re.search(r"window, fresh: going on from step (75|100)\b", out)
    (folder,) = (tmp_path / "runs").glob("smoke-*")
    assert folder.name == finished.name
    assert len(RunFolder(folder).environments) == 3
    assert_same_run(folder, finished)


def test_killed_between_metrics_and_checkpoint(finished, tmp_path):
    folder = tmp_path / finished.name
    shutil.copytree(finished, folder)
    # As if killed in the last dispatch of the second model, amid a line, amid other writes.
    fresh = folder / "window" / "fresh"
    (folder / "finished.json").unlink()
    (folder / "report.md").unlink()
    (folder / "window" / "evaluation.json").unlink()
    last = max(int(path.name) for path in (fresh / "checkpoints").iterdir())
    shutil.rmtree(fresh / "checkpoints" / str(last))
    metrics = fresh / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-30])
    for name in ("report.md", "environment.json", "window/evaluation.json"):
        (folder / f"{name}.part").write_text("half")
    (fresh / "metrics.jsonl.part").write_text("half")

    status, out, err = run_here(tmp_path, *OVERRIDES)
    assert (status, err) == (0, "")
    assert f"window, fresh: going on from step {last - 25}" in out
    assert_same_run(folder, finished)
    assert (folder / "report.md").exists()


NOT_FINITE = (*ONE_LAYER, "--models", "attention", "--sweep.learning-rates", "1e30")


def test_a_loss_that_is_not_finite_stops_at_its_step_with_the_state_before_it(tmp_path):
    def fail():
        status, _, err = run_here(tmp_path, *NOT_FINITE)
        assert status == 1
        assert "Traceback" not in err
        (folder,) = tmp_path.glob("smoke-*")
        assert not (folder / "finished.json").exists()
        assert not (folder / "attention" / "evaluation.json").exists()
        step = int(re.search(r"not finite in any run \(seed 0, rate 1e\+30: step (\d+)", err)[1])
        metrics = (folder / "attention" / "fresh" / "metrics.jsonl").read_text()
        return step, metrics, restored(folder / "attention" / "fresh")

    step, metrics, (saved, values) = fail()
    (line,) = [json.loads(line) for line in metrics.splitlines()]
    assert line["step"][0] == step - 1
    assert saved == max(line["step"])
    for name, value in values.items():
        assert np.isfinite(value).all(), name

    again = fail()
    assert again[:2] == (step, metrics)
    assert again[2][0] == saved
    for name, value in again[2][1].items():
        assert value.tobytes() == values[name].tobytes()


def test_a_model_that_diverges_stops_no_other(tmp_path, monkeypatch):
    swept = []

    def sweep(config, model, *_):
        swept.append((config.task.length, model))
        if model.startswith("attention"):
            raise Diverged("attention is lost")

    monkeypatch.setattr(experiments.run, "sweep", sweep)
    members = ("--members", "smoke.py", "small/adding.py")
    status, out, err = run_here(tmp_path, *members, config=ROOT / "configs" / "suite_small.py")
    configs = [experiments.run.parse(ROOT / "configs" / name, []) for name in members[1:]]
    every = [(c.task.length, m) for of_file in configs for c in of_file.values() for m in c.models]
    assert swept == every
    assert status == 1
    assert err == "error: attention is lost\nattention is lost\n"
    assert "report: " in out
    assert not list(tmp_path.rglob("finished.json"))


def test_two_processes_do_not_work_in_one_folder(tmp_path):
    with RunFolder.of(CONFIG, "smoke", tmp_path).alone():
        status, _, err = run_here(tmp_path, *OVERRIDES)
    assert status == 1
    assert re.fullmatch(r"error: .*/smoke-\w+: another process is at work here\n", err)


def test_missing_data_is_an_error_in_a_line(tmp_path):
    status, _, err = run_here(
        tmp_path, "--task.path", "nowhere", config=ROOT / "configs" / "repeated_text.py"
    )
    assert status == 1
    assert re.fullmatch(r"error: .*'nowhere'.*\n", err)


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_at_the_same_bytes(finished, tmp_path):
    rng = np.random.default_rng(0)
    kills = 0
    for _ in range(20):
        before = sum(num_lines(tmp_path, model) for model in CONFIG.models)
        with started(tmp_path, *OVERRIDES) as process:
            while process.poll() is None:
                if sum(num_lines(tmp_path, model) for model in CONFIG.models) > before:
                    break
                time.sleep(0.002)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0, 3))
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        kills += 1
    assert process.returncode == 0
    assert kills > 0
    (folder,) = (tmp_path / "runs").glob("smoke-*")
    assert_same_run(folder, finished)
