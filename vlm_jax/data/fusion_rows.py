"""Rows of training batches that hold documents of texts and image tokens, one each or packed."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable

import numpy as np

from vlm_jax.data import infilling
from vlm_jax.data.errors import UnreadableImage, UnreadableRecord
from vlm_jax.data.fusion import Fusion
from vlm_jax.data.infilling import Document
from vlm_jax.data.packing_bins import first_fit_decreasing
from vlm_jax.data.reader import Reader, UnreadableText, says_something
from vlm_jax.data.rows import RowGenerator, Rows, halves
from vlm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Parts:
    """A record as it is before it becomes tokens: texts, and images as codes or decoded, in order.

    Attributes:
      captions: of a pair, whose only part is the image; one of them is taken, before or after it.
    """

    parts: tuple[str | np.ndarray, ...]
    captions: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class FusionReader(Reader):
    """Reads documents of a source of `parts`, or pairs with `image_codes` or `image`.

    Attributes (besides those of `Reader`):
      fusion: what images are.
    """

    fusion: Fusion | None = None

    def example(self, record: dict, index: int) -> Parts:
        """What a record holds, decoded. Raises: UnreadableRecord; UserError where a source has no codes."""
        label = -1 if record.get("label") is None else int(record["label"])
        try:
            if "parts" in record:
                kept = (part for part in record["parts"] if not isinstance(part, str) or says_something(part))
                return Parts(tuple(part if isinstance(part, str) else self._image(part) for part in kept))
            name = "image" if self.fusion.pictures else "image_codes"
            if record.get(name) is None:
                raise UserError(
                    f"source {self.source.name!r} has no {name!r}: `python -m vlm_jax.data tokenize` writes codes, "
                    "Fusion.pictures=True takes pictures."
                )
            return Parts((self._image(record[name]),), self._texts(record, label))
        except (UnreadableImage, UnreadableText) as error:
            raise UnreadableRecord(self.source.name, str(record.get("key", index)), str(error)) from error

    def _image(self, image) -> np.ndarray:
        if self.fusion.pictures:
            return self.decode(image)
        codes, wanted = np.asarray(image), self.fusion.vocabulary.codes
        if not np.issubdtype(codes.dtype, np.integer):
            raise UserError(
                f"source {self.source.name!r} has pictures, and image codes are wanted: set Fusion.pictures=True."
            )
        if codes.size != self.fusion.image_tokens:
            raise UnreadableImage(f"{codes.size} image codes where {self.fusion.image_tokens} are wanted")
        if not 0 <= codes.min() <= codes.max() < wanted:
            raise UnreadableImage(f"image codes {codes.min()} to {codes.max()}, where there are 0 to {wanted - 1}")
        return codes.astype(np.int32).ravel()


class FusionRows(Rows):
    """Makes the rows of any global row indices; see `vlm_jax.data.fusion.Fusion`. It pickles.

    `example_id` is that of the document, where each row holds one; else [b, per_row, 2], those of the row's documents,
    zero where there is none.
    """

    @property
    def reader(self) -> Callable[..., FusionReader]:
        return functools.partial(FusionReader, fusion=self._pipeline.fusion)

    @property
    def spec(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape of one row and type of each array."""
        pipeline, fusion = self._pipeline, self._pipeline.fusion
        ids = (2,) if fusion.examples == fusion.rows == 1 else (fusion.per_row, 2)
        return fusion.spec(pipeline.image.size, pipeline.text.length) | {"example_id": (ids, "uint32")}

    def __call__(self, indices: np.ndarray) -> tuple[dict[str, np.ndarray], list[tuple[int, str, str, str]]]:
        """The rows, and place, source, key and reason of each document in them whose own record was unreadable.

        A document that is in no row is told with the first row of its window.
        """
        fusion, text = self._pipeline.fusion, self._pipeline.text
        batch = {name: np.zeros((len(indices), *shape), dtype) for name, (shape, dtype) in self.spec.items()}
        batch["text"] += np.int32(text.pad_id)
        windows, slots = np.divmod(indices, fusion.rows)
        numbers = np.unique(windows)
        wanted = (numbers[:, None] * fusion.examples + np.arange(fusion.examples)).ravel()
        found = zip(wanted.tolist(), self.examples(wanted))
        generator, unreadable = RowGenerator(self._seed), []
        for number in numbers.tolist():
            window, told = [], []
            for index, (part, example, failure) in itertools.islice(found, fusion.examples):
                window.append((index, *self._document(part, example, generator(index))))
                told.append(failure and (part.name, *failure))
            sizes = np.array([[len(document), len(images), 1] for _, document, images in window])
            room = np.tile([text.length, fusion.pictures_of_row, fusion.per_row], (fusion.rows, 1))
            rows = first_fit_decreasing(sizes, room)
            for at in np.flatnonzero(windows == number).tolist():
                row = {name: array[at] for name, array in batch.items()}
                held = np.flatnonzero(rows == slots[at]).tolist()
                for slot, place in enumerate(held):
                    _write(row, slot, *window[place])
                left_out = np.flatnonzero(rows < 0).tolist() if slots[at] == 0 else []
                unreadable += [(at, *told[place]) for place in held + left_out if told[place]]
        return batch, unreadable

    def _document(self, part, example: Parts, rng: np.random.Generator) -> tuple[Document, list[np.ndarray]]:
        """The document and its pictures. Every draw is made, whatever comes of it."""
        fusion, text = self._pipeline.fusion, self._pipeline.text
        choice, order, infilled = rng.random(3)
        parts = list(example.parts)
        if example.captions:
            caption = part.choose(example.captions, choice)
            parts = [caption, *parts] if order < fusion.caption_first else [*parts, caption]
        document, images = fusion.document([self._tokens(each) for each in parts], text)
        if infilled < fusion.infilled:
            document = infilling.infilled(document, fusion.vocabulary, rng)
        return document, [part.augment(parts[number], rng) for number in images] if fusion.pictures else []

    def _tokens(self, part: str | np.ndarray) -> list[int] | np.ndarray | None:
        text = self._pipeline.text
        if isinstance(part, str):
            return text.model.encode(text.canonical(part))
        return None if self._pipeline.fusion.pictures else part


def _write(row: dict[str, np.ndarray], slot: int, index: int, document: Document, images: list[np.ndarray]) -> None:
    """Puts a document into the arrays of a row, behind those before it."""
    start = int((row["text_segment_ids"] > 0).sum())
    place = slice(start, start + len(document))
    row["text"][place] = document.tokens
    row["target_mask"][place] = document.targets
    row["text_segment_ids"][place] = row["text_segment_ids"].max() + 1
    row["example_id"].reshape(-1, 2)[slot] = halves(np.array([index]))[0]
    if "image" in row:
        before = int(row["text_image_ids"].max())
        row["text_image_ids"][place] = np.where(document.image_ids > 0, document.image_ids + before, 0)
        for number, image in enumerate(images):
            row["image"][before + number] = image
