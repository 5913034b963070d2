"""Tokens and images of a conversation as they stand in a row."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from vlm_jax.data.chat import Piece
from vlm_jax.data.conversation_images import Size


class Room(NamedTuple):
    """What a row has, or a conversation takes of it; `patches` as `Size` has them."""

    tokens: int
    images: int
    patches: int


@dataclasses.dataclass(frozen=True)
class Laid:
    """A conversation as it stands in a row, from its first token on.

    Attributes:
      tokens: those at the places of images are padding.
      targets: tokens that are learnt: answers, and the tokens that end them.
      image_ids: n at the places of the conversation's image n, counted from 1; 0 for text.
      patches: of each of its images.
    """

    tokens: Int32[np.ndarray, "time"]
    targets: Bool[np.ndarray, "time"]
    image_ids: Int32[np.ndarray, "time"]
    patches: tuple[int, ...]

    @property
    def takes(self) -> Room:
        return Room(len(self.tokens), len(self.patches), sum(self.patches))

    def until_last_answer(self) -> Laid:
        """Without what follows the last answer, since nothing is learnt from that."""
        end = int(np.flatnonzero(self.targets).max(initial=-1)) + 1
        image_ids = self.image_ids[:end]
        return Laid(self.tokens[:end], self.targets[:end], image_ids, self.patches[: image_ids.max(initial=0)])

    def last_answer(self) -> Laid:
        """With the last answer as the only one that counts."""
        gaps = np.flatnonzero(~self.targets[: np.flatnonzero(self.targets).max(initial=0)])
        targets = self.targets & (np.arange(len(self.targets)) > gaps.max(initial=-1))
        return dataclasses.replace(self, targets=targets)


def lay(pieces: Sequence[Piece], sizes: Sequence[Size], room: Room, pad_id: int) -> tuple[Laid, bool]:
    """A conversation from the begin of a row on, and whether the row has room for the whole of it.

    Where it has not, texts end with the row, and nothing is kept from the first image on that it has no room for. The
    first token cannot be learnt: nothing is before it.

    Args:
      pieces: tokens and images. sizes: of the images, in their order.
    """
    tokens, targets, image_ids = [], [], []
    patches: list[int] = []
    whole = True
    for piece in pieces:
        left, of_image = room.tokens - len(tokens), piece.tokens is None
        if of_image:
            size = sizes[len(patches)]
            whole = size.places <= left and len(patches) < room.images and sum(patches) + size.patches <= room.patches
            if not whole:
                break
            patches.append(size.patches)
            found = [pad_id] * size.places
        else:
            whole = len(piece.tokens) <= left
            found = piece.tokens[:left]
        tokens += found
        targets += [piece.target] * len(found)
        image_ids += [len(patches) if of_image else 0] * len(found)
        if not whole:
            break
    learnt = np.array(targets, bool)
    learnt[:1] = False
    return Laid(np.array(tokens, np.int32), learnt, np.array(image_ids, np.int32), tuple(patches)), whole


def too_long(pieces: Sequence[Piece], sizes: Sequence[Size], room: Room, unit: str = "patches") -> str:
    """What a conversation takes, and the room that there is; `unit` is what `Size.patches` counts."""
    places = sum(size.places for size in sizes) + sum(len(piece.tokens or ()) for piece in pieces)
    takes, has = [f"{places} tokens"], [f"{room.tokens}"]
    if sizes:
        takes, has = [*takes, f"{len(sizes)} images"], [*has, f"{room.images}"]
    if patches := sum(size.patches for size in sizes):
        takes, has = [*takes, f"{patches} {unit}"], [*has, f"{room.patches}"]
    return f"it takes {', '.join(takes)}, and a row has room for {', '.join(has)}"
