"""The compiler of a TPU, which needs none, in a process of its own."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

import experiments.compile

ROOT = pathlib.Path(__file__).parent.parent
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the compiler, is not installed"
)
ENVIRONMENT = experiments.compile.ENVIRONMENT | {
    "JAX_PLATFORMS": "cpu",
    "COLUMNS": "120",
    "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
}
"""Of a process that is told that there is no TPU."""
TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
"""The least that there is of a chip."""


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Returns what ``python *arguments`` did."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def lines_of(program: str, *arguments: str) -> list[list[str]]:
    """Returns what a program prints, lines of fields between semicolons; it must not fail."""
    run = run_python("-c", program, *arguments)
    assert run.returncode == 0, run.stderr[-3000:]
    return [line.split(";") for line in run.stdout.splitlines() if ";" in line]
