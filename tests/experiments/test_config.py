"""Configs: what is refused and in which words, what a model's name means, which seeds are used."""

import dataclasses
import json
import math
import pathlib

import pytest

import experiments.run
from experiments.config import (
    MAX_SEED,
    Config,
    EvaluateConfig,
    ModelConfig,
    OptimizerConfig,
    Suite,
    SweepConfig,
    TrainConfig,
    from_dict,
    quick,
    to_dict,
)
from experiments.evaluate import ROWS_SEED
from experiments.models import MIXERS, POSITIONS
from experiments.tasks import TASKS, Adding, CopyMemory, Induction, ListOps, Recall, RepeatedText

ROOT = pathlib.Path(experiments.run.__file__).parent.parent
FILES = sorted((ROOT / "configs").rglob("*.py"))
SECTIONS = (ModelConfig, OptimizerConfig, SweepConfig, TrainConfig, EvaluateConfig, Config, Suite)

LEARNED = ModelConfig(position="learned")
ROTARY = ModelConfig(position="rotary")
REFUSED = [
    (ModelConfig, {"mixer": "mamba"}, "mixer is 'mamba'; expected one of attention, window, none"),
    (ModelConfig, {"width": 0}, "width is 0; expected 1 or more"),
    (ModelConfig, {"num_layers": 0}, "num_layers is 0; expected 1 or more"),
    (ModelConfig, {"num_heads": 0}, "num_heads is 0; expected 1 or more"),
    (ModelConfig, {"window": 0}, "window is 0; expected 1 or more"),
    (ModelConfig, {"short_convolution": -1}, "short_convolution is -1; expected 0 or more"),
    (ModelConfig, {"mlp_ratio": -1}, "mlp_ratio is -1; expected 0 or more"),
    (ModelConfig, {"dtype": "float16"}, "dtype is 'float16'; expected one of float32, bfloat16"),
    (ModelConfig, {"width": 63}, "width is 63; expected a multiple of num_heads"),
    (
        ModelConfig,
        {"width": 6, "position": "rotary"},
        "width is 6; .* multiple of 4 .*rotary",
    ),
    (
        ModelConfig,
        {"width": 5, "num_heads": 1, "position": "sinusoidal"},
        "width is 5; expected a multiple of 2 .*sinusoidal",
    ),
    (ModelConfig, {"position": "t5"}, "position is 't5'; expected one of none, .*rotary, alibi"),
    *(
        (
            ModelConfig,
            {"mixer": name, "position": position},
            f"mixer is '{name}'; expected one of attention, window for .* '{position}'",
        )
        for name, mixer in MIXERS.items()
        for position, code in POSITIONS.items()
        if code.needs_scores and not mixer.takes_scores
    ),
    (OptimizerConfig, {"weight_decay": math.nan}, "weight_decay is nan; expected 0 or more"),
    (OptimizerConfig, {"weight_decay": math.inf}, "weight_decay is inf; expected 0 or more"),
    (OptimizerConfig, {"weight_decay": -0.1}, "weight_decay is -0.1; expected 0 or more"),
    (OptimizerConfig, {"decay_share": 1.1}, r"decay_share is 1.1; expected in \[0, 1\]"),
    (OptimizerConfig, {"clip_norm": 0.0}, "clip_norm is 0.0; expected above 0"),
    (OptimizerConfig, {"clip_norm": math.nan}, "clip_norm is nan; expected above 0"),
    (OptimizerConfig, {"warmup_steps": -1}, "warmup_steps is -1; expected 0 or more"),
    *(
        (SweepConfig, {"learning_rates": rates}, "learning_rates is .*; expected one or more rates")
        for rates in [(), (0.0, 0.1), (-0.1,), (math.nan,), (math.inf,), (0.1, 0.1), (0.2, 0.1)]
    ),
    (SweepConfig, {"tuning_seeds": 0}, "tuning_seeds is 0; expected 1 or more"),
    (SweepConfig, {"seeds": 0}, "seeds is 0; expected 1 or more"),
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
    *(
        (TrainConfig, {"stop_accuracy": share}, f"stop_accuracy is {share}; expected in .*, or N")
        for share in (0.0, -0.5, 1.01, math.nan)
    ),
    (EvaluateConfig, {"num_answers": 0}, "num_answers is 0; expected 1 or more"),
    (EvaluateConfig, {"batch_size": 0}, "batch_size is 0; expected 1 or more"),
    (EvaluateConfig, {"num_probe_rows": -1}, "num_probe_rows is -1; expected 0 or more"),
    (EvaluateConfig, {"lengths": (8, 0)}, r"lengths is \(8, 0\); expected lengths of 1 or more"),
    (EvaluateConfig, {"cost_lengths": (0,)}, r"cost_lengths is \(0,\); expected lengths of 1"),
    *(
        (EvaluateConfig, {"success_accuracy": share}, f"success_accuracy is {share}; expected in ")
        for share in (0.0, 1.01, math.nan)
    ),
    (Config, {"models": ()}, r"models is \(\); expected one or more, each once"),
    (Config, {"models": ("gru", "gru")}, r"models is \('gru', 'gru'\); expected .* each once"),
    (Config, {"models": ("attention", "mamba")}, "models has 'mamba': mixer is 'mamba'; expected"),
    (Config, {"models": ("gru",), "model": ROTARY}, "models has 'gru': mixer is 'gru'; expected"),
    (Config, {"seed": -1}, "seed is -1; expected in"),
    (Config, {"seed": MAX_SEED}, r"seed is 1073741824; expected in \[0, 1073741820\)"),
    (
        Config,
        {"seed": MAX_SEED - 8, "sweep": SweepConfig(seeds=9)},
        r"seed is 1073741816; expected in \[0, 1073741816\)",
    ),
    (Config, {"evaluate": EvaluateConfig(lengths=(2,))}, "length is 2, expected at least 3"),
    (Config, {"evaluate": EvaluateConfig(cost_lengths=(2,))}, "length is 2, expected at least 3"),
    (
        Config,
        {"task": Recall(), "evaluate": EvaluateConfig(lengths=(64, 65))},
        "length is 65, expected an even number",
    ),
    *(
        (Config, values, "has 65; expected none above the task's 64, .* learned position code")
        for values in (
            {"model": LEARNED, "evaluate": EvaluateConfig(lengths=(64, 65))},
            {"model": LEARNED, "evaluate": EvaluateConfig(cost_lengths=(65,))},
            {
                "models": ("attention", "gru,position=learned"),
                "evaluate": EvaluateConfig(lengths=(65,)),
            },
        )
    ),
    *(
        (Suite, {"claim": "", "members": members}, r"members is \(.*\); expected one or more")
        for members in [(), ("a.py", "a.py"), ("small/a.py", "large/a.py")]
    ),
]


@pytest.mark.parametrize(("section", "fields", "message"), REFUSED)
def test_bad_value_is_refused_by_name_value_and_expectation(section, fields, message):
    with pytest.raises(ValueError, match=message):
        section(**fields)


def test_every_number_has_a_value_that_is_refused():
    refused = {(section, name) for section, fields, _ in REFUSED for name in fields}
    unlimited = {(Suite, "seed")}  # the members' own configs refuse it
    for section in SECTIONS:
        for field in dataclasses.fields(section):
            if any(kind in str(field.type) for kind in ("int", "float")):
                assert (section, field.name) in refused | unlimited


@pytest.mark.parametrize(
    "good",
    [
        ModelConfig(num_layers=1, num_heads=1, width=1, window=1, short_convolution=0),
        ModelConfig(width=8, num_heads=4, position="rotary"),
        ModelConfig(width=2, position="sinusoidal"),
        *(ModelConfig(mixer=mixer, position="sinusoidal") for mixer in MIXERS),
        *(ModelConfig(mixer="window", position=p) for p in ("rotary", "alibi", "relative")),
        OptimizerConfig(warmup_steps=0),
        SweepConfig(learning_rates=(1e-9, 10.0), tuning_seeds=1, seeds=1),
        TrainConfig(steps=1, batch_size=1, steps_per_dispatch=1, checkpoint_every=1),
        TrainConfig(steps=25, checkpoint_every=100, stop_accuracy=1.0),
        EvaluateConfig(success_accuracy=1.0, num_answers=1, num_probe_rows=1),
        Config(seed=MAX_SEED - 7),
        Config(model=LEARNED, evaluate=EvaluateConfig(lengths=(32, 64), cost_lengths=(64,))),
        Config(evaluate=EvaluateConfig(lengths=(3, 4096), cost_lengths=(4096,))),
        Config(models=("window",)),
        Config(models=("gru", "gru,width=32"), model=ModelConfig(width=16)),
        Suite(claim="", members=("a.py", "b.py")),
    ],
    ids=repr,
)
def test_extreme_but_good_value_is_accepted(good):
    assert good == dataclasses.replace(good)


@pytest.mark.parametrize("section", SECTIONS)
def test_a_config_cannot_be_changed(section):
    value = Suite("", ("a.py",)) if section is Suite else section()
    for field in dataclasses.fields(value):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field.name, getattr(value, field.name))
    hash(value)


def test_a_name_is_a_mixer_and_what_differs_from_the_model_of_all():
    shared = ModelConfig(width=24, num_heads=1, window=5)
    config = Config(model=shared)
    for mixer in MIXERS:
        assert config.model_of(mixer) == dataclasses.replace(shared, mixer=mixer)
    assert config.model_of("attention,position=rotary") == dataclasses.replace(
        shared, position="rotary"
    )
    assert config.model_of("gru,dtype=bfloat16") == dataclasses.replace(
        shared, mixer="gru", dtype="bfloat16"
    )
    assert config.model_of("gru,short_convolution=0,width=128") == dataclasses.replace(
        shared, mixer="gru", short_convolution=0, width=128
    )


def test_a_name_can_undo_what_its_mixer_does_not_take():
    config = Config(models=("attention", "gru,position=none"), model=ROTARY)
    assert config.model_of("gru,position=none") == ModelConfig(mixer="gru")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mamba", "models has 'mamba': mixer is 'mamba'; expected one of attention, window"),
        ("", "models has '': mixer is ''; expected one of attention, window"),
        ("width=8", "models has 'width=8': mixer is 'width=8'; expected one of attention"),
        (
            "gru,",
            "'gru,'; expected .* FIELD=VALUE after commas, FIELD being one of dtype, mlp_ratio",
        ),
        ("gru,depth=2", "'gru,depth=2'; expected .* one of .*num_layers, position, .*window$"),
        ("gru,mixer=lstm", "'gru,mixer=lstm'; expected a mixer and changes"),
        ("gru, width=8", "'gru, width=8'; expected a mixer and changes"),
        ("gru,width", "'gru,width'; expected width to be of type int"),
        ("gru,width=", "'gru,width='; expected width to be of type int"),
        ("gru,width=many", "'gru,width=many'; expected width to be of type int"),
        ("gru,width=8.5", "'gru,width=8.5'; expected width to be of type int"),
        ("gru,width=0", "'gru,width=0': width is 0; expected 1 or more"),
        ("attention,width=63", "'attention,width=63': width is 63; expected a multiple of num_h"),
        ("attention,position=t5", "'attention,position=t5': position is 't5'; expected one of non"),
        ("gru,dtype=half", "'gru,dtype=half': dtype is 'half'; expected one of float32, bfloat16"),
        ("gru,position=alibi", "'gru,position=alibi': mixer is 'gru'; expected one of attention"),
    ],
)
def test_a_name_without_meaning_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        Config().model_of(name)
    with pytest.raises(ValueError, match=message):
        Config(models=("attention", name))


@pytest.mark.parametrize(
    ("default", "written", "expected"), [(True, "False", False), (0.5, "0.25", 0.25)]
)
def test_a_setting_of_any_type_can_be_in_a_name(monkeypatch, default, written, expected):
    """What a mixer of one's own adds to ``ModelConfig``."""
    extended = dataclasses.make_dataclass(
        "Extended", [("own", type(default), default)], bases=(ModelConfig,), frozen=True
    )
    monkeypatch.setattr("experiments.config.ModelConfig", extended)
    config = Config(model=extended())
    assert config.model_of(f"gru,own={written}").own == expected
    with pytest.raises(ValueError, match=f"expected own to be of type {type(default).__name__}"):
        config.model_of("gru,own=some")


def test_a_setting_that_no_name_can_have_is_refused(monkeypatch):
    field = ("own", tuple, ())
    extended = dataclasses.make_dataclass("Extended", [field], bases=(ModelConfig,), frozen=True)
    monkeypatch.setattr("experiments.config.ModelConfig", extended)
    with pytest.raises(ValueError, match="own to be of type one that can be written in a name"):
        Config(model=extended()).model_of("gru,own=1")


def test_derived_values():
    train = TrainConfig(steps=50, batch_size=3)
    config = Config(task=Induction(length=7), train=train, seed=4)
    assert config.tokens_per_run == 50 * 3 * 7
    assert config.evaluation_lengths == (7,)
    lengths = dataclasses.replace(config, evaluate=EvaluateConfig(lengths=(8, 9)))
    assert lengths.evaluation_lengths == (8, 9)
    sweep = SweepConfig(learning_rates=(0.1, 0.2, 0.3), tuning_seeds=2, seeds=4)
    searched = dataclasses.replace(config, sweep=sweep)
    assert searched.reported_seeds == (4, 5, 6, 7)
    assert len(searched.tuning_seeds) == 2
    assert searched.runs_per_model == 3 * 2 + 4
    one_rate = dataclasses.replace(sweep, learning_rates=(0.1,))
    unsearched = dataclasses.replace(config, sweep=one_rate)
    assert unsearched.tuning_seeds == ()
    assert unsearched.reported_seeds == (4, 5, 6, 7)
    assert unsearched.runs_per_model == 4


@pytest.mark.parametrize("sweep", [SweepConfig(), SweepConfig(seeds=1, tuning_seeds=30)])
def test_seeds_of_runs_of_searches_and_of_rows_are_apart(sweep):
    last = MAX_SEED - sweep.seeds
    searched = Config(sweep=sweep).tuning_seeds
    for seed in (0, 1, last):
        config = Config(seed=seed, sweep=sweep)
        assert config.reported_seeds[0] == seed
        seeds = [*config.reported_seeds, *config.tuning_seeds, *ROWS_SEED.values()]
        assert len(set(seeds)) == sweep.seeds + sweep.tuning_seeds + 2
        assert min(seeds) >= 0
        assert max(seeds) < 2**31, "an int32 holds every seed"
        assert config.tuning_seeds == searched, "so a repetition trains at the same rates"
    with pytest.raises(ValueError, match=f"seed is {last + 1}"):
        Config(seed=last + 1, sweep=sweep)


UNUSUAL = {
    "repeated_text": RepeatedText(num_characters=12, path="a folder"),
    "recall": Recall(vocab_size=32, length=32, num_pairs=3, slot_power=0.5),
    "adding": Adding(length=20, tolerance=0.1),
    "copy_memory": CopyMemory(delay=9),
    "list_ops": ListOps(max_length=64, min_length=8, num_rows=32),
}


@pytest.mark.parametrize("name", TASKS)
def test_plain_values_hold_every_field_and_give_the_config_back(name):
    for task in (TASKS[name](), UNUSUAL.get(name, TASKS[name]())):
        config = Config(
            task=task,
            claim="a claim",
            models=("attention", "gru,width=8"),
            model=ModelConfig(width=32, position="sinusoidal"),
            optimizer=OptimizerConfig(weight_decay=0.5),
            sweep=SweepConfig(learning_rates=(0.1,), seeds=3),
            train=TrainConfig(stop_accuracy=0.5),
            evaluate=EvaluateConfig(lengths=(task.length,), cost_lengths=(task.length,)),
            seed=7,
        )
        plain = json.loads(json.dumps(to_dict(config)))
        assert from_dict(plain) == config
        assert from_dict(to_dict(config)) == config
        everything = {field.name for field in dataclasses.fields(Config)}
        assert set(plain) == everything - {"mesh", "processes"}, "what determines the numbers"
        assert plain["task"].pop("name") == name
        assert plain["task"] == json.loads(json.dumps(dataclasses.asdict(task)))
        assert plain["model"] == dataclasses.asdict(config.model)
        assert plain["claim"] == "a claim"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_config_files_survive_plain_values(file):
    for config in experiments.run.parse(file, []).values():
        assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_a_quick_config_does_a_part_of_the_work_and_nothing_else():
    config = Config(
        models=("attention", "attention,position=alibi", "window", "ssd", "gru", "ssd,num_heads=1"),
        sweep=SweepConfig(learning_rates=(0.1, 0.2, 0.3), seeds=9),
        train=TrainConfig(steps=1000, batch_size=8, stop_accuracy=0.9),
        evaluate=EvaluateConfig(lengths=(16, 32, 64, 128), cost_lengths=(8, 16, 32), batch_size=4),
        seed=3,
    )
    short = quick(config)
    assert short == dataclasses.replace(
        config,
        models=("attention", "attention,position=alibi", "window", "ssd"),
        model=ModelConfig(num_layers=1),
        sweep=SweepConfig(learning_rates=(0.2,), seeds=2),
        train=TrainConfig(steps=250, batch_size=8, stop_accuracy=0.9, checkpoint_every=250),
        evaluate=dataclasses.replace(
            config.evaluate, num_answers=1000, lengths=(16, 32, 64), cost_lengths=(8, 16)
        ),
    )
    assert short.tokens_per_run * 4 == config.tokens_per_run
    assert short.runs_per_model == 2
    least = Config(
        train=TrainConfig(steps=25, checkpoint_every=25), evaluate=EvaluateConfig(num_answers=5)
    )
    assert quick(least).train == least.train
    assert quick(least).evaluate.num_answers == 5


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_config_can_be_quick(file):
    for config in experiments.run.parse(file, []).values():
        short = quick(config)
        assert set(short.models) <= set(config.models)
        assert short.models[0] == config.models[0]
        mixers = {config.model_of(name).mixer for name in config.models}
        has_recurrence = any(not MIXERS[mixer].has_weights for mixer in mixers)
        few = {short.model_of(name).mixer for name in short.models}
        assert any(not MIXERS[mixer].has_weights for mixer in few) == has_recurrence
        assert ("window" in few) == ("window" in mixers), "or no figure would show a reach"
        widths = [{c.model_of(name).width for name in c.models} for c in (short, config)]
        assert widths[0] == widths[1], "or the figure by width would be lost"
        assert short.train.steps <= config.train.steps
        assert quick(short).train.steps_per_dispatch == config.train.steps_per_dispatch
