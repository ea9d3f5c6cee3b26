"""What is seen inside a model, where it is known by construction."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments import probes
from experiments.models.decoder import build_decoder
from experiments.probes import Spans
from experiments.tasks import (
    UNASKED,
)
from tests.experiments.probed import (
    CARRIED,
    CONFIGS,
    DIGITS,
    INDUCTION,
    RECALL,
    TEXT,
    draw_params,
    drawn,
    expected_spans,
    questions_of,
    reach_of,
)

pytestmark = pytest.mark.usefixtures("quick_to_compile", "quick_keys")


def without_queries(params):
    """The same parameters with all scores 0: every head looks at all it sees alike."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: np.zeros_like(x) if "query" in jax.tree_util.keystr(path) else x, params
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_spans_are_where_the_sources_stand(name):
    config = CONFIGS[name]
    spans = probes.spans_of(config, "attention", drawn(config))
    expected = list(expected_spans(config))
    assert len(expected) == len(spans.row) > 0
    for row, answer, asked, places, is_first, end, (*of_loop, in_loop) in zip(
        *spans, expected, strict=True
    ):
        assert (row, answer, asked) == tuple(of_loop)
        assert end == max(in_loop), "one layer carries it no further"
        assert places[is_first].tolist() == in_loop
        assert set(places) == set(in_loop)


def test_a_span_ends_at_its_question():
    rows = drawn(INDUCTION)._replace(sources=np.full((4, 1), 10))
    spans = probes.spans_of(INDUCTION, "attention", rows)
    assert spans.places.tolist() == [[10, 11, 11]] * 4
    assert spans.is_first.tolist() == [[True, True, False]] * 4


@pytest.mark.parametrize(
    ("config", "model"),
    [(RECALL, "attention"), (DIGITS, "window"), (TEXT, "attention")],
    ids=["recall", "digits", "text"],
)
def test_weight_on_the_source_where_all_is_seen_alike(config, model):
    params, batch = without_queries(draw_params(config, model)), drawn(config)
    maps, predicted = probes.attention_maps(config, model, batch)(params)
    result = probes.mass_on_source(maps, probes.spans_of(config, model, batch))

    mass, uniform = [], []
    for _, _, position, places in expected_spans(config):
        seen = range(position + 1)
        if model == "window":
            seen = seen[-config.model.window :]
        mass.append(sum(p in seen for p in places) / len(seen))
        uniform.append(len(places) / (position + 1))
    shape = (config.model.num_layers, config.model.num_heads)
    np.testing.assert_allclose(result["mass_on_source"], np.full(shape, np.mean(mass)), rtol=1e-5)
    assert result["uniform"] == pytest.approx(np.mean(uniform))
    assert (model == "attention") == (np.mean(mass) == pytest.approx(np.mean(uniform)))
    assert json.loads(json.dumps(result)) == result

    length = config.task.length
    distance = np.subtract.outer(np.arange(length), np.arange(length))
    sees = (distance >= 0) & ((distance < config.model.window) | (model == "attention"))
    every = np.broadcast_to(sees / sees.sum(1, keepdims=True), maps.shape)
    assert maps.shape == (shape[0], len(batch.inputs), shape[1], length, length)
    np.testing.assert_allclose(maps, every, atol=6e-5)
    assert predicted.shape == batch.targets.shape


def test_best_head_is_the_one_that_looks_at_sources_most():
    spans = probes.spans_of(INDUCTION, "attention", drawn(INDUCTION))
    maps = np.random.default_rng(0).dirichlet(np.ones(12), (2, 4, 3, 12))
    expected = np.zeros((2, 3))
    for layer, head in np.ndindex(2, 3):
        for row, _, asked, places in expected_spans(INDUCTION):
            expected[layer, head] += maps[layer, row, head, asked, places].sum() / 4
    result = probes.mass_on_source(maps, spans)
    np.testing.assert_allclose(result["mass_on_source"], expected)
    layer, head = np.unravel_index(expected.argmax(), expected.shape)
    assert (result["best"]["layer"], result["best"]["head"]) == (layer, head)
    assert result["best"]["mass"] == pytest.approx(expected.max())


@pytest.mark.parametrize("name", CONFIGS)
def test_as_many_other_keys_of_the_past_are_blocked_elsewhere(name):
    config = CONFIGS[name]
    shape = drawn(config).inputs.shape[:2]
    cases = probes.blocked_pairs(probes.spans_of(config, "attention", drawn(config)), *shape)
    assert not cases["open"].any()
    source, elsewhere = np.zeros((2, *shape, shape[1]), bool)
    for row, _, asked, places in expected_spans(config):
        source[row, asked, places] = True
        chosen = cases["elsewhere"][row, asked]
        assert chosen.sum() == min(len(places), asked + 1 - len(places))
        assert not chosen[asked + 1 :].any()
        elsewhere[row, asked] = chosen
    np.testing.assert_array_equal(cases["source"], source)
    np.testing.assert_array_equal(cases["elsewhere"], elsewhere)
    assert not (source & elsewhere).any()


def test_every_other_key_of_the_past_can_be_blocked_elsewhere():
    many = np.arange(2000)
    places = np.full((2000, 1), 3) + np.arange(2)
    asked = np.full(2000, 7)
    zeros, is_first = np.zeros_like(many), np.ones((2000, 2), bool)
    spans = Spans(many, zeros, asked, places, is_first, places[:, 1])
    counts = probes.blocked_pairs(spans, 2000, 9)["elsewhere"][:, 7].sum(0)
    assert (counts[[0, 1, 2, 5, 6, 7]] > 200).all()
    assert not counts[[3, 4, 8]].any()
    one = np.array([1])
    whole = Spans(*(x[:1] for x in (many, many, one, np.array([[0, 1]]), is_first, one)))
    assert not probes.blocked_pairs(whole, 1, 2)["elsewhere"].any(), "there is no other key"


@pytest.mark.parametrize("name", ["recall", "digits", "copy"])
def test_blocking_takes_away_what_was_read_there_and_nothing_else(name):
    config = CONFIGS[name]
    batch, params = drawn(config), draw_params(config, "attention")
    spans = probes.spans_of(config, "attention", batch)
    decoder = build_decoder(config.task, config.model_of("attention"))
    say = jax.jit(
        lambda b: decoder.apply({"params": params}, batch.inputs, batch.positions, blocked=b)
    )
    free = np.asarray(jax.jit(decoder.apply)({"params": params}, batch.inputs, batch.positions))
    cases = probes.blocked_pairs(spans, *batch.inputs.shape[:2])
    said = {case: np.asarray(say(blocked)) for case, blocked in cases.items()}
    np.testing.assert_allclose(said["open"], free, rtol=1e-4, atol=1e-5)
    with_source = np.zeros(batch.targets.shape, bool)
    with_source[spans.row, spans.answer] = True
    for case in ("source", "hidden", "elsewhere"):
        change = np.abs(said[case] - free).max(axis=-1)
        assert (change[with_source] > 1e-4).all()
        if case != "hidden":
            np.testing.assert_allclose(change[~with_source], 0, atol=1e-4)

    # Were each question's answer what is said when its case is blocked, all would be right.
    for case, logits in said.items():
        rows = batch._replace(targets=np.where(with_source, logits.argmax(-1), batch.targets))
        result = probes.blocked_accuracy(config, "attention", rows, spans)(params)
        assert set(result) == {"answers", *cases}
        assert result[case] == 1.0
        for other, expected in said.items():
            right = expected.argmax(-1) == rows.targets
            assert result[other] == pytest.approx(right[with_source].mean())


@pytest.mark.parametrize("name", ["recall", "induction"])
def test_nothing_of_a_hidden_source_reaches_its_question(name):
    model = dataclasses.replace(CARRIED, num_layers=2)
    config = dataclasses.replace(CONFIGS[name], model=model)
    batch, params = drawn(config), draw_params(config, "attention")
    spans = probes.spans_of(config, "attention", batch)
    blocked = probes.blocked_pairs(spans, *batch.inputs.shape[:2])
    decoder = build_decoder(config.task, config.model_of("attention"))
    say = jax.jit(
        lambda inputs, b: decoder.apply({"params": params}, inputs, batch.positions, blocked=b)
    )
    far = spans.asked > spans.end
    assert far.any()
    for row, answer in zip(spans.row[far], spans.answer[far], strict=True):
        inputs = np.array(batch.inputs)
        inputs[row, batch.sources[row, answer]] = 1
        assert (inputs != batch.inputs).any() or batch.targets[row, answer] == 1
        before, after = (say(x, blocked["hidden"])[row, answer] for x in (batch.inputs, inputs))
        np.testing.assert_array_equal(before, after)
    through = [say(x, blocked["source"])[row, answer] for x in (batch.inputs, inputs)]
    assert np.abs(through[0] - through[1]).max() > 1e-3, "through a third position it does"


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 17, 17)])
def test_packed_maps_are_kept_to_a_byte(shape):
    maps = np.random.default_rng(0).random(shape)
    maps.flat[0] = 1.0
    text = json.loads(json.dumps(probes.packed(maps)))
    found = probes.unpacked(text)
    assert found.shape == shape
    np.testing.assert_allclose(np.sqrt(found), np.sqrt(maps), atol=0.5 / 255 + 1e-9)
    assert found.flat[0] == 1.0


@pytest.mark.parametrize("name", CONFIGS)
def test_examples_show_rows_as_a_person_reads_them(name):
    config, batch = CONFIGS[name], drawn(CONFIGS[name])
    length, is_number = config.task.length, config.task.num_classes is None
    maps = np.random.default_rng(0).random((1, len(batch.inputs), 2, length, length))
    predicted = batch.targets + (0.5 if is_number else 0)
    found = probes.examples(config, batch, maps, predicted)
    assert json.loads(json.dumps(found)) == found
    assert len(found) == probes.NUM_EXAMPLES
    spell = getattr(config.task, "spell", str)
    for row, example in enumerate(found):
        assert len(example["tokens"]) == length
        assert all(isinstance(token, str) for token in example["tokens"])
        if config.task.vocab_size:
            assert example["tokens"] == [spell(int(t)) for t in batch.inputs[row]]
        is_asked = batch.targets[row] != UNASKED
        answers = example["answers"]
        assert [a["position"] for a in answers] == batch.positions[row][is_asked].tolist()
        assert [a["source"] for a in answers] == batch.sources[row][is_asked].tolist()
        for answer, target in zip(answers, batch.targets[row][is_asked], strict=True):
            if is_number:
                assert answer["target"] == pytest.approx(float(target))
                assert answer["predicted"] == pytest.approx(target + 0.5)
            else:
                assert answer["target"] == answer["predicted"] == spell(int(target))
        roots = np.sqrt(probes.unpacked(example["maps"]))
        np.testing.assert_allclose(roots, np.sqrt(maps[:, row]), atol=0.002)
        assert example["source_width"] == config.task.source_width


def test_a_probe_sees_what_the_mixer_has():
    runs = [[draw_params(INDUCTION, "gru", seed) for seed in x] for x in ((1, 2), (2, 1))]
    seen = probes.probe(INDUCTION, "gru", runs, questions_of(INDUCTION))
    reach = reach_of(INDUCTION, "gru")
    blank = {"attention": None, "blocked": None}
    turned = reach | {"initial": reach["trained"], "trained": reach["initial"]}
    assert seen == [blank | {"gradient": reach}, blank | {"gradient": turned}]
    runs = [[draw_params(RECALL, "attention", seed) for seed in x] for x in ((1, 2), (2, 1))]
    seen = probes.probe(RECALL, "attention", runs, questions_of(RECALL))
    assert seen[0]["gradient"] == reach_of(RECALL, "attention")
    for of_run in seen:
        assert set(of_run["blocked"]) == {"answers", "open", "source", "hidden", "elsewhere"}
        assert np.shape(of_run["attention"]["mass_on_source"]) == (1, 2)
    assert seen[0]["attention"] != seen[1]["attention"]
    assert len(seen[0]["examples"]) == probes.NUM_EXAMPLES
    assert "examples" not in seen[1]
    assert json.loads(json.dumps(seen)) == seen
    blind = dataclasses.replace(RECALL.evaluate, num_probe_rows=0)
    config = dataclasses.replace(RECALL, evaluate=blind)
    assert probes.probe(config, "attention", runs, questions_of(RECALL)) == []


def test_cost_is_measured_at_each_length():
    evaluate = dataclasses.replace(RECALL.evaluate, cost_lengths=(16, 64))
    config = dataclasses.replace(RECALL, evaluate=evaluate)
    params = draw_params(RECALL, "attention")
    found = probes.cost(config, "attention", params, questions_of(RECALL))
    assert [of_length["length"] for of_length in found] == [16, 64]
    assert all(of_length["milliseconds"] > 0 for of_length in found)
    assert 0 < found[0]["temporary_bytes"] < found[1]["temporary_bytes"]
    assert json.loads(json.dumps(found)) == found
    assert probes.cost(RECALL, "attention", params, questions_of(RECALL)) == []
