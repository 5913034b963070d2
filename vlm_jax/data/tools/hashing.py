"""Perceptual hashes of images, and those of them that are near an earlier one."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int, UInt8, UInt64

from vlm_jax.data.progress import progress

SIDE = 8  # a hash has SIDE * SIDE bits for each of two directions: a word each
FLAT = 8  # grey levels between darkest and brightest, below which the signs of differences are noise
SHADE = 12  # levels by which the colours of duplicates may differ, after another compression
BYTES = 28  # of a hash: two words, and three for each quarter's colour


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

    Two hashes within `distance` bits share at least one of more than `distance` bands: only those are compared, each
    with the one that follows it in the order of the band, then with the one after that, as long as any share it.
    """
    bands = distance // 2 + 1  # of each word
    edges = np.linspace(0, 64, bands + 1).astype(int).tolist()
    with progress("comparing images", 2 * bands) as advance:
        for word, (start, end) in itertools.product((0, 1), itertools.pairwise(edges)):
            band = hashes.words[:, word] >> np.uint64(start)
            band &= np.uint64(2 ** (end - start) - 1)
            members = np.argsort(band, kind="stable")
            band, at, lag = band[members], np.arange(len(members)), 1
            while len(at := at[at + lag < len(members)]) and len(at := at[band[at] == band[at + lag]]):
                a, b = members[at], members[at + lag]
                near = np.bitwise_count(hashes.words[a] ^ hashes.words[b]).sum(-1) <= distance
                a, b = a[near], b[near]
                near = np.abs(hashes.colours[a].astype(np.int16) - hashes.colours[b]).max(-1, initial=0) <= SHADE
                yield from zip(a[near].tolist(), b[near].tolist())
                lag += 1
            advance()
