"""Conversations of a source by their index: read, decoded, checked."""

from __future__ import annotations

import dataclasses

from vlm_jax.data.conversation_images import Picture
from vlm_jax.data.conversation_layout import Laid
from vlm_jax.data.conversations import Conversations, images_of, pair
from vlm_jax.data.errors import UnreadableImage, UnreadableRecord
from vlm_jax.data.reader import Reader, UnreadableText
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Conversation:
    """A record as it is before it is put into a row: decoded images, and its turns, or of a pair the captions."""

    images: tuple[Picture, ...]
    laid: Laid | None = None
    captions: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ConversationReader(Reader):
    """Reads conversations of a source of `messages`, or of pairs.

    Attributes (besides those of `Reader`):
      conversations, text: how they are written.
    """

    conversations: Conversations | None = None
    text: Text | None = None

    def __call__(self, index: int) -> Conversation:
        """See `Reader`. Raises: UserError in place of UnreadableRecord, where the config asks for that."""
        try:
            return super().__call__(index)
        except UnreadableRecord as error:
            if self.conversations.unreadable == "refuse":
                raise UserError(f"{error}.") from None
            raise

    def example(self, record: dict, index: int) -> Conversation:
        """What a record holds, decoded. Raises: UnreadableRecord."""
        try:
            images = tuple(map(self.decode, images_of(record)))
            if record.get("messages") is not None:
                return Conversation(images, self.conversations.laid(record["messages"], images, self.text))
            return Conversation(images, captions=self._captions(record, images))
        except (UnreadableImage, UnreadableText) as error:
            raise UnreadableRecord(self.source.name, str(record.get("key", index)), str(error)) from error

    def _captions(self, record: dict, images: tuple[Picture, ...]) -> tuple[str, ...]:
        """Those that can be answers. Raises: UnreadableText where none can."""
        label = -1 if record.get("label") is None else int(record["label"])
        kept, first = [], None
        for caption in self._texts(record, label):
            try:
                self.conversations.laid(pair(caption, len(images)), images, self.text)
                kept.append(caption)
            except UnreadableText as error:
                first = first or error
        if not kept:
            raise first
        return tuple(kept)
