"""The same images in every format give the same examples."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.helpers import Stepper, small_experiment
from vlm_jax import startup
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.mixture import Mixture, Part
from vlm_jax.data.pipeline import Pipeline
from vlm_jax.data.reader import Reader
from vlm_jax.data.sources.array_record import ArrayRecord
from vlm_jax.data.sources.folder import Folder
from vlm_jax.data.sources.listing import Listing
from vlm_jax.data.sources.parquet import Parquet
from vlm_jax.data.sources.tfds import Tfds
from vlm_jax.data.sources.webdataset import WebDataset
from vlm_jax.data.storage import Storage
from vlm_jax.data.writers import convert

FORMATS = ("tar", "array_record", "parquet", "listing", "folder", "tfds")
TRANSFORM = ImageTransform(size=32, pad_crop=4, flip=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("formats")


def cifar(shared_data, limit: int | None):
    path = shared_data / "cifar10" / ("*.parquet" if limit is None else "test-*.parquet")
    return Parquet(str(path), label_column="label", class_name_column="class_name", limit=limit)


class Cifar(tfds.core.GeneratorBasedBuilder):
    """Records of a source, as they are."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, source, **more):
        self.source = source
        super().__init__(**more)

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(32, 32, 3), encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(names=list(self.source.class_names)),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, _):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for k in range(len(self.source)):
            record = self.source[k]
            yield k, {"image": io.BytesIO(record["image"]), "label": record["label"]}


def in_format(source, form: str, folder: Path):
    """The source's records, written in a format by our tool (and TFDS by its own), and read again."""
    at, storage = folder / f"{form}-{len(source)}", Storage(cache_dir=str(folder / "cache"))
    shard_records = max(1, len(source) // 3 - 5)  # shards that are not of the same size
    if form == "tfds":
        Cifar(source, data_dir=str(at), file_format="array_record").download_and_prepare()
        return Tfds("cifar/train", data_dir=str(at))
    if form == "folder":
        at.mkdir()
        for k in range(len(source)):
            (at / f"{k:06}.jpg").write_bytes(source[k]["image"])
            (at / f"{k:06}.txt").write_text("".join(f"{text}\n" for text in source[k]["text"]))
        return Folder(str(at), lines=True, storage=storage)
    convert(source, at, "folder" if form == "listing" else form, shard_records=shard_records)
    options = {"classes": source.class_names, "storage": storage}
    return {
        "tar": lambda: WebDataset(str(at), text=("json:text",), label="cls", storage=storage),
        "array_record": lambda: ArrayRecord(str(at), label="label", storage=storage),
        "parquet": lambda: Parquet(str(at), text_column="text", label_column="label", storage=storage),
        "listing": lambda: Listing(f"{at}/*/metadata.jsonl", label="label", **options),
    }[form]()


def check(source, form: str, folder: Path) -> None:
    other = in_format(source, form, folder)
    assert len(other) == len(source)
    decode = Reader(source, TRANSFORM.decode_resize), Reader(other, TRANSFORM.decode_resize)
    for k in range(len(source)):
        wanted, found = source[k], other[k]
        assert found["image"] == wanted["image"] and list(found["text"]) == wanted["text"]
        assert form == "folder" or found["label"] == wanted["label"]
        if k % 97 == 0:
            np.testing.assert_array_equal(decode[1](k).image, decode[0](k).image)
            assert decode[1](k).texts == decode[0](k).texts
    assert form == "folder" or other.class_names == source.class_names


@pytest.mark.parametrize("form", FORMATS)
def test_a_few_hundred_images(shared_data, folder, form):
    check(cifar(shared_data, 300), form, folder)


@pytest.mark.full
@pytest.mark.parametrize("form", FORMATS)
def test_all_60_000_images(shared_data, folder, form):
    source = cifar(shared_data, None)
    assert len(source) == 60_000
    check(source, form, folder)


def batches(source) -> list[dict]:
    """The order of examples is a function of the name that the source has in its mixture."""
    found = Pipeline(Mixture({"cifar": Part(source)}), TRANSFORM, threads=2).batches(
        seed=3, batch_size=16, rows=np.arange(16)
    )
    try:
        return [next(found) for _ in range(25)]  # into the second epoch
    finally:
        found.close()


def test_batches_of_training(shared_data, tmp_path):
    """So do the batches of a run, and with them its losses."""
    source = cifar(shared_data, 300)
    wanted = batches(source)
    for form in ("tar", "array_record", "parquet", "listing", "tfds"):
        for ours, theirs in zip(batches(in_format(source, form, tmp_path)), wanted, strict=True):
            assert ours.keys() == theirs.keys()
            for key in ours:
                np.testing.assert_array_equal(ours[key], theirs[key])


@pytest.mark.full
def test_losses_of_training(shared_data, tmp_path):
    """Runs of the small recipe, one on each format, lose alike, bit for bit."""
    source = cifar(shared_data, 300)
    curves = {}
    for form in ("source", "tar", "array_record", "parquet", "listing", "tfds"):
        experiment = small_experiment(tmp_path)
        other = source if form == "source" else in_format(source, form, tmp_path)
        data = dataclasses.replace(experiment.data, source=Mixture({"cifar": Part(other)}))
        stepper = Stepper.make(dataclasses.replace(experiment, data=data), jax.devices()[:1])
        state = startup.initialise(stepper.plan)
        curves[form] = []
        for _ in range(30):
            state, metrics = stepper.update(state, stepper.batch())
            curves[form].append(float(metrics["loss"]))
        stepper.batches.close()
    assert len(set(curves["source"])) == 30
    assert all(curve == curves["source"] for curve in curves.values())
