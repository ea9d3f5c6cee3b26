"""The compilers of TPU and GPU, which need none, in a process of their own."""

import os
import pathlib
import subprocess
import sys

import pytest

from experiments import targets

ROOT = pathlib.Path(__file__).parent.parent
needs_tpu_compiler = pytest.mark.skipif(
    not targets.is_installed("tpu"), reason="libtpu, the compiler, is not installed"
)
needs_gpu_compiler = pytest.mark.skipif(
    not targets.is_installed("gpu"), reason="the CUDA plugin, the compiler, is not installed"
)
ENVIRONMENT = targets.ENVIRONMENT | {
    "JAX_PLATFORMS": "cpu",
    "COLUMNS": "120",
    "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
}
"""Of a process that is told that there is no such chip."""
TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
"""The least that there is of a chip."""


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Returns what ``python *arguments`` did."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def lines_of(*arguments: str) -> list[list[str]]:
    """Returns what ``python *arguments`` prints, lines of fields between semicolons.

    It must not fail.
    """
    run = run_python(*arguments)
    assert run.returncode == 0, run.stderr[-3000:]
    return [line.split(";") for line in run.stdout.splitlines() if ";" in line]
