"""`WebDataset`: tars of images and captions as img2dataset writes them, read at random."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np

from vlm_jax.data.files import find_files
from vlm_jax.data.index import Index, indexes
from vlm_jax.data.sources.base import Fields, ImageText, Missing, field_of, strings, utf8
from vlm_jax.data.sources.parts import locate, starts_of
from vlm_jax.data.sources.tar_index import KIND, key_of, make_tar_index
from vlm_jax.data.storage import File, Storage
from vlm_jax.errors import UserError, closest
from vlm_jax.redact import hidden

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "avif", "img")
DAMAGED = ("refuse", "skip")
NEAR = 2**16  # bytes between two members that are rather read than asked for separately


@dataclasses.dataclass(frozen=True)
class WebDataset(ImageText):
    """Samples of tars: members that share their path up to the first dot are one sample.

    Every tar is indexed once, so that any sample of any tar can be read at any time: the order of training is a true
    permutation of all samples, without a shuffle buffer, and a run resumes exactly.

    Attributes:
      image: extensions of the image; the first that a sample has is taken.
      text: where captions are: an extension ("txt"), or a field of a JSON member ("json:caption", "json:meta.alt"),
        which may be a list. All that a sample has are its captions. () makes them of the class names.
      lines: each line of a text member is a caption of its own.
      label: where the class is, as number or name: "cls", or a field such as "json:label"; None for none.
      damaged: what becomes of tars that are cut off, missing (where braces spell them out) or have a key twice:
        "refuse" to start, or "skip" what is damaged, with a warning, and use the rest.
      index: where indexes are kept: None for the cache folder of `storage`, "beside" for the folder of the tars, else
        a folder or URL.
    """

    image: tuple[str, ...] = IMAGES
    text: tuple[str, ...] = ("txt",)
    lines: bool = False
    label: str | None = None
    damaged: str = "refuse"
    index: str | None = None

    KIND: ClassVar[str] = "webdataset"
    HOW: ClassVar[tuple[str, ...]] = (*ImageText.HOW, "damaged", "index")

    def validate(self) -> None:
        """Raises: UserError, also for a damaged tar, unless those are skipped."""
        if self.damaged not in DAMAGED:
            raise UserError(f"WebDataset.damaged={self.damaged!r}: {closest(self.damaged, DAMAGED)}")
        if self.problems:
            self._tell_problems()
        there = {extension for index in self._indexes for extension, _ in index.meta["extensions"]}
        wanted = {"image": self.image, "text": self.text, "label": (self.label,) if self.label else ()}
        for field, values in wanted.items():
            names = [value.partition(":")[0] for value in values]
            if names and there and not there.intersection(names):
                raise UserError(f"{self.path} has no .{names[0]} members ({field}): {closest(names[0], there)}")
        super().validate()

    @functools.cached_property
    def problems(self) -> list[tuple[str, str, str]]:
        """File, key ("" for the file as a whole) and what is wrong, at most 20 of a file."""
        missing = [(file.path, "", "it is not there") for file in self._all_files if file.size < 0]
        found = zip(self._files, self._indexes)
        return missing + [(file.path, *problem) for file, index in found for problem in index.meta["problems"]]

    @functools.cached_property
    def problem_count(self) -> int:
        """How many there are in all."""
        missing = len(self._all_files) - len(self._files)
        return missing + sum(index.meta["problem_count"] for index in self._indexes)

    def count(self) -> int:
        return int(self._starts[-1])

    def contents(self) -> Any:
        return [(file.name, file.size, int(n)) for file, n in zip(self._files, np.diff(self._starts))]

    def where(self, index: int) -> str:
        k, sample = locate(self._starts, index)
        return f"{self._files[k].name}:{key_of(self._indexes[k], sample)}"

    def fields(self, index: int) -> Fields:
        members = self._read(index, self.image, self._described)
        image = next((extension for extension in self.image if extension in members), None)
        if image is None:
            raise Missing(f"no member .{' or .'.join(self.image)}")
        if not members[image]:
            raise Missing(f"its .{image} has no bytes")
        label = None
        if self.label is not None:
            label = next(iter(self._values(members, self.label)), None)
            label = label.strip() if isinstance(label, str) else label
        return Fields(members[image], self._texts(members), label)

    def texts_of(self, index: int) -> Sequence[str]:
        return self._texts(self._read(index, (), self._described))

    def _texts(self, members: dict[str, bytes]) -> list[str]:
        found = []
        for place in self.text:
            for value in self._values(members, place):
                texts = strings(value, place)
                plain = ":" not in place
                found += [line for text in texts for line in text.splitlines()] if self.lines and plain else texts
        return [text.strip() for text in found]

    def _values(self, members: dict[str, bytes], place: str) -> Iterable[Any]:
        """What a sample has at "EXTENSION" or "EXTENSION:FIELD.FIELD": one value or none."""
        extension, _, path = place.partition(":")
        if extension not in members:
            return
        value = utf8(members[extension], f".{extension}")
        if path:
            try:
                value = json.loads(value)
            except ValueError as error:
                raise Missing(f".{extension} is not JSON: {error}") from None
            value = field_of(value, path)
        if value is not None:
            yield value

    @functools.cached_property
    def _described(self) -> tuple[str, ...]:
        """Extensions of members other than the image."""
        places = (*self.text, *([self.label] if self.label else []))
        return tuple(dict.fromkeys(place.partition(":")[0] for place in places))

    def _read(self, index: int, any_of: tuple[str, ...], all_of: tuple[str, ...]) -> dict[str, bytes]:
        """Members of a sample by extension: the first that it has `any_of`, and those that it has `all_of`."""
        k, sample = locate(self._starts, index)
        arrays, numbers = self._indexes[k].arrays, self._numbers[k]
        members = slice(*arrays["first"][sample : sample + 2].tolist())
        columns = (arrays[name][members].tolist() for name in ("extension", "offset", "size"))
        places = {extension: (at, at + size) for extension, at, size in zip(*columns)}
        there = lambda names: [name for name in names if numbers.get(name) in places]
        wanted = {name: places[numbers[name]] for name in there(any_of)[:1] + there(all_of)}
        return read_spans(self.storage, self._files[k], wanted)

    @functools.cached_property
    def _all_files(self) -> list[File]:
        return find_files(self.path, (".tar",), self.storage, allow_missing=self.damaged == "skip")

    @functools.cached_property
    def _files(self) -> list[File]:
        return [file for file in self._all_files if file.size >= 0]

    @functools.cached_property
    def _indexes(self) -> list[Index]:
        make = functools.partial(make_tar_index, storage=self.storage)
        return indexes(self._files, KIND, make, self.storage, self.index, processes=True)

    @functools.cached_property
    def _numbers(self) -> list[dict[str, int]]:
        return [{name: k for k, (name, _) in enumerate(index.meta["extensions"])} for index in self._indexes]

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        return starts_of(len(index.arrays["key_ends"]) for index in self._indexes)

    def _tell_problems(self) -> None:
        path, key, why = self.problems[0]
        first = f"{path}{':' if key else ''}{key}: {why}"
        if self.damaged == "refuse":
            more = f" (the first of {self.problem_count} problems)" if self.problem_count > 1 else ""
            raise UserError(f"{first}{more}; damaged='skip' uses what is whole.")
        _warn(f"{self.path}: what is damaged is left out, problems: {self.problem_count}; the first: {first}")


@functools.cache
def _warn(line: str) -> None:
    """Once, however often a run makes its source."""
    logging.warning("%s", hidden(line))


def read_spans(storage: Storage, file: File, spans: dict[str, tuple[int, int]]) -> dict[str, bytes]:
    """Parts of a file; those that lie near each other by one request."""
    found, at_once = {}, []
    for name, (start, stop) in sorted(spans.items(), key=lambda item: item[1]):
        if at_once and start > at_once[-1][2] + NEAR:
            found |= _read_at_once(storage, file, at_once)
            at_once = []
        at_once.append((name, start, stop))
    return found | _read_at_once(storage, file, at_once)


def _read_at_once(storage: Storage, file: File, spans: list[tuple[str, int, int]]) -> dict[str, bytes]:
    if not spans:
        return {}
    first = spans[0][1]
    data = storage.read(file, first, max(stop for _, _, stop in spans))
    return {name: data[start - first : stop - first] for name, start, stop in spans}
