"""TFDS data sets, prepared here without TensorFlow and read without it."""

from __future__ import annotations

import io
import pickle
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.data.sources.tars import png, value
from vlm_jax.data.errors import UnreadableRecord
from vlm_jax.data.image import decode
from vlm_jax.data.reader import Reader
from vlm_jax.data.sources.tfds import Tfds
from vlm_jax.errors import UserError


class Tiny(tfds.core.GeneratorBasedBuilder):
    """Images with class, captions and a title."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features
        return tfds.core.DatasetInfo(
            builder=self,
            features=features.FeaturesDict(
                {
                    "image": features.Image(shape=(None, None, 3)),
                    "label": features.ClassLabel(names=["cat", "dog"]),
                    "captions": features.Sequence({"text": features.Text(), "id": np.int64}),
                    "title": features.Text(),
                    "number": np.int64,
                }
            ),
        )

    def _split_generators(self, _):
        return {"train": self._generate_examples(range(20)), "test": self._generate_examples(range(20, 25))}

    def _generate_examples(self, numbers):
        for k in numbers:
            captions = [{"text": f"caption {k}", "id": k}, {"text": f"other {k}", "id": k}]
            image = io.BytesIO(png(k))
            yield k, {"image": image, "label": k % 2, "captions": captions, "title": f"title {k}", "number": k}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    Tiny(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return str(folder)


def test_records(data_dir):
    source = Tfds("tfds:tiny/train", data_dir=data_dir)
    assert len(source) == 20 and source.class_names == ("cat", "dog") and source.name == "tfds/tiny/1.0.0/train"
    assert sorted(value(source[k]) for k in range(20)) == list(range(20))  # TFDS shuffles when it writes
    for k in range(20):
        record = source[k]
        assert record["image"] == png(value(record))  # not decoded
        assert record["label"] == value(record) % 2 and record["key"] == f"tiny/1.0.0/train:{k}"
        assert record["text"] == [f"a photo of a {'dog' if record['label'] else 'cat'}."]
    copy = pickle.loads(pickle.dumps(source))
    assert copy[7] == source[7] and copy.fingerprint == source.fingerprint
    assert list(source.captions()) == ["a photo of a cat.", "a photo of a dog."]


def test_captions(data_dir):
    source = Tfds("tiny:1.0.0/test", data_dir=data_dir, text=("captions/text", "title"), label=None)
    for k in range(5):
        number = value(source[k])
        assert source[k]["text"] == [f"caption {number}", f"other {number}", f"title {number}"]
        assert number >= 20 and "label" not in source[k]


def test_parts_of_splits_and_folders(data_dir):
    whole = Tfds("tiny/train", data_dir=data_dir)
    part = Tfds("tiny/train[25%:]", data_dir=data_dir)
    assert [part[k]["image"] for k in range(15)] == [whole[k]["image"] for k in range(5, 20)]
    assert part.fingerprint != whole.fingerprint
    assert len(Tfds("tiny/train[:5]+test", data_dir=data_dir)) == 10
    assert Tfds(f"{data_dir}/tiny/1.0.0/train").fingerprint == whole.fingerprint


@pytest.mark.parametrize(
    "path, options, message",
    [
        ("tiny/tain", {}, "tiny has no split 'tain': did you mean 'train'?"),
        ("tiny", {}, "wanted is NAME/SPLIT"),
        ("tinny/train", {}, "tinny is not prepared in"),
        ("tiny:2.0.0/train", {}, "tiny:2.0.0 is not prepared in"),
        ("tiny/train[x", {}, "Error parsing split"),
        ("tiny/train", {"image": "img"}, "no feature 'img' (image)"),
        ("tiny/train", {"text": ("captions/txt",)}, "no feature 'captions/txt' (text): did you mean 'text'?"),
        ("tiny/train", {"label": "labels"}, "no feature 'labels' (label): did you mean 'label'?"),
        ("tiny/train", {"label": None}, "neither captions nor class names"),
        ("tiny/train", {"label": "number"}, "neither captions nor class names"),
    ],
)
def test_mistakes_are_named(data_dir, path, options, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        Tfds(path, data_dir=data_dir, **options)
    assert len(str(error.value).splitlines()) == 1


def test_what_cannot_be_read_at_random_is_refused(data_dir, tmp_path):
    folder = tmp_path / "tiny/1.0.0"
    shutil.copytree(f"{data_dir}/tiny/1.0.0", folder)
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match="prepared as tfrecord, which cannot be read at random"):
        Tfds("tiny/train", data_dir=str(tmp_path))


def test_an_image_that_is_none(data_dir):
    source = Tfds("tiny/train", data_dir=data_dir, image="title")
    with pytest.raises(UnreadableRecord, match=r"tiny/1\.0\.0/train:3"):
        Reader(source, decode)(3)


def test_no_tensorflow(data_dir):
    code = (
        "import sys; from vlm_jax.data.sources.tfds import Tfds;"
        f"source = Tfds('tiny/train', data_dir={data_dir!r}); source[3];"
        "print([m for m in ('tensorflow', 'jax', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip().endswith("[]"), done.stderr
