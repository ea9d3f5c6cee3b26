"""README's code runs as it stands there."""

import os
import pathlib
import re
import shlex
import subprocess
import sys
import tomllib

import pytest

from benchmarks import where
from experiments import targets
from experiments.run import parse
from tests.compilers import ENVIRONMENT
from tests.experiments.test_processes import free_port, of_slurm

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", [code for language, code in BLOCKS if language == "python"])
def test_python_blocks_run(code: str):
    exec(compile(code, "README.md", "exec"), {})


def test_python_blocks_exist():
    assert any(language == "python" for language, _ in BLOCKS)


def commands() -> list[list[str]]:
    """Every command of README's shell blocks, split; comments and line continuations resolved."""
    lines = "".join(code for language, code in BLOCKS if language == "bash").replace("\\\n", " ")
    parts = [part for line in lines.splitlines() for part in re.split(r"&&|;", line)]
    return [words for part in parts if (words := shlex.split(part, comments=True))]


def test_commands_name_what_exists():
    modules = set()
    for words in commands():
        for word in words:
            if word.endswith((".py", ".txt")):
                assert (ROOT / word).is_file(), words
        if "-m" in words and words[words.index("-m") + 1].startswith(("experiments", "benchmarks")):
            modules.add(words[words.index("-m") + 1])
    for module in modules:
        run = subprocess.run(
            [sys.executable, "-m", module, "--help"],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
    assert "experiments.run" in modules


POD = [
    words for words in commands() if "--mesh." in " ".join(words) or "small/recall.py" in words[-1]
]
"""From a laptop to a pod, line by line."""
SMALLER = {"256": "8", "1048576": "512", "v5p:4x8x8": "v5e:2x4"}
LITTLE = {
    "models": "attention",
    "model.width": "32",
    "model.num-layers": "1",
    "model.num-heads": "2",
    "train.steps": "1",
    "train.batch-size": "4",
    "train.steps-per-dispatch": "1",
    "train.checkpoint-every": "1",
    "sweep.seeds": "1",
    "sweep.learning-rates": "1e-3",
    "evaluate.num-answers": "2",
    "evaluate.batch-size": "4",
    "evaluate.num-probe-rows": "0",
}


@pytest.mark.slow
@pytest.mark.parametrize("words", POD, ids=lambda words: " ".join(words[3:]))
def test_a_line_from_a_laptop_to_a_pod_runs(words, tmp_path):
    """Cut down: a little model, and in the place of 256 chips eight, of two processes."""
    _, *words = (SMALLER.get(word, word) for word in words)
    words += [word for name, value in LITTLE.items() for word in (f"--{name}", value)]
    words[words.index("-m") + 2] = str(ROOT / words[words.index("-m") + 2])
    if "experiments.compile" in words:
        target = words[words.index("--target") + 1] if "--target" in words else "v5e:2x2"
        if not targets.is_installed(targets.chip_of(target).platform):
            pytest.skip(f"the compiler for {target} is not installed")
    count = 2 if "--processes.detect" in words else 1
    num_devices, port = (4 if count == 2 else 16), free_port()
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices}"}
    every = [
        subprocess.Popen(
            [sys.executable, *words],
            cwd=tmp_path,
            env=os.environ | ENVIRONMENT | flags | (of_slurm(n, 2, port) if count == 2 else {}),
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for n in range(count)
    ]  # fmt: skip
    ends = [process.communicate(timeout=600) for process in every]
    assert [process.returncode for process in every] == [0] * count, ends[0][1][-3000:]


def test_all_lines_from_a_laptop_to_a_pod_are_found():
    assert len(POD) == 5


def test_the_table_of_implementations_is_what_explain_says():
    assert where.table() in README


def test_runs_of_configs_are_accepted():
    runs = [words for words in commands() if "experiments.run" in words]
    assert any(len(words) > 4 for words in runs)
    for words in runs:
        config, *overrides = words[words.index("experiments.run") + 1 :]
        if "--help" not in overrides:
            parse(ROOT / config, overrides)


def test_installs_name_extras_that_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    installed = re.findall(r"\.\[([\w,]+)\]", README)
    assert installed
    for names in installed:
        assert set(names.split(",")) <= set(project["optional-dependencies"]), names


def test_tree_names_every_file():
    """But for tasks, mixers and configs, of which there may be any number."""
    tree = next(code for language, code in BLOCKS if language == "text" and "attn/" in code)
    folders = ("attn", "experiments", "configs", "benchmarks")
    many = [ROOT / folder for folder in ("experiments/tasks", "experiments/models", "configs")]
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    names = {path.name for path in paths if not set(many) & set(path.parents)} - {"__init__.py"}
    missing = {name for name in names if name not in tree}
    assert not missing, "expected in README, under The tree"


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    for link in links:
        assert link.startswith("http") or (ROOT / link).exists(), link
