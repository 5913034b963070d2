"""Input pipelines that all do one job: from JPEG and captions to shuffled batches of pixels and tokens, without end.

A batch has `image` uint8 [BATCH, SIZE, SIZE, 3] (torch: channels first), squashed with antialiasing, and `text` int32
[BATCH, 64], the tokens of `TEXT`. Floats and normalisation are left out everywhere: the device does that.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from benchmarks.gpu import import_on_torchvision
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.pipeline import Pipeline
from vlm_jax.data.sources.webdataset import WebDataset
from vlm_jax.data.storage import Storage
from vlm_jax.data.text import Text

BATCH, SIZE = 128, 224
TEXT = Text()
RESERVOIR = 1000  # samples that peers shuffle in memory; open_clip has 5000
OURS, TF, TORCH = "vlm_jax", "tf.data", "torch + webdataset"


def open_tars(folder: pathlib.Path) -> WebDataset:
    return WebDataset(str(folder / "tar"), storage=Storage(cache_dir=str(folder / "cache")))


def ours(folder: pathlib.Path, cores: int, interpolation: str, **options: str) -> Iterator[dict]:
    """Tars read at random by a permutation of all samples; threads in this process."""
    image = ImageTransform(SIZE, interpolation=interpolation, **options)
    pipeline = Pipeline(open_tars(folder), image, TEXT, threads=2 * cores)
    return pipeline.batches(seed=0, batch_size=BATCH, rows=np.arange(BATCH))


def tf_data(folder: pathlib.Path, cores: int, interpolation: str) -> Iterator[dict]:
    """TFRecords interleaved, a reservoir, and a parallel map with as many threads as there are cores."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    paths = write_tfrecords(folder)

    def tokens(text):
        text = tf.strings.regex_replace(tf.strings.lower(text), "[[:punct:]]", "")
        text = tf.strings.strip(tf.strings.regex_replace(text, r"\s+", " "))
        ids = tf.cast(tf.io.decode_raw(text, tf.uint8), tf.int32)[: TEXT.length - 1] + 4
        return tf.pad(ids, [[0, TEXT.length - tf.size(ids)]], constant_values=TEXT.eos_id)

    def example(record):
        spec = {name: tf.io.FixedLenFeature([], tf.string) for name in ("image", "text")}
        fields = tf.io.parse_single_example(record, spec)
        pixels = tf.io.decode_jpeg(fields["image"], channels=3)
        pixels = tf.image.resize(pixels, (SIZE, SIZE), interpolation, antialias=True)
        return {"image": tf.saturate_cast(tf.round(pixels), tf.uint8), "text": tokens(fields["text"])}

    data = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths)).repeat()
    data = data.interleave(tf.data.TFRecordDataset, cycle_length=len(paths), num_parallel_calls=cores)
    data = data.shuffle(RESERVOIR).map(example, num_parallel_calls=cores).batch(BATCH).prefetch(2)
    options = tf.data.Options()
    options.threading.private_threadpool_size = cores
    options.threading.max_intra_op_parallelism = 1
    return data.with_options(options).as_numpy_iterator()


def write_tfrecords(folder: pathlib.Path) -> list[str]:
    """The samples of the tars as TFRecords, in as many files; written once."""
    import tensorflow as tf

    source, tars = open_tars(folder), len(list((folder / "tar").glob("*.tar")))
    paths = [folder / f"{k:05}.tfrecord" for k in range(tars)]
    feature = lambda value: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
    for path, numbers in zip(paths, np.array_split(np.arange(len(source)), tars)):
        if path.exists():
            continue
        part = path.with_suffix(".part")
        with tf.io.TFRecordWriter(str(part)) as writer:
            for record in (source[k] for k in numbers.tolist()):
                fields = {"image": feature(record["image"]), "text": feature(record["text"][0].encode())}
                writer.write(tf.train.Example(features=tf.train.Features(feature=fields)).SerializeToString())
        part.rename(path)
    return [str(path) for path in paths]


def torch_webdataset(folder: pathlib.Path, cores: int, interpolation: str) -> Iterator[dict]:
    """As open_clip reads tars: shards with replacement, a reservoir, Pillow, and a worker of a DataLoader a core."""
    import webdataset as wds

    vision = import_on_torchvision("torchvision.transforms")
    resize = vision.Resize((SIZE, SIZE), vision.InterpolationMode(interpolation), antialias=True)
    data = wds.DataPipeline(
        wds.ResampledShards(sorted(str(path) for path in (folder / "tar").glob("*.tar"))),
        wds.tarfile_to_samples(),
        wds.shuffle(RESERVOIR, initial=RESERVOIR),
        wds.decode("pilrgb"),
        wds.rename(image="jpg", text="txt"),
        wds.map_dict(image=vision.Compose([resize, vision.PILToTensor()]), text=_first_row),
        wds.to_tuple("image", "text"),
        wds.batched(BATCH, partial=False),
    )
    loader = wds.WebLoader(data, batch_size=None, shuffle=False, num_workers=cores)
    return ({"image": image, "text": text} for image, text in loader)


def _first_row(text: str) -> np.ndarray:
    return TEXT([text])[0]


class Entry(NamedTuple):
    """A pipeline, and the packages that it needs, by the name to import and the name to install."""

    make: Callable[..., Iterator[dict[str, Any]]]
    packages: dict[str, str]
    options: Mapping[str, str] = types.MappingProxyType({})

    def missing(self) -> list[str]:
        """What is to be installed before it runs."""
        return [package for name, package in self.packages.items() if importlib.util.find_spec(name) is None]


SIMPLEJPEG, SIMD = {"simplejpeg": "simplejpeg"}, {"cykooz_resizer": "cykooz.resizer"}
PIPELINES = {
    OURS: Entry(ours, {}),
    f"{OURS}, simplejpeg": Entry(ours, SIMPLEJPEG, {"decoder": "simplejpeg"}),
    f"{OURS}, simd": Entry(ours, SIMD, {"resizer": "simd"}),
    f"{OURS}, simplejpeg, simd": Entry(ours, SIMPLEJPEG | SIMD, {"decoder": "simplejpeg", "resizer": "simd"}),
    f"{OURS}, every pixel": Entry(ours, {}, {"decoder": "full"}),
    TF: Entry(tf_data, {"tensorflow": "tensorflow-cpu"}),
    TORCH: Entry(torch_webdataset, {name: name for name in ("torch", "torchvision", "webdataset")}),
}
