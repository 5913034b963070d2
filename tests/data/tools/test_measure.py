"""Measuring: every record once, whatever it is, and never again after an interruption."""

from __future__ import annotations

import pytest

from tests.data.tools.images import Records, encoded, pairs, picture
from vlm_jax.data.tools import chunks, measure
from vlm_jax.data.tools.measure import Measurements, default_output
from vlm_jax.errors import UserError


def test_what_is_measured(tmp_path):
    jpeg = encoded(picture(0, 200, 120))
    source = Records(
        [
            {"image": jpeg, "text": ["a bus", "two\u2028lines\n"], "label": 3},
            "torn",
            {"image": b"<html>", "text": "page"},
            {"image": picture(1, 9, 7), "text": "\ud800"},
            {"image": jpeg[: len(jpeg) // 2], "text": "half"},
        ]
    )
    rows = list(Measurements(source, tmp_path))
    assert [row.index for row in rows] == [0, 1, 2, 3, 4] and rows[0].key == "file:0"
    assert (rows[0].format, rows[0].bytes, rows[0].width, rows[0].height) == ("JPEG", len(jpeg), 200, 120)
    assert rows[0].texts == ("a bus", "two\u2028lines\n") and rows[0].label == 3 and rows[0].hash
    assert rows[1].unreadable == "torn" and "not an image" in rows[2].unreadable and rows[4].unreadable
    assert (rows[3].format, rows[3].width, rows[3].texts, rows[3].label) == ("array", 9, ("\ud800",), -1)
    assert not rows[3].unreadable


def test_an_interrupted_pass_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 4)
    source = pairs([f"caption {k}" for k in range(10)])
    measured, calls = measure.measured, []

    def interrupted(read, index):
        calls.append(index)
        if index == 6:
            raise KeyboardInterrupt
        return measured(read, index)

    with monkeypatch.context() as patch:
        patch.setattr(measure, "measured", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(Measurements(source, tmp_path, threads=1))
    assert [path.name for path in sorted((tmp_path / "measured").glob("*"))] == ["000000.jsonl", "source.json"]
    source.reads = 0
    rows = list(Measurements(source, tmp_path))
    assert [row.texts for row in rows] == [(f"caption {k}",) for k in range(10)] and source.reads == 6
    list(Measurements(source, tmp_path))
    assert source.reads == 6


def test_a_limit_spreads_over_the_source(tmp_path):
    source = pairs([f"caption {k}" for k in range(10)])
    assert [row.index for row in Measurements(source, tmp_path, limit=5)] == [0, 2, 4, 6, 8]
    assert len(Measurements(source, tmp_path, limit=99)) == 10
    with pytest.raises(UserError, match="--limit=0"):
        Measurements(source, tmp_path, limit=0)


def test_measurements_of_another_source_are_refused(tmp_path):
    source = pairs(["a", "b"])
    list(Measurements(source, tmp_path))
    source.fingerprint = "4567"
    with pytest.raises(UserError, match="fingerprint was '0123', is '4567'"):
        Measurements(source, tmp_path)


def test_names_of_reports():
    assert default_output(Records([], ())) == "reports/made-up"
