"""Pictures inside of the page: they follow its colours, name themselves, and stay small."""

from __future__ import annotations

import base64
import io
import math
import re
import warnings
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from vlm_jax.report import pictures
from vlm_jax.report.series import Panel, Series


def panel(*values, title="Loss", log=False):
    lines = [(f"line{i}", Series(f"line{i}", np.arange(len(v)), np.asarray(v, float))) for i, v in enumerate(values)]
    return Panel(title, tuple(lines), log)


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns:xlink="x" ', 1))


def stroked(svg: str, colour: str) -> list[str]:
    return [p.get("d") for p in parse(svg).iter("path") if f"stroke: {colour}" in (p.get("style") or "") and p.get("d")]


def test_curves_take_their_colours_from_the_page():
    svg = pictures.curves(panel(*np.random.default_rng(0).normal(size=(6, 50))))
    parse(svg)
    assert all(f"var(--line-{i + 1})" in svg for i in range(6)) and "var(--rule)" in svg
    assert not re.search("#01[0-9a-f]{4}", svg), "a stand-in colour is left"
    assert "<style" not in svg and "xmlns" not in svg and "font-family" not in svg


def test_curves_say_in_words_what_they_show():
    svg = pictures.curves(panel([3, 1, 2, math.nan], [math.nan] * 4, title="<Loss> & co"))
    words = parse(svg).get("aria-label")
    assert words == "<Loss> & co over steps: line0 from 3 to 2, least 1, greatest 3; line1 has no finite value."


@pytest.mark.parametrize(
    "values", [[], [1.0], [math.nan], [1.0, math.nan, 2.0], [math.inf, 1e-30], [5.0] * 4, [0.0, 1e300], [-1e9, 1e9]]
)
def test_any_values_are_drawn(values):
    parse(pictures.curves(panel(values)))


def test_lost_steps_are_gaps_and_crosses():
    whole = stroked(pictures.curves(panel(np.arange(100.0))), "var(--line-1)")
    values = np.arange(100.0)
    values[40:60] = math.nan
    svg = pictures.curves(panel(values))
    broken = stroked(svg, "var(--line-1)")
    assert whole[0].count("M") == 1 and broken[0].count("M") == 2
    assert "var(--alert)" in svg


def test_long_series_make_no_larger_picture():
    noise = np.random.default_rng(0).normal(size=200_000)
    assert len(pictures.curves(panel(noise))) < 40_000


def test_equal_runs_give_equal_pictures_and_names_do_not_clash():
    one, same, other = (pictures.curves(panel([1, 2, 3], title=title)) for title in ("a", "a", "b"))
    assert one == same
    names = lambda svg: set(re.findall(r' id="([^"]+)"', svg))
    assert names(one) and not names(one) & names(other)


def test_matrix_is_labelled_where_there_is_room():
    labels = ["costs $5 or $6", "図 <b>"] + [f"text {i}" for i in range(62)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small = pictures.matrix("Similarity", np.eye(32), labels[:32], labels[:32])
    text = "".join(parse(small).itertext())
    assert "costs $5 or $6" in text and "図 <b>" in text and 'class="labelled"' in small
    large = pictures.matrix("Similarity", np.eye(64), labels, labels)
    assert "text 3" not in "".join(parse(large).itertext()) and 'class="plain"' in large
    assert "64 rows and 64 columns" in pictures.matrix("Similarity", np.eye(200), [], [])


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (3, 5)])
def test_matrices_of_any_shape(shape):
    values = np.full(shape, math.nan)
    parse(pictures.matrix("m", values, [], ["one"]))
    parse(pictures.matrix("m", np.nan_to_num(values), [], []))


def test_diagonal_means():
    assert pictures.diagonal(np.array([[1.0, 0.5], [0.1, 0.8]])) == pytest.approx((0.9, 0.3))
    assert pictures.diagonal(np.ones((2, 3))) is None
    assert pictures.diagonal(np.ones((1, 1))) is None
    assert pictures.diagonal(np.full((2, 2), math.nan)) is None


def decode(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])))


def test_small_images_are_kept_exactly():
    image = np.random.default_rng(0).integers(0, 256, (32, 24, 3), np.uint8)
    uri, width, height = pictures.thumbnail(image)
    assert uri.startswith("data:image/png;base64,") and (width, height) == (24, 32)
    np.testing.assert_array_equal(np.asarray(decode(uri)), image)


def test_large_images_are_reduced():
    uri, width, height = pictures.thumbnail(np.full((300, 600, 3), 200, np.uint8))
    assert uri.startswith("data:image/jpeg;base64,") and (width, height) == (160, 80) == decode(uri).size
    assert abs(int(np.asarray(decode(uri)).mean()) - 200) <= 1
