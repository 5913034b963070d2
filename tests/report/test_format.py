"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest

from vlm_jax.report.format import duration, number, rate


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0, "0s"),
        (-0.2, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (102, "1m42s"),
        (3599.7, "1h00m"),
        (11220, "3h07m"),
        (86399.9, "1d00h"),
        (1051200, "12d04h"),
        (math.nan, "?"),
        (math.inf, "?"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    "value, text",
    [
        (0.0, "0"),
        (0.97123, "0.9712"),
        (-11.868, "-11.87"),
        (1331.4, "1,331"),
        (179200.0, "179,200"),
        (5000.0, "5,000"),
        (0.001, "0.001"),
        (0.00001234, "1.234e-5"),
        (1e20, "1e20"),
        (math.nan, "NaN"),
        (-math.inf, "-∞"),
    ],
)
def test_number(value, text):
    assert number(value) == text


def test_rate():
    assert [rate(value) for value in (1331.2, 10.4, 0.123)] == ["1331", "10", "0.12"]
