"""Regions in words: of drawn scenes, of records with objects, and of those without."""

from __future__ import annotations

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.sources.tars import png
from vlm_jax.data.sources.located import Located
from vlm_jax.data.sources.parquet import Parquet
from vlm_jax.data.sources.shapes import Shapes
from vlm_jax.errors import UserError


def test_drawn_scenes():
    shapes = Shapes(size=20, image_size=32)
    located = Located(shapes, bins=32)
    assert (len(located), located.name, located.class_names) == (20, shapes.name, shapes.class_names)
    for index in range(20):
        record = located[index]
        objects = shapes.objects(index)
        captions, refer, ground = record["prompted"]
        np.testing.assert_array_equal(record["image"], shapes[index]["image"])
        assert captions == tuple(("cap", text) for text in shapes[index]["text"])
        assert [prompt for prompt, _ in refer] == [f"aref {o['name']}" for o in objects]
        assert [answer for _, answer in ground] == [o["name"] for o in objects]
        for (_, written), (given, _), found in zip(refer, ground, objects):
            assert given == f"gcap {written}"
            np.testing.assert_allclose(located.read(written), np.array(found["box"]) / 32, atol=0.5 / 32 + 1e-9)


def test_boxes_are_read_back_and_nothing_else():
    located = Located(Shapes(size=1), bins=10)
    assert located.written((-0.2, 0.11, 0.5, 1.4)) == "0 1 5 10"
    assert located.read("0 1 5 10") == (0, 0.1, 0.5, 1)
    for text in ("", "1 2 3", "1 2 3 4 5", "1 2 3 x", "1 2 3 11"):
        assert located.read(text) is None


def test_a_tokenizer_sees_prompts_and_answers():
    found = list(Located(Shapes(size=3)).captions())
    assert {"cap", "aref", "gcap"} == {text.split()[0] for text in found} & {"cap", "aref", "gcap"}
    assert any(re.fullmatch(r"\d+ \d+ \d+ \d+", text) for text in found)
    assert list(Located(Shapes(size=3)).captions(5)) == found[:5]


def table(folder, objects):
    rows = {"image": [png(k) for k in range(2)], "text": ["a", "b"], "objects": objects}
    pq.write_table(pa.table(rows), folder / "x.parquet")
    return str(folder / "x.parquet")


def test_objects_of_parquet_files(tmp_path):
    path = table(tmp_path, [[{"text": "a dog", "box": [0.0, 0.25, 0.5, 1.0]}], None])
    source = Located(Parquet(path, text_column="text", objects_column="objects"), bins=100)
    assert source[0]["prompted"][1:] == ((("aref a dog", "0 25 50 100"),), (("gcap 0 25 50 100", "a dog"),))
    assert source[1]["prompted"] == ((("cap", "b"),), (), ())


def test_what_is_no_objects_is_named(tmp_path):
    path = table(tmp_path, [json.dumps([])] * 2)
    with pytest.raises(
        UserError, match="objects_column needs lists of structs of a string 'text' and a list of floats"
    ):
        Parquet(path, text_column="text", objects_column="objects")
    with pytest.raises(UserError, match=r"Located\.bins=1: wanted are at least 2"):
        Located(Shapes(), bins=1)


def test_other_bins_are_other_data():
    assert Located(Shapes(), bins=10).fingerprint != Located(Shapes(), bins=20).fingerprint != Shapes().fingerprint
