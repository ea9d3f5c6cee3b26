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
from experiments.config import to_dict
from experiments.models.decoder import receptive_field
from experiments.train import initial_state, train

ROOT = pathlib.Path(experiments.run.__file__).parent.parent
SMOKE = ROOT / "configs" / "smoke.py"
# One layer is enough, compiles in half the time, and leaves no doubt where the window ends.
ONE_LAYER = ("--model.num-layers", "1", "--model.window", "10")
OVERRIDES = (*ONE_LAYER, "--train.checkpoint-every", "25")
CONFIG = experiments.run.parse(SMOKE, list(OVERRIDES))
STEPS = CONFIG.train.steps


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


def num_lines(parent, mixer):
    """How many steps of a mixer are recorded by now."""
    files = list(parent.glob(f"runs/smoke-*/{mixer}/metrics.jsonl"))
    return sum(file.read_bytes().count(b"\n") for file in files)


def restored(folder, mixer):
    """The last checkpoint's step and its values by path, read by orbax alone."""
    with ocp.CheckpointManager((folder / mixer / "checkpoints").resolve()) as manager:
        step = manager.latest_step()
        state = manager.restore(step, args=ocp.args.StandardRestore())
    values = jax.tree_util.tree_leaves_with_path(state)
    return step, {jax.tree_util.keystr(path): np.asarray(value) for path, value in values}


def assert_same_run(folder, reference):
    """Every number of a finished run is bitwise that of another."""
    for mixer in CONFIG.mixers:
        for name in ("metrics.jsonl", "evaluation.json"):
            assert (folder / mixer / name).read_bytes() == (reference / mixer / name).read_bytes()
        (step, values), (other_step, others) = (
            restored(path, mixer) for path in (folder, reference)
        )
        assert step == other_step == STEPS
        assert set(values) == set(others)
        for name, value in values.items():
            assert value.dtype == others[name].dtype
            assert value.tobytes() == others[name].tobytes(), name
    assert (folder / "config.json").read_bytes() == (reference / "config.json").read_bytes()
    assert (folder / "finished.json").exists()
    assert not list(folder.rglob("*.part"))


def test_attention_learns_and_the_window_does_not_beyond_its_reach(finished):
    attention, window = (
        json.loads((finished / mixer / "evaluation.json").read_text())["lengths"]["32"]
        for mixer in CONFIG.mixers
    )
    assert attention["with_source"]["accuracy"] >= 0.99
    assert all(b["accuracy"] >= 0.97 for b in attention["by_distance"])
    reach = receptive_field(CONFIG.model, "window")
    assert reach == 11
    chance = CONFIG.task.chance().accuracy
    beyond = [b for b in window["by_distance"] if b["from"] > reach]
    right = sum(b["answers"] * b["accuracy"] for b in beyond)
    assert right / sum(b["answers"] for b in beyond) < 2 * chance
    assert window["by_distance"][0]["accuracy"] >= 0.97, "it does learn what it can see"


def test_metrics_hold_every_step_once(finished):
    for mixer in CONFIG.mixers:
        text = (finished / mixer / "metrics.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        assert text.endswith("\n")
        assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
        for line in lines:
            assert set(line) == {"step", "loss", "accuracy", "gradient_norm"}
            assert all(np.isfinite(value) for value in line.values())
        loss = [line["loss"] for line in lines]
        assert 2 < loss[0] < 5, "near log 17, having seen nothing"
        assert np.mean(loss[-25:]) < np.mean(loss[:25])


def test_the_run_folder_is_complete(finished):
    config = json.loads((finished / "config.json").read_text())
    assert config.pop("data") == CONFIG.task.describe()
    assert config == json.loads(json.dumps(to_dict(CONFIG)))
    assert config["train"]["checkpoint_every"] == 25

    (environment,) = json.loads((finished / "environment.json").read_text())
    assert environment["packages"]["jax"] == jax.__version__
    assert environment["device"].endswith(f"({jax.default_backend()})")
    assert re.fullmatch(r"[0-9a-f]{12}\+?|unknown", environment["commit"])
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))

    ended = json.loads((finished / "finished.json").read_text())
    assert set(ended["seconds"]) == set(CONFIG.mixers)
    assert ended["chance"] == {"accuracy": 1 / 16, "bits": 4.0}
    for mixer in CONFIG.mixers:
        step, values = restored(finished, mixer)
        assert step == STEPS
        assert sum(v.size for name, v in values.items() if "params" in name) == 17792
        assert all(np.isfinite(v).all() for v in values.values())


def test_the_report_shows_results_figures_and_how_it_was_made(finished):
    report = (finished / "report.md").read_text()
    assert CONFIG.claim in report
    figures = re.findall(r"!\[.*?\]\((.*?)\)", report)
    assert sorted(figures) == sorted(f"figures/{f.name}" for f in (finished / "figures").iterdir())
    assert len(figures) >= 4
    for figure in figures:
        assert (finished / figure).read_bytes().startswith(b"\x89PNG")
    for row in (r"attention \| any \| 32 \|", r"window \| 11 \| 32 \|", r"chance \|.*6.2 %"):
        assert re.search(rf"^\| {row}", report, re.MULTILINE)
    assert "jax " + jax.__version__ in report
    assert '"checkpoint_every": 25' in report


def test_the_command_says_what_it_will_do_and_prints_the_results(finished, shared):
    printed = (shared / "printed.txt").read_text()
    for word in ("claim", "task", "mixers", "model", "device", "budget", "seed", "folder"):
        assert re.search(rf"^{word} ", printed, re.MULTILINE), word
    assert finished.name in printed.replace("\n", "")
    table = printed[printed.index(CONFIG.claim[:20], printed.index("folder")) :]
    rows = re.findall(r"^│ (\w+) +│(.*)$", table, re.MULTILINE)
    assert [name for name, _ in rows] == ["attention", "window", "chance"]
    assert "6.2 %" in dict(rows)["chance"]
    for mixer in CONFIG.mixers:
        assert f"{mixer}: step {STEPS}, loss" in printed, "progress, also into a file"
    assert "report.md" in printed


def test_a_finished_run_started_again_says_so_and_costs_nothing(finished, shared, monkeypatch):
    def contents():
        return {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}

    def fail(*_, **__):
        raise AssertionError("a finished run was worked on")

    for name in ("train", "evaluate", "initial_state", "environment"):
        monkeypatch.setattr(experiments.run, name, fail)
    compiled = []

    def listen(event, *_, **__):
        if "compile" in event:
            compiled.append(event)

    before, begun = contents(), time.monotonic()
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        status, out, err = run_here(shared, *OVERRIDES)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert (status, err) == (0, "")
    assert "has finished: nothing to do" in out.replace("\n", " ")
    assert re.search(r"^│ chance .*6.2 %", out, re.MULTILINE)
    assert not compiled
    assert contents() == before
    assert time.monotonic() - begun < 5


def test_mixers_of_one_shape_start_from_the_same_parameters(finished):
    attention, window = (initial_state(CONFIG, mixer, ()).params for mixer in CONFIG.mixers)
    assert jax.tree.structure(attention) == jax.tree.structure(window)
    for a, b in zip(jax.tree.leaves(attention), jax.tree.leaves(window), strict=True):
        np.testing.assert_array_equal(a, b)


def test_killed_twice_and_started_again_ends_at_the_same_bytes(finished, cache, tmp_path):
    def is_second_checkpoint_begun():
        return list(tmp_path.glob("runs/smoke-*/window/checkpoints/50*"))

    with started(tmp_path, *OVERRIDES, cache=cache) as process:
        kill_when(process, is_second_checkpoint_begun)
    with started(tmp_path, *OVERRIDES, cache=cache) as process:
        kill_when(process, lambda: num_lines(tmp_path, "window") > 90)
    output = (tmp_path / "output.txt").read_text()
    assert "attention: going on" not in output, "it was trained to its end in the first start"
    assert re.search(r"window: going on from step (25|50)\b", output)

    status, out, err = run_here(tmp_path / "runs", *OVERRIDES)
    assert (status, err) == (0, "")
    assert re.search(r"window: going on from step (75|100)\b", out)
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name == finished.name
    assert len(json.loads((folder / "environment.json").read_text())) == 3
    assert_same_run(folder, finished)


def test_killed_between_metrics_and_checkpoint(finished, tmp_path):
    folder = tmp_path / finished.name
    shutil.copytree(finished, folder)
    # As if killed in the last dispatch of the second mixer, amid a line, amid other writes.
    (folder / "finished.json").unlink()
    (folder / "report.md").unlink()
    (folder / "window" / "evaluation.json").unlink()
    shutil.rmtree(folder / "window" / "checkpoints" / str(STEPS))
    metrics = folder / "window" / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-30])
    for name in ("report.md", "environment.json", "window/metrics.jsonl", "window/evaluation.json"):
        (folder / f"{name}.part").write_text("half")

    status, out, err = run_here(tmp_path, *OVERRIDES)
    assert (status, err) == (0, "")
    assert f"window: going on from step {STEPS - 25}" in out
    assert_same_run(folder, finished)
    assert (folder / "report.md").exists()


def test_every_step_is_recorded_before_the_state_that_holds_it_is_saved(finished):
    recorded, saved = [], []

    def record(first, metrics):
        assert first == len(recorded)
        recorded.extend(zip(*(column.tolist() for column in metrics), strict=True))

    def save(state):
        assert len(recorded) == int(state.step)
        saved.append(int(state.step))

    state = train(
        CONFIG, "window", initial_state(CONFIG, "window", ()), (), record=record, save=save
    )
    assert int(state.step) == STEPS
    assert saved == list(range(25, STEPS + 1, 25))
    lines = (finished / "window" / "metrics.jsonl").read_text().splitlines()
    assert recorded == [tuple(json.loads(line).values())[1:] for line in lines]


NOT_FINITE = (*ONE_LAYER, "--mixers", "attention", "--optimizer.learning-rate", "1e30")


def test_a_loss_that_is_not_finite_stops_at_its_step_with_the_state_before_it(tmp_path):
    def fail():
        status, out, err = run_here(tmp_path, *NOT_FINITE)
        assert status == 1
        assert "Traceback" not in err
        (folder,) = tmp_path.iterdir()
        assert not (folder / "finished.json").exists()
        assert not (folder / "attention" / "evaluation.json").exists()
        step = int(re.match(r"error: attention: at step (\d+) the loss is", err).group(1))
        metrics = (folder / "attention" / "metrics.jsonl").read_text()
        return step, metrics, restored(folder, "attention"), out

    step, metrics, (saved, values), _ = fail()
    lines = [json.loads(line) for line in metrics.splitlines()]
    assert step > 0
    assert [line["step"] for line in lines] == list(range(1, step + 1))
    assert all(np.isfinite(value) for line in lines for value in line.values())
    assert saved == step
    for name, value in values.items():
        assert np.isfinite(value).all(), name

    again = fail()
    assert again[:2] == (step, metrics)
    assert f"going on from step {step}" in again[3]
    assert again[2][0] == saved
    for name, value in again[2][1].items():
        assert value.tobytes() == values[name].tobytes()


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
        before = sum(num_lines(tmp_path, mixer) for mixer in CONFIG.mixers)
        with started(tmp_path, *OVERRIDES) as process:
            while process.poll() is None:
                if sum(num_lines(tmp_path, mixer) for mixer in CONFIG.mixers) > before:
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
    (folder,) = (tmp_path / "runs").iterdir()
    assert_same_run(folder, finished)
