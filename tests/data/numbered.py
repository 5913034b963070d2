"""A source whose images, captions and labels say which record they are, light enough for worker processes."""

from __future__ import annotations

import dataclasses
import io
import os
import signal
import sys

import numpy as np
from PIL import Image

from vlm_jax.data.errors import UnreadableRecord
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.text import Text

SIZE = 8
TEXT = Text(length=16)
PLAIN = ImageTransform(size=SIZE)
VARIED = ImageTransform(size=SIZE, flip=True, pad_crop=2)


@dataclasses.dataclass(frozen=True)
class Numbered:
    """Record i has captions "NAME one i", "NAME two i", "NAME three i" and label i mod 2.

    Attributes:
      damaged: what records hold in place of their image, or of their captions where it is a str or a list.
      failing: records that raise what is given: "disk", "bug", "torn", "killed", or that "import" tells about.
    """

    name: str = "numbers"
    length: int = 50
    fingerprint: str = "f"
    class_names: tuple[str, ...] = ("even", "odd")
    damaged: tuple[tuple[int, object], ...] = ()
    failing: tuple[tuple[int, str], ...] = ()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        fail(dict(self.failing).get(index), self.name, index)
        captions = [f"{self.name} {word} {index}" for word in ("one", "two", "three")]
        record = {"image": png(index), "text": captions, "label": index % 2, "key": f"key{index}"}
        if index in (damaged := dict(self.damaged)):
            record["image" if isinstance(damaged[index], bytes) else "text"] = damaged[index]
        return record

    def captions(self, limit: int | None = None):
        return (f"{self.name} one {index}" for index in range(self.length if limit is None else limit))


def fail(how: str | None, name: str, index: int) -> None:
    if how == "disk":
        raise OSError("no such disk")
    if how == "bug":
        raise ZeroDivisionError("a bug")
    if how == "torn":
        raise UnreadableRecord(name, f"key{index}", "torn")
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "import":
        raise UnreadableRecord(name, f"key{index}", f"jax {'jax' in sys.modules}, process {os.getpid()}")


def png(index: int) -> bytes:
    pixels = np.random.default_rng(index).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    pixels[0, 0] = index % 256
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def take(pipeline, count, *, batch_size=8, rows=None, seed=0, **options):
    """The first batches, joined, and the iterator's last state."""
    rows = np.arange(batch_size) if rows is None else rows
    batches = pipeline.batches(seed=seed, batch_size=batch_size, rows=rows, **options)
    try:
        got = [next(batches) for _ in range(count)]
        return {name: np.concatenate([batch[name] for batch in got]) for name in got[0]}, batches.state()
    finally:
        batches.close()


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def told(batch) -> list[tuple[str, int]]:
    """Source and record that rows come from, by their captions."""
    return [(caption.split()[0], int(caption.split()[2])) for caption in TEXT.decode(batch["text"])]
