"""Documents of texts and images as rows of one length: what a row holds, and where."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vlm_jax.data.errors import UnreadableImage, UnreadableRecord
from vlm_jax.data.reader import Example, Reader, UnreadableText, says_something
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Placed:
    """What a row holds of a document.

    Attributes:
      tokens: of the row, before padding; those of an image's places mean nothing.
      image_ids: of each token: 1, 2, ... at the places of the row's first, second, ... image, 0 for text.
      images: which of the document's parts those images are.
    """

    tokens: list[int]
    image_ids: list[int]
    images: list[int]


@dataclasses.dataclass(frozen=True)
class Documents:
    """A row of `Text.length` tokens holds one document, its images at the places where they stand among the texts.

    A document that does not fit is seen through a window: it begins with a part that is drawn for each row, of those
    that leave no room unused (Flamingo, Alayrac et al. 2022, arXiv:2204.14198, section 3.3, draws a window as well).
    It ends before the first image that there is no room for; a text is cut. Records of pairs, of an image and its
    caption, are documents of these two, so that both can be mixed.

    Attributes:
      images: of a row, at most.
      image_tokens: places among the tokens that each image takes, as many as the model puts there.
      separator: between texts that no image separates.
    """

    images: int = 4
    image_tokens: int = 1
    separator: str = "\n"

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises: UserError for numbers that are none."""
        for name in ("images", "image_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"Documents.{name}={getattr(self, name)} must be at least 1.")

    def check(self, text: Text | None) -> None:
        """Raises: UserError where rows of this text have no room for the images and a token."""
        if text is None:
            raise UserError("Pipeline.documents needs Pipeline.text: bind data.text.Text there.")
        needed = self.images * self.image_tokens + text.bos + 1
        if text.length < needed:
            raise UserError(
                f"Text.length={text.length} has no room for Documents.images={self.images} of "
                f"image_tokens={self.image_tokens} and a text; at least {needed} are needed."
            )

    def spec(self, size: int, length: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape of one row and type of each array.

        `image_mask` says which of the `images` there are. `text_image_ids` is n at the places in `text` of image n,
        counted from 1, and 0 elsewhere; `target_mask` says which places are text, and neither image nor padding.
        """
        return {
            "image": ((self.images, size, size, 3), "uint8"),
            "image_mask": ((self.images,), "bool"),
            "text": ((length,), "int32"),
            "target_mask": ((length,), "bool"),
            "text_image_ids": ((length,), "int32"),
        }

    def place(self, parts: Sequence[list[int] | None], text: Text, draw: float) -> Placed:
        """What a row holds of a document.

        Args:
          parts: token ids of each text, None for each image. text: its length, and begin and end tokens.
          draw: a random number in [0, 1).
        """
        end = [] if text.eos == "none" else [text.eos_id]
        begin = [text.model.bos_id] if text.bos else []
        start = self._start(parts, text.length - len(begin) - len(end), draw)
        row = Placed(begin if start == 0 else [], [], [])
        for number, part in enumerate([*parts[start:], end], start):
            room = text.length - len(row.tokens)
            if part is not None:
                row.tokens.extend(part[:room])
                if len(part) > room:
                    break
            elif len(row.images) == self.images or room < self.image_tokens:
                break
            else:
                row.image_ids.extend([0] * (len(row.tokens) - len(row.image_ids)))
                row.images.append(number)
                row.tokens.extend([text.pad_id] * self.image_tokens)
                row.image_ids.extend([len(row.images)] * self.image_tokens)
        row.image_ids.extend([0] * (len(row.tokens) - len(row.image_ids)))
        return row

    def _start(self, parts: Sequence[list[int] | None], length: int, draw: float) -> int:
        """The part that a row begins with."""
        is_image = np.array([part is None for part in parts])
        sizes = np.array([self.image_tokens if part is None else len(part) for part in parts])
        tokens, images = (np.cumsum(values[::-1])[::-1] for values in (sizes, is_image))  # from each part to the end
        if tokens[0] <= length and images[0] <= self.images:
            return 0
        last_text = np.flatnonzero(~is_image)[-1]
        full = (tokens >= length) | (images >= self.images)
        starts = np.flatnonzero(full[: last_text + 1])
        start = int(starts[int(draw * len(starts))])
        before_text = int(np.argmin(is_image[start:]))
        return start + max(0, before_text - self.images)  # a row of images alone would teach nothing


@dataclasses.dataclass(frozen=True)
class Document:
    """A record as it is before augmentation and tokens.

    Attributes:
      parts: texts (of a pair its captions) and decoded images, in order.
      lacks: key and reason, where the source has left out some of its images.
    """

    parts: tuple[str | tuple[str, ...] | UInt8[np.ndarray, "H W 3"], ...]
    lacks: tuple[str, str] | None = None


class DocumentReader(Reader):
    """Reads documents of a source of `parts`, or of pairs."""

    def example(self, record: dict, index: int) -> Document:
        """What a record holds, decoded. Raises: UnreadableRecord."""
        if "parts" not in record:
            pair: Example = super().example(record, index)
            return Document((pair.image, pair.texts))
        key, dropped = str(record.get("key", index)), record.get("dropped")
        try:
            kept = (part for part in record["parts"] if not isinstance(part, str) or says_something(part))
            parts = tuple(self._part(part) for part in kept)
            if not any(isinstance(part, str) for part in parts):
                raise UnreadableText("it has no text")
        except (UnreadableImage, UnreadableText) as error:
            raise UnreadableRecord(self.source.name, key, str(error)) from error
        return Document(parts, (key, f"images that it lacks: {dropped}") if dropped else None)

    def _part(self, part: Any) -> str | np.ndarray:
        return part if isinstance(part, str) else self.decode(part)
