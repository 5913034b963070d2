"""What sources of images with captions or class names have in common."""

from __future__ import annotations

import abc
import dataclasses
import functools
import itertools
import json
import logging
import operator
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

from vlm_jax.data.errors import UnreadableRecord
from vlm_jax.data.sources.window import Window
from vlm_jax.data.storage import Storage, content_hash, is_remote
from vlm_jax.errors import UserError

CLASSES_FILE = "classes.txt"
AT_ONCE = 32  # captions that are asked of a bucket together


class Missing(Exception):
    """What a record lacks, or what is wrong with it."""


@dataclasses.dataclass(frozen=True)
class Fields:
    """What is stored of a record: encoded image, captions, class as a number or a name."""

    image: bytes
    texts: Sequence[str] = ()
    label: int | str | None = None


@dataclasses.dataclass(frozen=True)
class ImageText(Window):
    """Random access to records of `image`, `text`, `key` and, where there are classes, `label`.

    A source of some format says how many records there are (`count`), where one lies (`where`), and what is in it
    (`fields`).

    Attributes:
      path: a file, a folder, or a pattern such as "data/{00000..00012}.EXT" or "gs://bucket/*.EXT".
      templates: captions of a class, where records have no text; "{}" is its name.
      classes: names in label order; () takes them from the data, or from `classes.txt` in its folder, one a line.
      skip: records to leave out at the start.
      limit: records to use after that; None uses all.
      storage: how files are read, those of URLs too.
    """

    path: str
    templates: tuple[str, ...] = ("a photo of a {}.",)
    classes: tuple[str, ...] = ()
    skip: int = 0
    limit: int | None = None
    storage: Storage = Storage()

    ROWS: ClassVar[str] = "records"
    # Options that say how records are read, not which: they are no part of the fingerprint.
    HOW: ClassVar[tuple[str, ...]] = ("path", "storage")

    def __post_init__(self):
        for field in dataclasses.fields(self):  # a string is a tuple of letters where one forgets the comma
            if isinstance(field.default, tuple) and isinstance(value := getattr(self, field.name), str):
                raise UserError(f"{type(self).__name__}.{field.name}={value!r}: wanted is a tuple, ({value!r},).")
        self.validate()

    @abc.abstractmethod
    def where(self, index: int) -> str:
        """File and place of a record, as a message names them."""

    @abc.abstractmethod
    def fields(self, index: int) -> Fields:
        """Raises: Missing for a damaged record; OSError or UserError where it cannot be read."""

    @abc.abstractmethod
    def contents(self) -> Any:
        """What tells this data from other data, as JSON; not where it lies."""

    @property
    def has_texts(self) -> bool:
        """Whether records have captions of their own; this is of sources with `text`, names of their places."""
        return bool(self.text)

    @property
    def has_labels(self) -> bool:
        """Whether records have a class; this is of sources with `label`, the name of its place or None."""
        return self.label is not None

    def texts_of(self, index: int) -> Sequence[str]:
        """The captions of a record; cheaper than its `fields` where they can be read alone."""
        return self.fields(index).texts

    def names_in_data(self) -> tuple[str, ...]:
        """Class names that come with the data."""
        if is_remote(self.path):
            return ()
        path = Path(self.path.removeprefix("file://")).expanduser()
        file = (path if path.is_dir() else path.parent) / CLASSES_FILE
        return tuple(file.read_text().splitlines()) if file.is_file() else ()

    def validate(self) -> None:
        """Checks the options against the files' indexes; no record is read.

        Raises: UserError.
        """
        what = type(self).__name__
        self.check_options()
        if not self.templates or any(template.count("{}") != 1 for template in self.templates):
            raise UserError(f"{what}.templates={self.templates}: each template needs one '{{}}' for the class name.")
        self.check_count()
        if not self.has_texts and not self.class_names:
            raise UserError(
                f"{self.path} has neither captions nor class names: say which field holds captions, or give the names "
                f"as `classes` or in {CLASSES_FILE}."
            )

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of what the files hold as far as names and sizes tell, and of what is read of them."""
        options = {k: v for k, v in dataclasses.asdict(self).items() if k not in self.HOW}
        return content_hash(json.dumps([self.KIND, self.contents(), options, self.class_names]))

    @functools.cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names in label order, () where there are none."""
        return (tuple(self.classes) or self.names_in_data()) if self.has_labels else ()

    def __getitem__(self, index: int) -> dict:
        """`image` encoded bytes, `text` list of str, `label` int where there are classes, `key` file and place.

        Raises: UnreadableRecord for a damaged one; OSError or UserError where the file cannot be read.
        """
        place = self.place(index)
        try:
            return {**self._record(self.fields(place)), "key": self.where(place)}
        except Missing as missing:
            raise UnreadableRecord(self.name, self.where(place), str(missing)) from None

    def captions(self, limit: int | None = None) -> Iterator[str]:
        """Captions, at most `limit`, to train a tokenizer on; of classes, every name in every template once."""
        if self.has_texts:
            return itertools.islice(self._captions(), limit)
        return itertools.islice((t.format(name) for name in self.class_names for t in self.templates), limit)

    @functools.cached_property
    def _labels(self) -> dict[str, int]:
        return {name: label for label, name in enumerate(self.class_names)}

    def _captions(self) -> Iterator[str]:
        left_out, last = 0, self.skip + len(self)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            read = pool.map if is_remote(self.path) else map  # a bucket answers many at a time
            for first in range(self.skip, last, AT_ONCE):
                for texts in read(self._texts_or_none, range(first, min(first + AT_ONCE, last))):
                    left_out += texts is None
                    yield from texts or ()
        if left_out:
            logging.warning("%s: %d of %d records have no caption that can be read", self.name, left_out, len(self))

    def _texts_or_none(self, index: int) -> list[str] | None:
        try:
            return checked_texts(self.texts_of(index))
        except Missing:
            return None

    def _record(self, fields: Fields) -> dict:
        if not fields.image:
            raise Missing("its image has no bytes")
        record = {"image": fields.image}
        if self.has_labels:
            record["label"] = self._label(fields.label)
        if self.has_texts:
            record["text"] = checked_texts(fields.texts)
        else:
            record["text"] = [template.format(self.class_names[record["label"]]) for template in self.templates]
        return record

    def _label(self, label: int | str | None) -> int:
        if label is None or label == "":
            raise Missing("it has no class")
        if isinstance(label, str) and label in self._labels:
            return self._labels[label]
        try:
            number = int(label) if isinstance(label, str) else operator.index(label)
        except (TypeError, ValueError):
            known = f"which is none of the {len(self.class_names)} classes" if self.class_names else "give `classes`"
            raise Missing(f"class {label!r}, {known}") from None
        if number < 0 or (self.class_names and number >= len(self.class_names)):
            raise Missing(f"label {number}, where there are {len(self.class_names)} classes")
        return number


def checked_texts(texts: Sequence[str]) -> list[str]:
    """The captions that are not blank.

    Raises: Missing where none is left.
    """
    kept = [text for text in texts if text and not text.isspace()]
    if not kept:
        raise Missing("it has no text")
    return kept


def utf8(data: bytes, what: str) -> str:
    """Raises: Missing for bytes that are no UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Missing(f"{what} is not UTF-8: byte {data[error.start : error.start + 1]!r} at {error.start}") from None


def field_of(value: Any, path: str) -> Any:
    """What stands at "a.b" of a JSON value, None where there is nothing."""
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def strings(value: Any, what: str) -> list[str]:
    """The strings of a JSON value: one, or a list of them.

    Raises: Missing for anything else.
    """
    values = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(v, str) or v is None for v in values):
        raise Missing(f"{what} is {str(value)[:40]!r}, wanted is a string or a list of strings")
    return [v for v in values if v is not None]
