"""Perceptual hashes of images, and those of them that are near an earlier one."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int, UInt8, UInt64

SIDE = 8  # a hash has SIDE * SIDE bits for each of two directions: a word each
FLAT = 8  # grey levels between darkest and brightest, below which the signs of differences are noise
SHADE = 12  # levels by which the colours of duplicates may differ, after another compression
BYTES = 28  # of a hash: two words, and three for each quarter's colour
BLOCK = 256  # hashes that are compared with all others of a band at a time


@dataclasses.dataclass(frozen=True)
class Hashes:
    """Perceptual hashes.

    Attributes:
      words: bits of the differences to the right, and downwards.
      colours: of the four quarters of each image, red, green and blue.
    """

    words: UInt64[np.ndarray, "n 2"]
    colours: UInt8[np.ndarray, "n 12"]

    @classmethod
    def from_bytes(cls, data: bytes | bytearray) -> Hashes:
        """From what `perceptual_hash` gave, one after the other."""
        rows = np.frombuffer(data, np.uint8).reshape(-1, BYTES)
        return cls(np.ascontiguousarray(rows[:, :16]).view(">u8").astype(np.uint64), rows[:, 16:])

    def __len__(self) -> int:
        return len(self.words)


def perceptual_hash(image: UInt8[np.ndarray, "h w 3"]) -> str:
    """56 hex digits: whether the grey image, shrunk to 9 x 9, grows brighter to the right and downwards ("dHash"), and
    the colours of its quarters, without which all drawings on one ground look alike.

    It survives other sizes, qualities and small changes of brightness; not crops and mirroring. "" for an image of one
    shade, about which the differences say nothing.
    """
    from PIL import Image

    picture = Image.fromarray(image)
    values = np.asarray(picture.convert("L").resize((SIDE + 1, SIDE + 1), Image.Resampling.BOX), np.int16)
    if values.max() - values.min() < FLAT:
        return ""
    right = values[:SIDE, 1:] > values[:SIDE, :SIDE]
    down = values[1:, :SIDE] > values[:SIDE, :SIDE]
    colours = picture.resize((2, 2), Image.Resampling.BOX).tobytes()
    return (np.packbits(np.concatenate([right.ravel(), down.ravel()])).tobytes() + colours).hex()


def near_duplicates(hashes: Hashes, distance: int) -> Int[np.ndarray, "n"]:
    """For each image the first earlier one that it nearly equals and that is kept itself, or -1: then it is kept.

    So a chain of small changes does not remove what is far from everything that stays.

    Args:
      distance: bits of 128 in which hashes of equal images may differ.
    """
    rows = np.concatenate([hashes.words.view(np.uint8), hashes.colours], axis=1)
    _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)  # distinct images in order
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    first = first[order]
    distinct = Hashes(hashes.words[first], hashes.colours[first])
    neighbours: dict[int, set[int]] = {}
    for earlier, later in _close_pairs(distinct, distance):
        neighbours.setdefault(later, set()).add(earlier)
    kept_for = np.arange(len(first))
    for later in sorted(neighbours):
        kept_for[later] = min((e for e in neighbours[later] if kept_for[e] == e), default=later)
    found = first[kept_for[rank[inverse.reshape(-1)]]]
    return np.where(found == np.arange(len(rows)), -1, found)


def _close_pairs(hashes: Hashes, distance: int) -> Iterator[tuple[int, int]]:
    """Pairs of close images, the lower number first; a pair may come several times.

    Two hashes within `distance` bits share at least one of more than `distance` bands: only those are compared.
    """
    bands = distance // 2 + 1  # of each word
    edges = np.linspace(0, 64, bands + 1).astype(int).tolist()
    for word, (start, end) in itertools.product((0, 1), itertools.pairwise(edges)):
        band = (hashes.words[:, word] >> np.uint64(start)) & np.uint64(2 ** (end - start) - 1)
        members = np.argsort(band, kind="stable")
        breaks = np.flatnonzero(np.diff(band[members])) + 1
        for low, high in itertools.pairwise([0, *breaks.tolist(), len(members)]):
            if high - low > 1:
                yield from _close_within(hashes, members[low:high], distance)


def _close_within(hashes: Hashes, members: Int[np.ndarray, "k"], distance: int) -> Iterator[tuple[int, int]]:
    """Close pairs among ascending members of a band."""
    words = hashes.words[members]
    for start in range(0, len(members), BLOCK):
        differ = np.bitwise_count(words[start : start + BLOCK, None] ^ words[None, start:]).sum(-1)
        a, b = np.nonzero(differ <= distance)
        a, b = members[start + a[a < b]], members[start + b[a < b]]
        shades = np.abs(hashes.colours[a].astype(np.int16) - hashes.colours[b]).max(-1, initial=0)
        near = shades <= SHADE
        yield from zip(a[near].tolist(), b[near].tolist())
