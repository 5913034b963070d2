"""`ArrayRecord`: files of `tf.train.Example` records with an index of their own, as TPU users write them."""

from __future__ import annotations

import dataclasses
import functools
import re
import threading
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from vlm_jax.data.files import find_files
from vlm_jax.data.index import Index, indexes
from vlm_jax.data.sources.base import Fields, ImageText, Missing, utf8
from vlm_jax.data.sources.example_proto import decode_example
from vlm_jax.data.sources.parts import locate, starts_of
from vlm_jax.data.storage import File, Storage
from vlm_jax.errors import UserError, closest

KIND = "array_record1"  # raise the number whenever the same file gives another index
SUFFIXES = (".array_record", ".arrayrecord")
DAMAGE = ("Corrupted", "Invalid")  # how riegeli begins to tell of bytes that are not what was written


@dataclasses.dataclass(frozen=True)
class ArrayRecord(ImageText):
    """Records of ArrayRecord files, each a `tf.train.Example`: what TFDS writes, and `vlm_jax.data.writers`.

    The format checks what it reads by hashes, and finds any record by the file's own index: the best that there is for
    random access. The record is an Example and not a format of ours, because that is what other tools read.

    Attributes:
      image: the feature with the encoded image.
      text: features with captions, lists of one or more; () makes captions of the class names.
      label: feature with the class, as number or name; None for none.
      index: where is kept how many records each file has: None for the cache folder of `storage`, "beside" for the
        folder of the files, else a folder or URL.
    """

    image: str = "image"
    text: tuple[str, ...] = ("text",)
    label: str | None = None
    index: str | None = None

    KIND: ClassVar[str] = "array_record"
    HOW: ClassVar[tuple[str, ...]] = (*ImageText.HOW, "index")

    def validate(self) -> None:
        """Raises: UserError, also for other group sizes than 1, or where the first record lacks a feature."""
        if self.count():
            try:
                features = self._features(0)
            except Missing:  # damaged: others may not be
                features = None
            for field, names in (("image", (self.image,)), ("text", self.text), ("label", (self.label,))):
                for name in names:
                    if name and features is not None and name not in features:
                        raise UserError(f"{self.path} has no feature {name!r} ({field}): {closest(name, features)}")
        super().validate()

    def count(self) -> int:
        return int(self._starts[-1])

    def contents(self) -> Any:
        return [(file.name, file.size, index.meta["records"]) for file, index in zip(self._files, self._indexes)]

    def where(self, index: int) -> str:
        k, record = locate(self._starts, index)
        return f"{self._files[k].name}:{record}"

    def fields(self, index: int) -> Fields:
        features = self._features(index)
        image = features.get(self.image) or [b""]
        label = (features.get(self.label) or [None])[0] if self.label else None
        if not isinstance(image[0], bytes):
            raise Missing(f"feature {self.image!r} holds numbers, wanted are the bytes of an encoded image")
        return Fields(image[0], self._texts(features), utf8(label, self.label) if isinstance(label, bytes) else label)

    def texts_of(self, index: int) -> Sequence[str]:
        return self._texts(self._features(index))

    def _texts(self, features: dict[str, list]) -> list[str]:
        values = [(name, value) for name in self.text for value in features.get(name, ())]
        if any(not isinstance(value, bytes) for _, value in values):
            raise Missing(f"features {', '.join(self.text)} hold numbers, wanted are strings")
        return [utf8(value, name).strip() for name, value in values]

    def _features(self, index: int) -> dict[str, list]:
        k, record = locate(self._starts, index)
        try:
            return decode_example(self._readers[k].read(record))
        except ValueError as error:
            raise Missing(str(error)) from None

    @functools.cached_property
    def _files(self) -> list[File]:
        return find_files(self.path, SUFFIXES, self.storage)

    @functools.cached_property
    def _indexes(self) -> list[Index]:
        make = functools.partial(count_records, storage=self.storage)
        return indexes(self._files, KIND, make, self.storage, self.index)

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        return starts_of(index.meta["records"] for index in self._indexes)

    @functools.cached_property
    def _readers(self) -> list[Reader]:
        return [Reader(file, self.storage) for file in self._files]


class Reader:
    """Records of one file, which is opened at the first read."""

    def __init__(self, file: File, storage: Storage):
        self._file, self._storage = file, storage
        self._lock = threading.Lock()
        self._opened = None

    def read(self, number: int) -> bytes:
        """Raises: Missing for a damaged record; OSError where it cannot be read."""
        with self._lock:
            if self._opened is None:
                self._opened = open_file(self._file, self._storage)
        try:
            return self._opened.read([number])[0]
        except RuntimeError as error:
            why = str(error).splitlines()[0]
            if why.startswith(DAMAGE):
                raise Missing(f"bytes of {self._file.path} were changed: {why}") from None
            raise OSError(f"{self._file.path}: {why}") from error


def open_file(file: File, storage: Storage):
    """array_record's reader of a file; those of URLs are fetched whole."""
    from array_record.python.array_record_module import ArrayRecordReader

    where = str(storage.local(file))
    return ArrayRecordReader(where, options="readahead_buffer_size:0", file_reader_buffer_size=2**15)


def count_records(file: File, storage: Storage) -> Index:
    """`meta["records"]`: how many there are.

    Raises: UserError for a file that is none, is cut off, or was written in groups.
    """
    reader = open_file(file, storage)
    if not reader.ok():
        why = "it is cut off, or no ArrayRecord file"
        try:
            reader.read([0])
        except RuntimeError as error:
            why += f" ({str(error).splitlines()[0]})"
        raise UserError(f"{file.path} cannot be read: {why}.")
    options = reader.writer_options_string()
    group = re.search(r"group_size:(\d+)", options)
    if group and group[1] != "1":
        raise UserError(
            f"{file.path} was written with group_size:{group[1]}, so that reading one record decodes {group[1]}: write "
            "it again with ArrayRecordWriter(path, 'group_size:1')."
        )
    return Index({"records": reader.num_records()}, {})
