"""Records without a class, where classes are asked for: replaced, counted and named, in every format."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from tests.data.sources.tars import png, write_tar
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.pipeline import Pipeline
from vlm_jax.data.sources.array_record import ArrayRecord
from vlm_jax.data.sources.example_proto import encode_example
from vlm_jax.data.sources.listing import Listing
from vlm_jax.data.sources.parquet import Parquet
from vlm_jax.data.sources.webdataset import WebDataset
from vlm_jax.data.storage import Storage
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError

NAMES = ("cat", "dog")
CLASSES = ["cat", "dog", None, "cat", "eel", "dog"]
WHY = {2: "it has no class", 4: "class 'eel', which is none of the 2 classes"}


def tar(folder, **options):
    members = [(f"{k}.{ext}", data) for k in range(6) for ext, data in (("png", png(k)), ("txt", b"caption"))]
    members += [(f"{k}.cls", name.encode()) for k, name in enumerate(CLASSES) if name]
    return WebDataset(str(write_tar(folder / "x.tar", members)), label="cls", **options)


def array_record(folder, **options):
    writer = ArrayRecordWriter(str(folder / "x.array_record"), "group_size:1")
    for k, name in enumerate(CLASSES):
        writer.write(encode_example({"image": png(k), "text": "caption", **({"class": name} if name else {})}))
    writer.close()
    return ArrayRecord(str(folder / "x.array_record"), label="class", **options)


def listing(folder, **options):
    for k in range(6):
        (folder / f"{k}.png").write_bytes(png(k))
    rows = [{"file_name": f"{k}.png", "text": "caption", "class": name} for k, name in enumerate(CLASSES)]
    (folder / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return Listing(str(folder / "x.jsonl"), label="class", **options)


def parquet(folder, **options):
    table = {"image": [png(k) for k in range(6)], "text": ["caption"] * 6, "class": CLASSES}
    pq.write_table(pa.table(table), folder / "x.parquet")
    return Parquet(str(folder / "x.parquet"), text_column="text", class_name_column="class", **options)


@pytest.mark.parametrize("write", [tar, array_record, listing, parquet])
def test_records_without_a_class_are_replaced_counted_and_named(tmp_path, write):
    source = write(tmp_path, classes=NAMES, storage=Storage(cache_dir=str(tmp_path / "cache")))
    pipeline = Pipeline(source, ImageTransform(size=4), Text(length=8), threads=0, shuffle=False)
    batches = pipeline.batches(seed=0, batch_size=6, rows=np.arange(6))
    batch, state = next(batches), batches.state()
    batches.close()
    assert batch["image"][:, 0, 0, 0].tolist() == [0, 1, 3, 3, 5, 5]
    assert batch["label"].tolist() == [0, 1, 0, 0, 1, 1]
    assert state["unreadable"] == 2
    for (key, why), (number, wanted) in zip(state["unreadable_first"], WHY.items()):
        assert key.startswith("x.") and key.endswith(f":{number}") and why == wanted


@pytest.mark.parametrize("write", [tar, array_record, listing])
def test_names_of_classes_that_nothing_lists_stop_the_run(tmp_path, write):
    source = write(tmp_path, storage=Storage(cache_dir=str(tmp_path / "cache")))
    pipeline = Pipeline(source, ImageTransform(size=4), threads=0, shuffle=False)
    batches = pipeline.batches(seed=0, batch_size=3, rows=np.arange(3))
    with pytest.raises(
        UserError, match=r"6 records in a row are unreadable, the first is .*: class 'cat', give `class"
    ):
        next(batches)
