"""Configs: what is refused and in which words, on the command line and in a file."""

import dataclasses
import json
import math
import pathlib
import re

import jax
import pytest

import experiments.run
from experiments.config import (
    Config,
    EvaluateConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    to_dict,
)
from experiments.tasks import TASKS, Induction, Recall

ROOT = pathlib.Path(experiments.run.__file__).parent.parent
FILES = sorted((ROOT / "configs").glob("*.py"))
SMOKE = str(ROOT / "configs" / "smoke.py")

LEARNED = ModelConfig(position="learned")
REFUSED = [
    (ModelConfig, {"width": 0}, "width is 0; expected 1 or more"),
    (ModelConfig, {"num_layers": 0}, "num_layers is 0; expected 1 or more"),
    (ModelConfig, {"num_heads": 0}, "num_heads is 0; expected 1 or more"),
    (ModelConfig, {"window": 0}, "window is 0; expected 1 or more"),
    (ModelConfig, {"short_convolution": -1}, "short_convolution is -1; expected 0 or more"),
    (ModelConfig, {"mlp_ratio": -1}, "mlp_ratio is -1; expected 0 or more"),
    (ModelConfig, {"width": 63}, "width is 63; expected a multiple of num_heads"),
    (ModelConfig, {"width": 6, "position": "rotary"}, "width is 6; expected even"),
    (
        ModelConfig,
        {"width": 5, "num_heads": 1, "position": "sinusoidal"},
        "width is 5; expected even",
    ),
    (ModelConfig, {"position": "alibi"}, "position is 'alibi'; expected .*rotary"),
    (OptimizerConfig, {"learning_rate": 0.0}, "learning_rate is 0.0; expected above 0"),
    (OptimizerConfig, {"learning_rate": math.nan}, "learning_rate is nan; expected above 0"),
    (OptimizerConfig, {"learning_rate": math.inf}, "learning_rate is inf; expected above 0"),
    (OptimizerConfig, {"weight_decay": math.nan}, "weight_decay is nan; expected 0 or more"),
    (OptimizerConfig, {"clip_norm": -1.0}, "clip_norm is -1.0; expected above 0"),
    (OptimizerConfig, {"warmup_steps": -1}, "warmup_steps is -1; expected 0 or more"),
    (OptimizerConfig, {"weight_decay": -0.1}, "weight_decay is -0.1; expected 0 or more"),
    (TrainConfig, {"steps": 0}, "steps is 0; expected 1 or more"),
    (TrainConfig, {"batch_size": 0}, "batch_size is 0; expected 1 or more"),
    (TrainConfig, {"steps_per_dispatch": 0}, "steps_per_dispatch is 0; expected 1 or more"),
    (TrainConfig, {"checkpoint_every": 0}, "checkpoint_every is 0; expected 1 or more"),
    (TrainConfig, {"steps": 130}, "steps is 130; expected a multiple of steps_per_dispatch"),
    (
        TrainConfig,
        {"checkpoint_every": 60},
        "checkpoint_every is 60; expected a multiple of steps_per_dispatch",
    ),
    (EvaluateConfig, {"num_answers": 0}, "num_answers is 0; expected 1 or more"),
    (EvaluateConfig, {"batch_size": 0}, "batch_size is 0; expected 1 or more"),
    (EvaluateConfig, {"num_maps": 0}, "num_maps is 0; expected 1 or more"),
    (EvaluateConfig, {"lengths": (8, 0)}, r"lengths is \(8, 0\); expected lengths of 1 or more"),
    (Config, {"mixers": ()}, r"mixers is \(\); expected one or more of attention, window"),
    (Config, {"mixers": ("gru",)}, r"mixers is \('gru',\); expected one or more of attention"),
    (Config, {"mixers": ("window", "window")}, "mixers is .*; expected .* each once"),
    (Config, {"seed": -1}, "seed is -1; expected in"),
    (Config, {"seed": 2**31}, r"seed is 2147483648; expected in \[0, 2\^31 - 1\)"),
    (Config, {"evaluate": EvaluateConfig(lengths=(2,))}, "length is 2, expected at least 3"),
    (
        Config,
        {"task": Recall(), "evaluate": EvaluateConfig(lengths=(64, 65))},
        "length is 65, expected an even number",
    ),
    (
        Config,
        {"model": LEARNED, "evaluate": EvaluateConfig(lengths=(64, 65))},
        r"evaluate.lengths is \(64, 65\); expected none above the task's 64",
    ),
]


@pytest.mark.parametrize(("section", "fields", "message"), REFUSED)
def test_bad_value_is_refused_by_name_value_and_expectation(section, fields, message):
    with pytest.raises(ValueError, match=message):
        section(**fields)


def test_every_number_has_a_value_that_is_refused():
    refused = {(section, name) for section, fields, _ in REFUSED for name in fields}
    for section in (ModelConfig, OptimizerConfig, TrainConfig, EvaluateConfig, Config):
        for field in dataclasses.fields(section):
            if field.type in (int, float):
                assert (section, field.name) in refused


@pytest.mark.parametrize(
    "good",
    [
        ModelConfig(num_layers=1, num_heads=1, width=1, window=1, short_convolution=0),
        ModelConfig(width=8, num_heads=4, position="rotary"),
        ModelConfig(width=2, position="sinusoidal"),
        OptimizerConfig(warmup_steps=0),
        TrainConfig(steps=1, batch_size=1, steps_per_dispatch=1, checkpoint_every=1),
        TrainConfig(steps=25, checkpoint_every=100),
        Config(seed=2**31 - 2),
        Config(model=LEARNED, evaluate=EvaluateConfig(lengths=(32, 64))),
        Config(evaluate=EvaluateConfig(lengths=(3, 4096))),
        Config(mixers=("window",)),
    ],
    ids=repr,
)
def test_extreme_but_good_value_is_accepted(good):
    assert good == dataclasses.replace(good)


@pytest.mark.parametrize(
    "value", [Config(), ModelConfig(), OptimizerConfig(), TrainConfig(), EvaluateConfig()]
)
def test_a_config_cannot_be_changed(value):
    for field in dataclasses.fields(value):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field.name, getattr(value, field.name))
    hash(value)


def test_derived_values():
    config = Config(task=Induction(length=7), train=TrainConfig(steps=50, batch_size=3))
    assert config.tokens == 50 * 3 * 7
    assert config.evaluation_lengths == (7,)
    lengths = dataclasses.replace(config, evaluate=EvaluateConfig(lengths=(8, 9)))
    assert lengths.evaluation_lengths == (8, 9)


@pytest.mark.parametrize("name", TASKS)
def test_a_config_as_plain_values_holds_every_field(name):
    config = Config(task=TASKS[name](), claim="a claim")
    plain = json.loads(json.dumps(to_dict(config)))
    assert plain["task"].pop("name") == name
    assert plain["task"] == dataclasses.asdict(config.task)
    assert set(plain) == {field.name for field in dataclasses.fields(Config)}
    assert plain["model"] == dataclasses.asdict(config.model)
    assert plain["claim"] == "a claim"


class Compiled(AssertionError):
    """Raised where a command line that should stop at once came as far as running."""


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """A function from arguments to exit status, stdout and stderr; nothing may be run."""

    def fail(*_, **__):
        raise Compiled

    monkeypatch.setattr(experiments.run, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(experiments.run, "run", fail)
    monkeypatch.setenv("COLUMNS", "120")
    compiled = []

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
        assert not (tmp_path / "runs").exists()
        return status, out, err

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield start
    jax.monitoring.unregister_event_duration_listener(listen)


def test_a_good_command_line_is_run(command):
    with pytest.raises(Compiled):
        command(SMOKE, "--model.width", "32")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model.widht", "3"), ("--model.widht", "--model.width")),
        (("--widht", "3"), ("--widht",)),
        (("--model.width", "many"), ("--model.width", "'many'")),
        (("--model.width", "64.5"), ("--model.width", "'64.5'")),
        (("--model.width", "0"), ("width is 0", "expected 1 or more")),
        (("--model.width",), ("--model.width",)),
        (("--model.position", "alibi"), ("alibi", "rotary")),
        (("--mixers", "attention", "gru"), ("gru", "expected one or more of attention, window")),
        (("--train.steps", "130"), ("steps is 130", "steps_per_dispatch")),
        (("--task.length", "2"), ("length is 2", "at least 3")),
        (("--task.num-pairs", "2"), ("--task.num-pairs",)),
        (("--evaluate.lengths", "2"), ("length is 2", "at least 3")),
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


def test_help_lists_every_field_with_its_default(command):
    status, out, _ = command(SMOKE, "--help")
    assert status == 0
    out = re.sub(r"[│|]", " ", out)
    config = experiments.run.parse(pathlib.Path(SMOKE), [])

    def check(section, prefix):
        for field in dataclasses.fields(section):
            value = getattr(section, field.name)
            if dataclasses.is_dataclass(value):
                check(value, f"{field.name}.")
                continue
            option = f"--{prefix}{field.name.replace('_', '-')}"
            described = re.search(rf"{option} (.*?\(default: ?(.*?)\))", out, re.DOTALL)
            assert described, option
            kind_and_text, default = (" ".join(group.split()) for group in described.groups())
            assert " --" not in kind_and_text, option
            assert "[STR" in kind_and_text or len(kind_and_text.split()) >= 5, option
            if isinstance(value, int | float):
                assert default == str(value), option

    check(config, "")


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_without_a_config_the_command_lists_those_there_are(command, arguments, monkeypatch):
    monkeypatch.chdir(ROOT)
    status, out, _ = command(*arguments)
    assert status == (0 if arguments else 2)
    assert "python -m experiments.run CONFIG.py" in out
    for file in FILES:
        assert f"configs/{file.name}" in out


def test_a_file_that_is_no_config_is_refused(command, tmp_path):
    status, _, err = command(tmp_path / "missing.py")
    assert status == 2
    assert "missing.py" in err
    (tmp_path / "empty.py").write_text("")
    status, _, err = command(tmp_path / "empty.py")
    assert status == 2
    assert "get_config" in err
    (tmp_path / "notes.txt").write_text("")
    status, _, err = command(tmp_path / "notes.txt")
    assert status == 2
    assert "notes.txt" in err


def test_a_bad_value_in_a_file_is_refused(command, tmp_path):
    (tmp_path / "bad.py").write_text(
        "from experiments.config import Config, ModelConfig\n"
        "def get_config():\n"
        "    return Config(model=ModelConfig(width=0))\n"
    )
    status, _, err = command(tmp_path / "bad.py")
    assert status == 2
    assert "width is 0; expected 1 or more" in err


def test_an_override_replaces_its_field_alone():
    config = experiments.run.parse(pathlib.Path(SMOKE), [])
    other = experiments.run.parse(pathlib.Path(SMOKE), ["--model.num-layers", "3", "--seed", "5"])
    model = dataclasses.replace(config.model, num_layers=3)
    assert other == dataclasses.replace(config, model=model, seed=5)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_config_file_is_complete(file):
    config = experiments.run.parse(file, [])
    assert config.claim.endswith(".")
    source = file.read_text()
    assert f"python -m experiments.run configs/{file.name}\n" in source.split('"""')[1]
    assert len(config.mixers) > 1, "a claim needs something to compare with"


def test_there_are_configs():
    assert len(FILES) >= 4
