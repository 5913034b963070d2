"""Files of image codes that differ, and rows without texts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlm_jax.data.reader import Reader
from vlm_jax.data.sources.image_codes import METADATA, Codes, ImageCodes
from vlm_jax.errors import UserError

CODES = Codes((2, 2), 16, 8, "a model")
ROW = {"image_codes": [1, 2, 3, 4], "text": ["a text"], "key": "k"}


def write(folder: Path, *files: tuple[str, ...], **row) -> str:
    """A file of one row for each list of classes; () has no labels."""
    for number, names in enumerate(files):
        features = {"label": {"names": list(names), "_type": "ClassLabel"}} if names else {}
        metadata = {METADATA: json.dumps(dataclasses.asdict(CODES))}
        metadata["huggingface"] = json.dumps({"info": {"features": features}})
        table = pa.Table.from_pylist([ROW | row | ({"label": 1} if names else {})])
        pq.write_table(table.replace_schema_metadata(metadata), folder / f"{number:05}.parquet")
    return str(folder)


def test_classes_are_those_of_every_file(tmp_path):
    found = ImageCodes(write(tmp_path, ("cat", "owl"), ("cat", "owl")))
    assert found.name == f"image_codes/{tmp_path.name}"
    assert found.class_names == ("cat", "owl") and [found[k]["label"] for k in range(2)] == [1, 1]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("cat", "owl"), ()], r"00001.parquet and .*00000.parquet have different classes: none, 2 \(cat, owl\)"),
        ([(), ("cat", "owl")], r"have different classes: 2 \(cat, owl\), none"),
        ([("cat", "owl"), ("owl", "cat")], r"have different classes: 2 \(owl, cat\), 2 \(cat, owl\)"),
    ],
)
def test_files_of_other_classes(files, message, tmp_path):
    with pytest.raises(UserError, match=message):
        ImageCodes(write(tmp_path, *files))


def test_templates_need_no_texts(tmp_path):
    found = ImageCodes(write(tmp_path, ("cat", "owl"), text=[]))
    assert found[0]["text"] == [] and list(found.captions()) == []
    reader = Reader(found, lambda image: image, needs_text=True, templates=("a photo of an {}",))
    assert reader._texts(found[0], 1) == ("a photo of an owl",)
