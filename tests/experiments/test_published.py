"""Published rows are complete, within range, and say where they come from."""

import re

import pytest

from experiments import published
from experiments.published import ADDING, COPY_CLAIMS, INDUCTION, LISTOPS, NOISY_IMAGES, RECALL


def test_every_row_names_a_paper_a_place_and_an_arxiv_number():
    for row in (*RECALL, *INDUCTION, *ADDING, *LISTOPS, *NOISY_IMAGES, *COPY_CLAIMS):
        assert row.source.paper
        assert row.source.place
        assert re.fullmatch(r"\d{4}\.\d{5}", row.source.arxiv)


def test_recall_has_every_model_at_every_width_and_length():
    cells = {(row.length, row.pairs, row.model, row.width) for row in RECALL}
    assert len(cells) == len(RECALL) == 4 * 5 * 4
    assert {row.width for row in RECALL} == set(published.RECALL_WIDTHS)
    assert {(row.length, row.pairs) for row in RECALL} == {(64, 4), (128, 8), (256, 16), (512, 64)}
    assert {row.source.reading for row in RECALL} == {0.02}


def test_induction_has_every_model_at_every_length():
    cells = {(row.model, row.length) for row in INDUCTION}
    assert len(cells) == len(INDUCTION) == 6 * 6
    assert {row.length for row in INDUCTION} == {256 * 2**power for power in range(1, 7)}
    assert {row.trained_length for row in INDUCTION} == {256}


def test_accuracies_are_shares_and_not_percent():
    for row in (*RECALL, *INDUCTION):
        assert 0 <= row.accuracy <= 1
    for score in (*LISTOPS, *NOISY_IMAGES):
        assert 0 <= score.value <= 1


@pytest.mark.parametrize(
    ("length", "model", "width", "accuracy"),
    [
        (64, "H3", 64, 0.93),
        (128, "RWKV-4", 128, 0.50),
        (256, "BaseConv", 256, 0.82),
        (512, "BaseConv", 512, 0.72),
        (512, "Hyena", 64, 0.02),
        (512, "attention", 64, 1.0),
    ],
)
def test_recall_values(length, model, width, accuracy):
    cell = (length, model, width)
    assert [r.accuracy for r in RECALL if (r.length, r.model, r.width) == cell] == [accuracy]


@pytest.mark.parametrize(
    ("model", "length", "accuracy"),
    [("MHA-RoPE", 512, 0.836), ("MHA-xPos", 1024, 0.676), ("H3", 4096, 0.148), ("Mamba", 16384, 1)],
)
def test_induction_values(model, length, accuracy):
    cell = (model, length)
    found = [row.accuracy for row in INDUCTION if (row.model, row.length) == cell]
    assert found == [pytest.approx(accuracy)]


def test_single_scores():
    assert {row.model: row.value for row in ADDING} == {"TCN": 5.8e-5, "GRU": 5.3e-5, "LSTM": 0.164}
    assert LISTOPS[0].value == 0.3637
    assert NOISY_IMAGES[0].value == 0.116
