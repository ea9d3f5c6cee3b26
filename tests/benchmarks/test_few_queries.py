"""The table of few queries, of few keys."""

import pytest

from benchmarks import few_queries

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def test_it_has_a_line_for_every_shape(capsys, monkeypatch):
    monkeypatch.setattr(few_queries, "BATCHES", (2,))
    monkeypatch.setattr(few_queries, "WIDTH", 8)
    monkeypatch.setattr(few_queries, "TURN_SECONDS", 0.0)
    few_queries.main(["--keys", "33", "--repeats", "1"])
    _, head, _, *lines = (x for x in capsys.readouterr().out.splitlines() if x)
    columns = [x.strip() for x in head.strip("|").split("|")]
    assert {"attn default", "attn reference", "jax.nn xla"} < set(columns)
    rows = [
        dict(zip(columns, (x.strip() for x in y.strip("|").split("|")), strict=True)) for y in lines
    ]
    assert len(rows) == 2 * 3 * 2
    assert {(row["S"], row["seen"]) for row in rows} == {("33", "33"), ("33", "16")}
    assert all(float(row["attn default"]) > 0 for row in rows)
