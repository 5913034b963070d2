"""What is known of every record of a source, found once, in chunks that are kept: `inspect` and `curate` look there."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from vlm_jax.data.errors import UnreadableImage, UnreadableRecord
from vlm_jax.data.image import decode
from vlm_jax.data.reader import Reader
from vlm_jax.data.tools.chunks import Chunks
from vlm_jax.data.tools.hashing import perceptual_hash
from vlm_jax.errors import UserError

VERSION = 1  # raise it whenever the same record gives another measurement
DECODED_SIDE = 64  # pixels of the short side that a JPEG is decoded to, at least


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """A record as statistics and rules see it; one line of JSON in a chunk.

    Attributes:
      index: in the source.
      key: what the source calls it.
      unreadable: why, in one line; the rest is then empty.
      format: of the encoded image, as Pillow names it; "array" for one that is none.
      bytes: of the encoded image.
      width, height: of the image as stored, in pixels.
      hash: perceptual, see `perceptual_hash`; "" for an image without any structure.
    """

    index: int
    key: str
    unreadable: str = ""
    format: str = ""
    bytes: int = 0
    width: int = 0
    height: int = 0
    hash: str = ""
    texts: tuple[str, ...] = ()
    label: int = -1


class Measurements:
    """The measured records of a source, or of `limit` of them that are spread evenly over it.

    Iterating measures what is not measured yet, so that an interrupted pass goes on where it was.
    """

    def __init__(self, source: Any, folder: Path, limit: int | None = None, threads: int = 0):
        """Raises: UserError where the folder holds measurements of another source."""
        if limit is not None and limit < 1:
            raise UserError(f"--limit={limit}: wanted is at least 1.")
        self._source, self._threads = source, threads or os.cpu_count() or 1
        length = len(source)
        count = min(limit or length, length)
        self.records = np.arange(count) * length // count
        name = "measured" if count == length else f"measured_{count}"
        self._chunks = Chunks(folder / name, source, count, {"version": VERSION})

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Measured]:
        """All of them, in order of the source; from the files, a chunk at a time in memory."""
        read = Reader(self._source, decode)
        pool = ThreadPoolExecutor(self._threads)
        try:
            self._chunks.make(
                "measuring",
                lambda part: list(pool.map(lambda index: _line(measured(read, index)), self.records[part].tolist())),
            )
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        for line in self._chunks:
            row = json.loads(line)
            yield Measured(**{**row, "texts": tuple(row.get("texts", ()))})


def measured(read: Reader, index: int) -> Measured:
    """One record, decoded small. Raises: UserError where it cannot be read for reasons other than its content."""
    try:
        record = read.record(index)
    except UnreadableRecord as error:
        return Measured(index, error.key, error.why)
    key, text, image = str(record.get("key", index)), record.get("text") or (), record["image"]
    try:
        pixels = decode(image, DECODED_SIDE)
        form, width, height = _header(image)
    except UnreadableImage as error:
        return Measured(index, key, str(error))
    label = record.get("label")
    return Measured(
        index=index,
        key=key,
        format=form,
        bytes=image.nbytes if isinstance(image, np.ndarray) else len(image),
        width=width,
        height=height,
        hash=perceptual_hash(pixels),
        texts=(text,) if isinstance(text, str) else tuple(text),
        label=-1 if label is None else int(label),
    )


def _header(image: bytes | np.ndarray) -> tuple[str, int, int]:
    """Format, width and height, of an image that decodes."""
    if isinstance(image, np.ndarray):
        return "array", image.shape[1], image.shape[0]
    from PIL import Image

    with Image.open(io.BytesIO(image)) as opened:
        return opened.format or "", opened.width, opened.height


def _line(row: Measured) -> str:
    """Fields that say something, as ASCII: captions hold line breaks of other scripts and halves of surrogate pairs."""
    said = {name: value for name, value in dataclasses.asdict(row).items() if value not in ("", 0, ())}
    return json.dumps({**said, "index": row.index, "key": row.key, "label": row.label}) + "\n"


def default_output(source: Any) -> str:
    """Where reports on a source go: "reports/NAME"."""
    return f"reports/{re.sub(r'[^a-zA-Z0-9_.-]+', '-', source.name)}"
