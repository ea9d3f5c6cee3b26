"""The command line: what it refuses, and how soon; what --help shows; suites; files of configs."""

import dataclasses
import pathlib
import re

import jax
import pytest

import experiments.run
from experiments.config import Config, Suite, quick
from experiments.records import RunFolder
from experiments.tasks import RepeatedText, corpus

ROOT = pathlib.Path(experiments.run.__file__).parent.parent
FILES = sorted((ROOT / "configs").rglob("*.py"))
SMOKE = ROOT / "configs" / "smoke.py"
SUITE = ROOT / "configs" / "suite_small.py"


class Started(AssertionError):
    """Raised where a command line that should stop at once came as far as running."""


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """A function from arguments to exit status, stdout and stderr; nothing may be run.

    What would set up JAX is replaced, for it cannot be undone.
    """

    def fail(*_, **__):
        raise Started

    prepared, compiled = [], []
    monkeypatch.setattr(experiments.run, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(experiments.run, "run", fail)
    monkeypatch.setattr(experiments.run, "prepare_jax", lambda: prepared.append(True))
    monkeypatch.setenv("COLUMNS", "120")

    def listen(event, *_, **__):
        if "compile" in event:
            compiled.append(event)

    def start(*arguments):
        try:
            status = experiments.run.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        assert not compiled
        assert not prepared
        assert not (tmp_path / "runs").exists()
        return status, out, err

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield start
    jax.monitoring.unregister_event_duration_listener(listen)


def write_config(path, expression):
    path.write_text(
        "from experiments.config import *\nfrom experiments.tasks import *\n"
        f"def get_config():\n    return {expression}\n"
    )


@pytest.mark.parametrize("file", [SMOKE, SUITE], ids=lambda file: file.stem)
def test_a_good_command_line_is_run(command, file):
    with pytest.raises(Started):
        command(file, "--seed", "3")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model.widht", "3"), ("--model.widht", "--model.width")),
        (("--widht", "3"), ("--widht",)),
        (("--model.width", "many"), ("--model.width", "'many'")),
        (("--model.width", "64.5"), ("--model.width", "'64.5'")),
        (("--model.width", "0"), ("width is 0", "expected 1 or more")),
        (("--model.width",), ("--model.width",)),
        (("--model.mixer", "mamba"), ("mixer is 'mamba'", "attention, window")),
        (("--model.position", "t5"), ("t5", "rotary", "alibi")),
        (("--models",), ("models is ()", "one or more")),
        (("--models", "attention", "mamba"), ("models has 'mamba'", "attention, window")),
        (("--models", "gru,position=rotary"), ("mixer is 'gru'", "attention, window", "'rotary'")),
        (("--models", "gru,depth=3"), ("models has 'gru,depth=3'", "FIELD=VALUE", "num_layers")),
        (("--models", "gru,width=many"), ("models has 'gru,width=many'", "type int")),
        (("--models", "gru", "gru"), ("each once",)),
        (("--sweep.learning-rates",), ("learning_rates is ()", "rising order")),
        (("--sweep.learning-rates", "0.1", "fast"), ("--sweep.learning-rates", "'fast'")),
        (("--sweep.seeds", "0"), ("seeds is 0", "expected 1 or more")),
        (("--optimizer.learning-rate", "0.1"), ("--optimizer.learning-rate",)),
        (("--train.steps", "130"), ("steps is 130", "steps_per_dispatch")),
        (("--train.stop-accuracy", "2"), ("stop_accuracy is 2.0", "(0, 1], or None")),
        (("--train.stop-accuracy", "never"), ("--train.stop-accuracy",)),
        (("--task.length", "2"), ("length is 2", "at least 3")),
        (("--task.num-pairs", "2"), ("--task.num-pairs",)),
        (("--evaluate.lengths", "2"), ("length is 2", "at least 3")),
        (("--evaluate.cost-lengths", "2"), ("length is 2", "at least 3")),
        (("--seed", "-1"), ("seed is -1",)),
        (("stray",), ("stray",)),
    ],
)
def test_bad_argument_stops_at_once_and_says_what_is_wrong(command, arguments, words):
    status, out, err = command(SMOKE, *arguments)
    assert status == 2
    assert not out
    for word in words:
        assert word in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--members",), ("members is ()", "one or more")),
        (("--members", "small/recall.py", "small/recall.py"), ("no two of one name",)),
        (("--members", "small/recal.py"), ("recal.py", "expected a file")),
        (("--members", "suite_small.py"), ("members has 'suite_small.py'", "not of a suite")),
        (("--mesh.sequence", "7"), ("small/recall.py: mesh.sequence is 7", "expected a divisor")),
        (("--seed", "-1"), ("seed is -1",)),
        (("--add-models", "gruu"), ("small/recall.py: models has 'gruu'", "one of attention,")),
        (("--model.width", "8"), ("--model.width",)),
        (("--quick", "7"), ("7",)),
    ],
)
def test_bad_argument_of_a_suite_stops_at_once(command, arguments, words):
    status, out, err = command(SUITE, *arguments)
    assert status == 2
    assert not out
    for word in words:
        assert word in err
    assert "Traceback" not in err


def assert_lists_every_field(out, section, prefix=""):
    """Each with its kind, what it is, and its default."""
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            assert_lists_every_field(out, value, f"{prefix}{field.name}.")
            continue
        option = f"--{prefix}{field.name.replace('_', '-')}"
        described = re.search(rf"^ *{option}\b(.*?\(default: ?(.*?)\))", out, re.DOTALL | re.M)
        assert described, option
        kind_and_text, default = (" ".join(group.split()) for group in described.groups())
        assert " --" not in re.sub(r", --[\w.]*no-", "", kind_and_text), option
        assert len(kind_and_text.split()) >= 5, f"{option} is not explained"
        if isinstance(value, int | float | None):
            assert default == str(value), option
        elif isinstance(value, tuple) and option != "--members":
            assert default == " ".join(map(str, value)), option


@pytest.mark.parametrize("file", [SMOKE, SUITE], ids=lambda file: file.stem)
def test_help_lists_every_field_with_its_default(command, file):
    status, out, _ = command(file, "--help")
    assert status == 0
    default, description = experiments.run.read_config(file)
    assert f"usage: python -m experiments.run {file}" in out
    assert description.strip().splitlines()[0] in out
    assert_lists_every_field(re.sub(r"[│|]", " ", out), default)


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_without_a_config_the_command_lists_those_there_are(command, arguments, monkeypatch):
    monkeypatch.chdir(ROOT)
    status, out, _ = command(*arguments)
    assert status == (0 if arguments else 2)
    assert "python -m experiments.run CONFIG.py" in out
    listed = re.findall(r"^  (.*\.py)$", out, re.MULTILINE)
    assert listed == sorted(str(file.relative_to(ROOT)) for file in FILES)


def test_where_there_are_no_configs_the_command_says_so(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "configs here: none" in command("--help")[1]


def test_a_file_that_is_no_config_is_refused(command, tmp_path):
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "notes.txt").write_text("")
    for name, words in (
        ("missing.py", "missing.py"),
        ("empty.py", "get_config"),
        ("notes.txt", "notes.txt"),
        ("", "expected a file"),
    ):
        status, out, err = command(tmp_path / name)
        assert status == 2
        assert not out
        assert words in err


def test_a_bad_value_in_a_file_is_refused(command, tmp_path):
    write_config(tmp_path / "bad.py", "Config(model=ModelConfig(width=0))")
    status, _, err = command(tmp_path / "bad.py")
    assert status == 2
    assert "width is 0; expected 1 or more" in err
    write_config(tmp_path / "member.py", "Suite('a claim', ('smoke.py', 'bad.py'))")
    write_config(tmp_path / "smoke.py", "Config()")
    status, _, err = command(tmp_path / "member.py")
    assert status == 2
    assert "width is 0; expected 1 or more" in err


@pytest.mark.parametrize("lengths", ["lengths=(9, 99)", "cost_lengths=(99,)"])
def test_data_too_small_for_a_length_stops_before_anything_is_made(command, tmp_path, lengths):
    (tmp_path / "text.txt").write_text("0123456789" * 30)
    task = f"RepeatedText(num_characters=5, path={str(tmp_path / 'text.txt')!r})"
    write_config(tmp_path / "text.py", f"Config(task={task}, evaluate=EvaluateConfig({lengths}))")
    status, out, err = command(tmp_path / "text.py")
    corpus.read.cache_clear()
    assert status == 1
    assert not out
    assert "num_characters is 50" in err
    assert "Traceback" not in err


def test_a_missing_file_of_data_stops_before_anything_is_made(command):
    config = ROOT / "configs" / "repeated_text.py"
    status, _, err = command(config, "--task.path", "nowhere")
    assert status == 1
    assert "path is 'nowhere'" in err


def test_an_override_replaces_its_field_alone():
    config = experiments.run.parse(SMOKE, [])["smoke"]
    assert config == experiments.run.read_config(SMOKE)[0]
    arguments = (
        "--model.num-layers 3 --seed 5 --models gru attention,width=8 --sweep.learning-rates"
    )
    other = experiments.run.parse(SMOKE, [*arguments.split(), "0.1", "0.2"])
    assert other == {
        "smoke": dataclasses.replace(
            config,
            model=dataclasses.replace(config.model, num_layers=3),
            seed=5,
            models=("gru", "attention,width=8"),
            sweep=dataclasses.replace(config.sweep, learning_rates=(0.1, 0.2)),
        )
    }


def test_none_and_numbers_are_read_from_the_command_line():
    for text, value in (("None", None), ("0.5", 0.5)):
        (config,) = experiments.run.parse(SMOKE, ["--train.stop-accuracy", text]).values()
        assert config.train.stop_accuracy == value


def test_a_suite_is_its_members_in_order():
    suite, _ = experiments.run.read_config(SUITE)
    members = experiments.run.parse(SUITE, [])
    assert list(members) == [pathlib.Path(name).stem for name in suite.members]
    alone = {
        pathlib.Path(name).stem: dataclasses.replace(
            experiments.run.read_config(SUITE.parent / name)[0], seed=suite.seed
        )
        for name in suite.members
    }
    assert members == alone
    quickly = experiments.run.parse(SUITE, ["--quick", "--seed", "7"])
    assert quickly == {
        name: quick(dataclasses.replace(config, seed=7)) for name, config in alone.items()
    }
    few = experiments.run.parse(SUITE, ["--members", "smoke.py", "small/copy.py"])
    smoke = experiments.run.parse(SMOKE, [f"--seed={suite.seed}"])["smoke"]
    assert few == {"smoke": smoke, "copy": alone["copy"]}


def test_a_suite_compares_a_model_more(tmp_path):
    arguments = ["--members", "smoke.py", "small/copy.py", "--quick"]
    few = experiments.run.parse(SUITE, arguments)
    more = ["--add-models", "attention", "lstm,width=8"]
    chosen = experiments.run.choose(SUITE, [*arguments, *more])
    with_more = experiments.run.members(chosen, SUITE)
    assert with_more == {
        name: dataclasses.replace(config, models=(*config.models, "lstm,width=8"))
        for name, config in few.items()
    }
    folders = []
    for name, config in with_more.items():
        folders.append(RunFolder.of(config, name, tmp_path))
        folders[-1].write_config(config)
        assert folders[-1].path == RunFolder.of(few[name], name, tmp_path).path
    whole = dataclasses.replace(chosen, quick=False)
    commands = experiments.run.commands_of(whole, folders, SUITE)
    for folder, arguments in zip(folders, commands.values(), strict=True):
        path = pathlib.Path(arguments[0])
        again = experiments.run.parse(path, arguments[1:])[path.stem]
        assert (again.models, again.seed) == (folder.config.models, chosen.seed)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_config_file_is_complete(file):
    default, description = experiments.run.read_config(file)
    assert default.claim.endswith(".")
    command = f"python -m experiments.run {file.relative_to(ROOT).as_posix()}"
    assert f"\nCommand   {command}\n" in description
    assert description.splitlines()[0].endswith((".", "?"))
    if isinstance(default, Suite):
        assert len(default.members) > 1
        for name in default.members:
            assert (file.parent / name) in FILES
    else:
        assert len(default.models) > 1, "a claim needs something to compare with"


def test_there_are_configs():
    defaults = {file: experiments.run.read_config(file)[0] for file in FILES}
    assert sum(isinstance(default, Config) for default in defaults.values()) >= 10
    assert sum(isinstance(default, Suite) for default in defaults.values()) >= 1
    tasks = {type(c.task) for c in defaults.values() if isinstance(c, Config)}
    assert RepeatedText in tasks
    assert len(tasks) >= 8
