"""`inspect`: statistics that are right, a sheet that shows the images, and bad records by key."""

from __future__ import annotations

import argparse
import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.data.tools.images import Records, encoded, picture
from vlm_jax.data.tools import inspection
from vlm_jax.data.tools.sheet import GAP, TILE, contact_sheet, spread

FLAGS = dict(limit=None, images=4, threads=2, duplicate_bits=4)


@pytest.fixture
def source() -> Records:
    wide, tall = picture(1, 80, 40), picture(2, 20, 60)
    return Records(
        [
            {"image": encoded(wide), "text": ["a bus", "A  Bus"], "label": 0},
            {"image": encoded(wide, quality=40), "text": "красный автобус", "label": 0},
            {"image": encoded(tall, "PNG"), "text": "one two three", "label": 2},
            "torn",
        ],
        class_names=("bus", "cat", "dog"),
    )


def run(source, tmp_path, **changed) -> tuple[dict, list[str]]:
    flags = argparse.Namespace(output=str(tmp_path), **{**FLAGS, **changed})
    lines = list(inspection.run(source, flags))
    return json.loads((tmp_path / "inspect.json").read_text()), lines


def test_statistics(source, tmp_path):
    found, lines = run(source, tmp_path)
    assert (found["records"], found["unreadable"]) == (4, 1)
    assert found["unreadable_first"] == [["file:3", "torn"]]
    assert found["formats"] == {"JPEG": 2, "PNG": 1}
    assert (found["width"]["min"], found["width"]["max"], found["short_side"]["median"]) == (20, 80, 40)
    assert found["aspect"]["max"] == 2.0 and found["aspect_shares"]["0-0.5"] == pytest.approx(1 / 3, abs=1e-4)
    assert found["duplicate_images"] == 1
    assert (found["captions"], found["duplicate_captions"]) == (4, 1)
    assert found["most_common_captions"] == [["A  Bus", 2]]
    assert found["scripts"] == {"latin": 0.75, "cyrillic": 0.25}
    assert found["caption_words"]["max"] == 3 and found["captions_of_a_record"]["max"] == 2
    assert found["classes"]["most"] == {"bus": 2, "dog": 1, "cat": 0} and found["classes"]["with_records"] == 2
    assert (tmp_path / "unreadable.tsv").read_text() == "3\tfile:3\ttorn\n"
    assert "  unreadable: file:3: torn" in lines


def test_the_sheet_shows_readable_records(source, tmp_path):
    run(source, tmp_path)
    sheet = np.asarray(Image.open(tmp_path / "contact_sheet.png"))
    assert sheet.shape[1] == GAP + 3 * (TILE + GAP)
    middle = sheet[GAP + TILE // 2, GAP + 2 * (TILE + GAP) + TILE // 2]  # of the last one, which is tall
    assert np.abs(middle.astype(int) - picture(2, 20, 60)[30, 10]).max() < 40


def test_nothing_readable_and_no_pictures(source, tmp_path):
    found, _ = run(Records(["torn", "torn"]), tmp_path / "a")
    assert found["unreadable"] == 2 and found["width"] == {}
    assert not (tmp_path / "a/contact_sheet.png").exists()
    run(source, tmp_path / "b", images=0)
    assert not (tmp_path / "b/contact_sheet.png").exists()


def test_captions_of_any_characters_and_length():
    text = ["汉字 " * 2000, "", "a\nb"]
    sheet = contact_sheet([{"image": picture(k, 5, 300), "text": [text[k]] if text[k] else []} for k in range(3)])
    assert Image.open(io.BytesIO(sheet)).format == "PNG"


def test_spread():
    assert spread(10, 5) == [0, 2, 4, 6, 8] and spread(3, 5) == [0, 1, 2] and spread(0, 5) == []
