"""Keep-lists: the records they name, of the source they were made for."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from tests.data.sources.tars import sample, write_tar
from vlm_jax import config
from vlm_jax.config import bind
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.pipeline import Pipeline
from vlm_jax.data.sources.shapes import Shapes
from vlm_jax.data.sources.webdataset import WebDataset
from vlm_jax.data.storage import Storage
from vlm_jax.data.tools.keep import Kept, write_keep
from vlm_jax.errors import UserError

RECORDS = np.array([1, 4, 5, 9])


@pytest.fixture
def keep(tmp_path):
    write_keep(tmp_path / "keep.index", Shapes(size=10), RECORDS)
    return str(tmp_path / "keep.index")


def test_kept_records_are_those_of_the_source(keep):
    shapes = Shapes(size=10)
    kept = pickle.loads(pickle.dumps(Kept(shapes, keep)))
    assert [kept[k]["text"] for k in range(len(kept))] == [shapes[int(k)]["text"] for k in RECORDS]
    first = shapes[1]["text"]
    assert list(kept.captions(1)) == [first if isinstance(first, str) else first[0]]
    assert kept.class_names == shapes.class_names and kept.fingerprint != shapes.fingerprint
    with pytest.raises(IndexError):
        kept[4]


def test_a_pipeline_trains_on_them(keep):
    source = bind("data.tools.keep.Kept", source=bind("data.sources.shapes.Shapes", size=10), keep=keep)
    part = bind("data.mixture.Part", source=source)
    image = bind("data.image.ImageTransform", size=32)
    node = bind("data.pipeline.Pipeline", source=bind("data.mixture.Mixture", parts={"a": part}), image=image)
    batches = config.build(node).batches(seed=0, batch_size=4, rows=range(4))
    labels = sorted(next(batches)["label"].tolist())
    batches.close()
    assert labels == sorted(Shapes(size=10)[int(k)]["label"] for k in RECORDS)


def test_what_the_source_left_out_as_damaged_is_told(tmp_path):
    write_tar(tmp_path / "x.tar", [*sample(1), *sample(2), *sample(1)])
    source = WebDataset(str(tmp_path / "x.tar"), damaged="skip", storage=Storage(cache_dir=str(tmp_path)))
    write_keep(tmp_path / "keep.index", source, np.array([1]))
    pipeline = Pipeline(Kept(source, str(tmp_path / "keep.index")), ImageTransform(size=4))
    assert pipeline.damaged == source.problem_count == 4
    assert all("x.tar:000000001: a second" in line for line in pipeline.damage)


def test_another_source_and_other_files_are_refused(keep, tmp_path):
    with pytest.raises(UserError, match="with 10 records, and not for shapes/train as it is, with 11"):
        Kept(Shapes(size=11), keep)
    with pytest.raises(UserError, match="cannot be read"):
        Kept(Shapes(size=10), keep + "x")
    (tmp_path / "text").write_text("1 4 5")
    with pytest.raises(UserError, match="is no keep-list"):
        Kept(Shapes(size=10), str(tmp_path / "text"))
    write_keep(tmp_path / "none", Shapes(size=10), np.array([], int))
    with pytest.raises(UserError, match="keeps no record"):
        Kept(Shapes(size=10), str(tmp_path / "none"))
