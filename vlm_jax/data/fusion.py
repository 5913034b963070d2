"""Texts and images as tokens of one vocabulary: documents of both, and what is given before one of them is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Int32

from vlm_jax.data import infilling
from vlm_jax.data.fused_vocabulary import Vocabulary
from vlm_jax.data.infilling import Document
from vlm_jax.data.packing_bins import left_out
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError

Codes = Int32[np.ndarray, "codes"]
SHORTEST = 16  # tokens of a row of prompts; longer ones are powers of two


@dataclasses.dataclass(frozen=True)
class Fusion:
    """A row of `Text.length` tokens holds documents: a begin token, texts and images in their order, an end token.

    A record of an image and its captions is a document of the image and one of them, in either order. One of `parts`
    (`data.sources.interleaved.Interleaved`) keeps its own. Texts are cut where the row has no room for them beside the
    images. All tokens are learnt but the first, those of images too.

    Images come as codes, `image_codes` of a record (`data.sources.image_codes.ImageCodes`), or as pictures that the
    model tokenizes as it is trained.

    Window w holds documents [w * examples, (w + 1) * examples) of the run, and they become `rows` rows, as in
    `data.conversations.Conversations`.

    Attributes:
      vocabulary: the ids.
      grid: rows and columns of the codes of an image.
      pictures: images are pictures. A row then has `images` of them, at most.
      markers: "image" puts begin-of-image and end-of-image around each (Chameleon, arXiv:2405.09818); "break" puts one
        token between an image and what is beside it (CM3Leon, arXiv:2309.02591).
      caption_first: how often an image comes after its caption, a fraction.
      infilled: documents with spans that are moved to the end, see `data.infilling`, a fraction.
      images: of a document, at most.
      examples, rows, per_row: documents of a window, rows that they become, and documents of a row at most.
    """

    vocabulary: Vocabulary
    grid: int
    pictures: bool = False
    markers: Literal["image", "break"] = "image"
    caption_first: float = 0.5
    infilled: float = 0.0
    images: int = 1
    examples: int = 1
    rows: int = 1
    per_row: int = 1

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises: UserError for numbers that do not fit together."""
        for name in ("grid", "images", "examples", "rows", "per_row"):
            if getattr(self, name) < 1:
                raise UserError(f"Fusion.{name}={getattr(self, name)} must be at least 1.")
        for name in ("caption_first", "infilled"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"Fusion.{name}={getattr(self, name)} is a fraction, from 0 to 1.")
        if self.markers not in ("image", "break"):
            raise UserError(f"Fusion.markers={self.markers!r}: wanted is 'image' or 'break'.")
        if self.infilled and not self.vocabulary.sentinels:
            raise UserError(f"Fusion.infilled={self.infilled} needs masks: set Vocabulary.sentinels.")
        if self.examples > self.rows * self.per_row:
            raise UserError(
                f"Fusion.examples={self.examples} can never fit into {self.rows} rows of {self.per_row}; raise rows or "
                "per_row."
            )

    @property
    def image_tokens(self) -> int:
        """Codes of an image."""
        return self.grid**2

    @property
    def pictures_of_row(self) -> int:
        """Of a row, at most; 0 where images are codes."""
        return self.images * self.per_row if self.pictures else 0

    def check(self, text: Text | None) -> None:
        """Raises: UserError where rows of this text cannot hold a document."""
        if text is None:
            raise UserError("Pipeline.fusion needs Pipeline.text: bind data.text.Text there.")
        if not text.bos or text.eos == "none" or text.pad_side != "right":
            raise UserError(
                f"Text has bos={text.bos}, eos={text.eos!r}, pad_side={text.pad_side!r}; documents of texts and images "
                "begin and end with tokens of their own: set bos=True, eos='sticky' and pad_side='right'."
            )
        if text.vocab_size > self.vocabulary.text:
            raise UserError(
                f"Vocabulary.text={self.vocabulary.text}, and the tokenizer of texts has {text.vocab_size}; raise it."
            )
        if (room := self._room(text, 1)) < 1:
            raise UserError(
                f"Text.length={text.length} has no room for an image of {self.image_tokens} tokens and a text; at "
                f"least {text.length - room + 1} are needed."
            )

    def check_source(self, source: Any) -> None:
        """Raises: UserError where a source says that its codes are others."""
        codes = getattr(source, "codes", None)
        if codes is None:
            return
        if self.pictures:
            raise UserError(f"source {source.name!r} holds image codes, and Fusion.pictures=True: set it to False.")
        if len(codes.grid) != 2:
            raise UserError(
                f"source {source.name!r} has images of {' x '.join(map(str, codes.grid))} codes, the last of them of "
                "one place: one code a place is wanted, which a quantiser without residuals gives."
            )
        if codes.vocab_size != self.vocabulary.codes or codes.length != self.image_tokens:
            raise UserError(
                f"source {source.name!r} has {codes.length} codes of {codes.vocab_size} for an image, the decoder "
                f"takes {self.image_tokens} of {self.vocabulary.codes}: set Fusion.grid and Vocabulary.codes to them."
            )

    def spec(self, size: int, length: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape of one row and type of each array.

        `text` are tokens of all kinds, `text_segment_ids` 1, 2, ... for the documents of a row and 0 for padding.
        `target_mask` says which tokens are learnt, each from those before it. With pictures there are `image`, and
        `text_image_ids`, n at the places of the row's image n, counted from 1.

        Args:
          size: of pictures. length: tokens of a row.
        """
        tokens = ((length,), "int32")
        rows = {"text": tokens, "text_segment_ids": tokens, "target_mask": ((length,), "bool")}
        if self.pictures:
            rows |= {"text_image_ids": tokens, "image": ((self.pictures_of_row, size, size, 3), "uint8")}
        return rows

    def document(self, parts: Sequence[list[int] | Codes | None], text: Text) -> tuple[Document, list[int]]:
        """A document as it stands in a row, and which of its parts are its images.

        Args:
          parts: in order: token ids of texts, codes of images, None for pictures.
        """
        is_image = [not isinstance(part, list) for part in parts]
        fit = [n for n in range(1, min(self.images, sum(is_image)) + 1) if self._room(text, n) >= 0]
        kept = np.cumsum(is_image) <= max(fit, default=0)
        room = self._room(text, max(fit, default=0))
        pieces: list[Document] = [infilling.text([text.bos_id], learnt=False)]
        images: list[int] = []
        after_image = False
        for number, part in enumerate(parts):
            part = part if is_image[number] else part[:room]
            if not kept[number] or (not is_image[number] and not part):
                continue
            if self.markers == "break" and len(pieces) > 1 and (is_image[number] or after_image):
                pieces.append(infilling.text([self.vocabulary.break_id]))
            after_image = is_image[number]
            if after_image:
                images.append(number)
                pieces.append(self._image(part, len(images)))
            else:
                pieces.append(infilling.text(part))
                room -= len(part)
        return infilling.joined([*pieces, infilling.text([text.eos_id])]), images

    def _image(self, codes: Codes | None, number: int) -> Document:
        """An image and its markers, which are never parted."""
        ids = self.vocabulary
        tokens = ids.image(np.zeros(self.image_tokens, np.int32) if codes is None else codes)
        image_ids = np.full(len(tokens), number, np.int32)
        if self.markers == "image":
            tokens = np.concatenate([[ids.image_begin], tokens, [ids.image_end]]).astype(np.int32)
            image_ids = np.pad(image_ids, 1)
        return Document(tokens, np.ones(len(tokens), bool), image_ids, np.zeros(len(tokens), np.int32))

    def _room(self, text: Text, images: int) -> int:
        """Tokens of texts that a row has room for beside so many images."""
        marks = 2 * images + (2 * self.vocabulary.sentinels if self.infilled else 0)
        return text.length - 2 - images * self.image_tokens - marks

    # What is given before something is written

    def before_image(self, caption: Sequence[int], bos_id: int) -> list[int]:
        """What an image is drawn after; of an empty caption what begins a document whose image is the first."""
        begin = [bos_id, *caption]
        if self.markers == "image":
            return [*begin, self.vocabulary.image_begin]
        return [*begin, self.vocabulary.break_id] if caption else begin

    def around_image(self, bos_id: int) -> tuple[list[int], list[int]]:
        """What stands before and after the codes of an image that a text is written about."""
        after = self.vocabulary.image_end if self.markers == "image" else self.vocabulary.break_id
        return self.before_image([], bos_id), [after]

    def prompts(self, captions: Sequence[str], text: Text) -> dict[str, np.ndarray]:
        """`text` int32 [n, time] and `text_segment_ids`, 1 for what the images of captions are drawn after.

        Raises: UserError for a caption that leaves no room for an image.
        """
        rows = [self.before_image(text.model.encode(text.canonical(caption)), text.bos_id) for caption in captions]
        most = text.length - self.image_tokens - 1
        if (longest := max(map(len, rows))) > most:
            raise UserError(
                f"caption {captions[list(map(len, rows)).index(longest)][:60]!r}: {longest} tokens, and beside an "
                f"image there is room for {most}."
            )
        length = min(most, max(SHORTEST, 1 << (longest - 1).bit_length()))
        tokens = np.full((len(rows), length), text.pad_id, np.int32)
        for row, found in zip(tokens, rows):
            row[: len(found)] = found
        counts = np.array([len(row) for row in rows])
        return {"text": tokens, "text_segment_ids": (np.arange(length) < counts[:, None]).astype(np.int32)}

    def metrics(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Of a batch: how full it is, and how many documents found no room in it."""
        segments = batch["text_segment_ids"]
        documents = segments.max(axis=1).sum()
        return {
            "packing/text_fill": (segments > 0).mean(),
            "packing/documents": documents,
            "packing/left_out": left_out(segments.shape[0], self.examples, self.rows, documents),
        }
