"""Conversations about images as rows of one length: what a row holds, where, and which of it is learnt."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from vlm_jax.data.chat import Chat, Piece
from vlm_jax.data.chat_template import Message, Template, template_of
from vlm_jax.data.conversation_images import (
    Augment,
    Draws,
    FixedImages,
    NativeImages,
    Picture,
    PlainTransform,
    Size,
    TiledImages,
)
from vlm_jax.data.conversation_layout import Laid, Room, lay, too_long
from vlm_jax.data.errors import UnreadableImage
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.packing_bins import first_fit_decreasing, left_out
from vlm_jax.data.reader import UnreadableText
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Conversations:
    """A row of `Text.length` tokens holds conversations: turns in a chat template, images at their places among them.

    A conversation is a record with `messages`, and `image` or `images` where it has any; its user's turns say where
    they stand. A record of a pair is one too: the image as a question, its caption as the answer. What is learnt are
    answers and the tokens that end them.

    Window w holds conversations [w * examples, (w + 1) * examples) of the run and nothing else, and they become `rows`
    rows, so that a row is a function of its index. The longest go first, each whole into the first row with room for
    it; what finds none is left out. `examples=1, rows=1` is a conversation a row.

    Attributes:
      template: name of a chat template, "plain" | "vicuna" | "llama2" | "chatml" | "smollm", or one of your own.
      system: the system text of conversations without one, in place of the template's; "" for none.
      images: `FixedImages`, `TiledImages`, `NativeImages`, or None where no conversation has any.
      examples, rows: conversations of a window, and rows that they become. Rows are prepared by window: the batch must
        be a multiple of `rows`, and the rows of a process should be, or windows are decoded more than once.
      per_row: conversations of a row, at most.
      overlong: a conversation that is longer than a row, or has more images, is "truncate"d: it ends with the row, or
        before the first image that there is no room for. Or it is "leave_out", as if it were unreadable. One of which
        no answer would be left always is.
      unreadable: conversations whose labels, roles, places or images are wrong: "replace" counts each and takes the
        next in its place, "refuse" stops with the first.
    """

    template: str | Template = "plain"
    system: str | None = None
    images: FixedImages | TiledImages | NativeImages | None = FixedImages()
    examples: int = 1
    rows: int = 1
    per_row: int = 1
    overlong: Literal["truncate", "leave_out"] = "truncate"
    unreadable: Literal["replace", "refuse"] = "replace"

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises: UserError for an unknown template, or numbers that do not fit together."""
        _ = self.written
        for name in ("examples", "rows", "per_row"):
            if getattr(self, name) < 1:
                raise UserError(f"Conversations.{name}={getattr(self, name)} must be at least 1.")
        if self.examples > self.rows * self.per_row:
            raise UserError(
                f"Conversations.examples={self.examples} can never fit into {self.rows} rows of {self.per_row}; "
                "raise rows or per_row."
            )

    def check(self, text: Text | None) -> None:
        """Raises: UserError where rows of this text have no room for an image and an answer."""
        if text is None:
            raise UserError("Pipeline.conversations needs Pipeline.text: bind data.text.Text there.")
        if text.pad_side != "right":
            raise UserError(f"Text.pad_side={text.pad_side!r}: rows of conversations are padded on the right.")
        needed = (0 if self.images is None else self.images.places) + 3
        if text.length < needed:
            raise UserError(
                f"Text.length={text.length} has no room for an image and its answer; at least {needed} are needed."
            )

    @property
    def written(self) -> Template:
        """The template, with the system text."""
        template = template_of(self.template)
        return template if self.system is None else dataclasses.replace(template, system=self.system)

    def chat(self, text: Text) -> Chat:
        """What tokenizes conversations."""
        return Chat(self.written, text)

    def transform(self, image: ImageTransform) -> Any:
        """What reads and varies images in place of `image`. Raises: UserError where it cannot be what `images` need."""
        return image if self.images is None else self.images.transform(image)

    def spec(self, size: int, length: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape of one row and type of each array; those of images are `images.spec`'s.

        `text_segment_ids` are 1, 2, ... for the conversations of a row, places of images among them, and 0 for padding.
        `target_mask` says which tokens are learnt, each from those before it. `text_image_ids` is n at the places in
        `text` of the row's image n, counted from 1, and 0 elsewhere.

        Args:
          size: of images of one size. length: tokens of a row.
        """
        return {
            "text": ((length,), "int32"),
            "text_segment_ids": ((length,), "int32"),
            "target_mask": ((length,), "bool"),
            "text_image_ids": ((length,), "int32"),
            **({} if self.images is None else self.images.spec(size)),
        }

    def blank(self, count: int, size: int, text: Text) -> dict[str, np.ndarray]:
        """So many rows of padding."""
        arrays = {
            name: np.zeros((count, *shape), dtype) for name, (shape, dtype) in self.spec(size, text.length).items()
        }
        arrays["text"] += np.int32(text.pad_id)
        return arrays

    def room(self, text: Text) -> Room:
        """What a row has."""
        images = self.images
        return Room(text.length, 0 if images is None else images.count, 0 if images is None else images.patches)

    @property
    def _unit(self) -> str:
        return "tiles" if isinstance(self.images, TiledImages) else "patches"

    def laid(
        self, messages: Sequence[Message], images: Sequence[Picture], text: Text, *, overlong: str | None = None
    ) -> Laid:
        """Turns from the begin of a row on; they end with the last answer, or with the row.

        Args:
          images: as what `transform` gives reads them.
          overlong: in place of `self.overlong`.

        Raises: UnreadableText for what `Chat` raises it for, no answer, none that the row has room for, and what does
          not fit as a whole and is to be left out.
        """
        pieces, sizes = self._pieces(messages, images, text)
        if not any(piece.target for piece in pieces):
            raise UnreadableText("it has no answer, so that there is nothing to learn")
        laid, whole = lay(pieces, sizes, self.room(text), text.pad_id)
        if not whole and (overlong or self.overlong) == "leave_out":
            raise UnreadableText(too_long(pieces, sizes, self.room(text), self._unit))
        laid = laid.until_last_answer()
        if not laid.targets.any():
            raise UnreadableText(f"no answer begins within a row of {text.length} tokens")
        return laid

    def _pieces(
        self, messages: Sequence[Message], images: Sequence[Picture], text: Text, prompt: bool = False
    ) -> tuple[list[Piece], list[Size]]:
        """Tokens and images, and the sizes of these. Raises: UnreadableText."""
        if images and self.images is None:
            raise UnreadableText(f"it has {len(images)} images, and Conversations.images is None")
        sizes = [self.images.size(image) for image in images]
        return self.chat(text)(messages, images=len(images), prompt=prompt), sizes

    def plan(self, window: Sequence[Laid], text: Text) -> list[list[int]]:
        """Which conversations of a window each row holds, in order; one that is in no row was left out."""
        room = np.tile(np.array([*self.room(text), self.per_row]), (self.rows, 1))
        rows = first_fit_decreasing(np.array([[*laid.takes, 1] for laid in window]), room)
        return [np.flatnonzero(rows == row).tolist() for row in range(self.rows)]

    def write(
        self, row: dict[str, np.ndarray], laid: Laid, images: Sequence[Picture], augment: Augment, rng: Draws = None
    ) -> None:
        """Puts a conversation into the arrays of a row, behind those before it.

        Args:
          images: of the conversation, as what `transform` gives reads them, and `augment` varies them.
        """
        start = int((row["text_segment_ids"] > 0).sum())
        before = int(row["text_image_ids"].max())
        place = slice(start, start + len(laid.tokens))
        row["text"][place] = laid.tokens
        row["text_segment_ids"][place] = row["text_segment_ids"].max() + 1
        row["text_image_ids"][place] = np.where(laid.image_ids > 0, laid.image_ids + before, 0)
        if "target_mask" in row:
            row["target_mask"][place] = laid.targets
        for number, image in enumerate(images[: laid.takes.images], before + 1):
            self.images.write(row, number, image, augment, rng)

    def metrics(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Of a batch of numpy or jax arrays: how full it is, and how many conversations were left out of it.

        `packing/conversations` and `packing/targets` (tokens that are learnt) are counts, `packing/left_out` too;
        `packing/text_fill` and, of native images and tiles, `packing/image_fill` are fractions of the places there are.
        """
        segments = batch["text_segment_ids"]
        conversations = segments.max(axis=1).sum()
        fill = {"packing/text_fill": (segments > 0).mean()}
        if isinstance(self.images, NativeImages):
            fill["packing/image_fill"] = (batch["image_segment_ids"] > 0).mean()
        if isinstance(self.images, TiledImages):
            fill["packing/image_fill"] = batch["image_mask"].mean()
        return {
            "packing/conversations": conversations,
            "packing/left_out": left_out(segments.shape[0], self.examples, self.rows, conversations),
            "packing/targets": batch["target_mask"].sum(),
            **fill,
        }

    def prompts(self, records: Sequence[Mapping], *, image: ImageTransform, text: Text) -> dict[str, np.ndarray]:
        """Rows of one conversation each, up to where the next answer begins; an answer at its end is left out.

        Args:
          records: with `messages`, and `image` or `images` (encoded, arrays or `PIL.Image`s) where they have any.
          image, text: preprocessing; images are read as for evaluation, and rows have `text.length` tokens.

        Returns:
          The arrays of `spec`, but for `target_mask`. `text_segment_ids` is 1 for the prompt, 0 for padding after it.

        Raises: UserError, with the record's `key` or its number, where it is broken or longer than a row.
        """
        rows = self._evaluated(records, image, text, prompt=True)
        return {name: array for name, array in rows.items() if name != "target_mask"}

    def scored(self, records: Sequence[Mapping], *, image: ImageTransform, text: Text) -> dict[str, np.ndarray]:
        """Rows of one conversation each, whose last answer is what `target_mask` covers; else as `prompts`."""
        return self._evaluated(records, image, text, prompt=False)

    def _evaluated(
        self, records: Sequence[Mapping], image: ImageTransform, text: Text, prompt: bool
    ) -> dict[str, np.ndarray]:
        self.check(text)
        self.chat(text).check()
        transform = PlainTransform(image) if self.images is None else self.images.plain(image)
        rows = self.blank(len(records), image.size, text)
        for number, record in enumerate(records):
            row = {name: array[number] for name, array in rows.items()}
            try:
                images = tuple(map(transform.decode_resize, images_of(record)))
                messages = messages_of(record)
                if prompt and messages and messages[-1].get("role") == "assistant":
                    messages = messages[:-1]
                pieces, sizes = self._pieces(messages, images, text, prompt)
                laid, whole = lay(pieces, sizes, self.room(text), text.pad_id)
                if not whole:
                    raise UnreadableText(too_long(pieces, sizes, self.room(text), self._unit))
                if not (prompt or laid.targets.any()):
                    raise UnreadableText("it has no answer to be scored")
                self.write(row, laid if prompt else laid.last_answer(), images, transform.augment)
            except (UnreadableImage, UnreadableText) as error:
                raise UserError(f"record {record.get('key', number)}: {error}.") from None
        return rows


def images_of(record: Mapping[str, Any]) -> Sequence[Any]:
    """The images of a record, in the order of their places."""
    if record.get("images") is not None:
        return record["images"]
    return () if record.get("image") is None else (record["image"],)


def messages_of(record: Mapping[str, Any]) -> list[Message]:
    """The turns of a record; of a pair, of an image and captions, its first caption is the answer."""
    if record.get("messages") is not None:
        return list(record["messages"])
    captions = record.get("text") or ()
    turns = pair("" if not captions else captions if isinstance(captions, str) else captions[0], len(images_of(record)))
    return turns if captions else turns[:1]


def pair(caption: str, images: int) -> list[Message]:
    """The turns of a caption as the answer to its image."""
    question = {"role": "user", "content": [{"type": "image"}] * images}
    return [question, {"role": "assistant", "content": caption}]
