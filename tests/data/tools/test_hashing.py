"""Perceptual hashes: near for what looks the same, far for what does not, and found without comparing all."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.data.tools.images import encoded, picture
from vlm_jax.data.image import decode
from vlm_jax.data.tools.hashing import SHADE, Hashes, near_duplicates, perceptual_hash


def repeats(*images, distance: int = 8) -> list[int]:
    return near_duplicates(Hashes.from_bytes(bytes.fromhex("".join(map(perceptual_hash, images)))), distance).tolist()


def test_other_sizes_and_qualities_are_the_same_image():
    image = picture(1, 300, 200)
    smaller = np.asarray(Image.fromarray(image).resize((150, 100), Image.Resampling.BICUBIC))
    worse = decode(encoded(image, "JPEG", quality=30))
    brighter = np.clip(image.astype(int) + 6, 0, 255).astype(np.uint8)
    assert repeats(image, smaller, worse, brighter) == [-1, 0, 0, 0]


def test_different_images_are_far():
    assert repeats(*(picture(k) for k in range(50)), distance=8) == [-1] * 50


def test_drawings_that_differ_in_colour_alone_are_different():
    red, blue = (np.full((32, 32, 3), 230, np.uint8) for _ in range(2))
    red[8:16, 8:16], blue[8:16, 8:16] = (220, 40, 40), (40, 40, 220)
    assert repeats(red, blue, red) == [-1, -1, 0]


def test_an_image_of_one_shade_has_no_hash():
    assert perceptual_hash(np.full((9, 9, 3), 200, np.uint8)) == ""


def naive(hashes: Hashes, distance: int) -> list[int]:
    kept, found = [], []
    for k in range(len(hashes.words)):
        bits = np.bitwise_count(hashes.words[kept] ^ hashes.words[k]).sum(-1)
        shades = np.abs(hashes.colours[kept].astype(int) - hashes.colours[k]).max(-1, initial=0)
        near = [j for j, near in zip(kept, (bits <= distance) & (shades <= SHADE)) if near]
        found.append(near[0] if near else -1)
        if not near:
            kept.append(k)
    return found


@pytest.mark.parametrize("distance", [0, 1, 4, 5, 9])
@pytest.mark.parametrize("seed", range(4))
def test_bands_find_what_comparing_all_finds(distance, seed):
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**64, (20, 2), np.uint64)
    words = centres[rng.integers(0, 20, 300)]
    for _ in range(6):  # up to six bits, so that chains of near ones arise
        flip = rng.random(300) < 0.5
        words[flip, rng.integers(0, 2)] ^= np.uint64(1) << rng.integers(0, 64, flip.sum()).astype(np.uint64)
    colours = np.where(rng.random((300, 1)) < 0.2, rng.integers(0, 30, (300, 12)), 100).astype(np.uint8)
    hashes = Hashes(words, colours)
    assert near_duplicates(hashes, distance).tolist() == naive(hashes, distance)


def test_nothing_has_no_duplicates():
    assert repeats() == []
