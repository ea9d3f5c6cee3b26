"""The command that compiles for chips that are not here: what it refuses, and what it says."""

import pytest

from experiments import targets
from experiments.compile import _too_many, main
from tests.compilers import ROOT, needs_gpu_compiler, needs_tpu_compiler, run_python

SMOKE = str(ROOT / "configs" / "smoke.py")


def test_it_says_how_it_is_used(capsys):
    assert main(["--help"]) == 0
    assert "usage: python -m experiments.compile" in capsys.readouterr().out
    assert main([]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.py"], "CONFIG.py is 'nowhere.py'; expected a file\nusage: python -m exp"),
        ([SMOKE, "--target", "v9:2x2"], "--target is 'v9:2x2'; expected KIND:SHAPE"),
        ([SMOKE, "--target"], "--target is ''; expected KIND:SHAPE"),
        ([SMOKE, "--target=v5e"], "--target is 'v5e'; expected KIND:SHAPE"),
        ([SMOKE, "--target", "v5e"], "--target is 'v5e'; expected KIND:SHAPE"),
        ([SMOKE, "--target", "v5e:0x2"], "--target is 'v5e:0x2'; expected sides of 1 and more"),
        ([SMOKE, "--target", "v5e:"], "--target is 'v5e:'; expected KIND:SHAPE"),
    ],
)
def test_a_wrong_command_line(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_messages_of_fields_name_the_command(capsys):
    with pytest.raises(SystemExit):
        main([SMOKE, "--targt", "v5e:2x2"])
    assert "python -m experiments.compile" in "".join(capsys.readouterr())


def test_without_the_compiler(capsys, monkeypatch):
    monkeypatch.setattr(targets, "is_installed", lambda platform: False)
    assert main([SMOKE]) == 2
    assert "pip install --no-deps libtpu" in capsys.readouterr().err
    assert main([SMOKE, "--target", "h100:1"]) == 2
    assert "pip install --no-deps jax-cuda13-pjrt" in capsys.readouterr().err


@pytest.mark.slow
@needs_tpu_compiler
@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--target", "v5e:2x2"], 0, "4 chips of 16 GB"),
        (["--target", "v5p:2x2x1", "--mesh.data", "4"], 0, "a chip sends"),
        (["--target", "v5e:2x3"], 2, "which the compiler refuses"),
        (["--mesh.sequence", "16"], 2, "error: mesh is data 1 x sequence 16 x model 1; expected"),
    ],
)
def test_it_compiles(arguments, status, message):
    run = run_python("-m", "experiments.compile", SMOKE, *arguments)
    assert run.returncode == status, run.stderr[-3000:]
    assert message in run.stdout + run.stderr


@pytest.mark.slow
@needs_gpu_compiler
@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--target", "h100:1"], "1 chips of 63.8 GB"), (["--target=h200:2x8"], "16 chips of 113 GB")],
)
def test_it_compiles_for_gpus(arguments, message):
    run = run_python("-m", "experiments.compile", SMOKE, *arguments)
    assert run.returncode == 0, run.stderr[-3000:]
    assert message in run.stdout


def test_what_does_not_fit_is_read_from_the_refusal():
    message = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
        "required for HLO temporaries (70.19G) exceeds available HBM (15.75G)."
    )
    assert _too_many(RuntimeError(message)) == int(70.19 * 2**30)
    with pytest.raises(RuntimeError, match="something else"):
        _too_many(RuntimeError("something else"))
