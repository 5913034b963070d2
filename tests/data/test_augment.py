"""What holds for all augmentations; `tests/parity/test_images.py` has them against torchvision's."""

from __future__ import annotations

import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlm_jax import config
from vlm_jax.config import bind
from vlm_jax.data import augment
from vlm_jax.data.augment import Augment, ColorJitter, Grayscale, RandAugment, RandomErasing
from vlm_jax.data.image import ImageTransform
from vlm_jax.errors import UserError


def picture(h: int = 24, w: int = 37, seed: int = 0) -> np.ndarray:
    """Every value occurs, white and black too; neighbours differ."""
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)


ALL = {
    "jitter": ColorJitter(0.4, 0.4, 0.4, 0.1),
    "grey": Grayscale(0.5),
    "rand": RandAugment(3, 15),
    "erasing": RandomErasing(0.9),
    "augment": Augment(RandAugment(), ColorJitter(0.4, p=0.8), Grayscale(), RandomErasing()),
}
anywhere = given(h=st.integers(1, 40), w=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
few = settings(max_examples=40, deadline=None)


@pytest.mark.parametrize("augmentation", ALL.values(), ids=list(ALL))
@few
@anywhere
def test_shape_and_type_are_kept_and_the_generator_decides(augmentation, h, w, seed):
    image = picture(h, w, seed)
    before = image.copy()
    once, again = (augmentation(image, np.random.default_rng(seed)) for _ in range(2))
    assert once.shape == (h, w, 3) and once.dtype == np.uint8
    np.testing.assert_array_equal(once, again)
    np.testing.assert_array_equal(image, before)  # a cached image must not change


@pytest.mark.parametrize("augmentation", ALL.values(), ids=list(ALL))
def test_another_generator_gives_another_image(augmentation):
    assert len({augmentation(picture(), np.random.default_rng(seed)).tobytes() for seed in range(20)}) > 1


def test_another_process_gives_the_same_images():
    def digest() -> int:
        augmentations = [ColorJitter(0.4, 0.4, 0.4, 0.1), RandAugment(3, 15), RandomErasing(0.9)]
        image = np.random.default_rng(0).integers(0, 256, (24, 37, 3), np.uint8)
        images = [a(image, np.random.default_rng(seed)) for a in augmentations for seed in range(8)]
        return zlib.crc32(np.stack(images).tobytes())

    program = """
import zlib
import numpy as np
from vlm_jax.data.augment import ColorJitter, RandAugment, RandomErasing
augmentations = [ColorJitter(0.4, 0.4, 0.4, 0.1), RandAugment(3, 15), RandomErasing(0.9)]
image = np.random.default_rng(0).integers(0, 256, (24, 37, 3), np.uint8)
images = [a(image, np.random.default_rng(seed)) for a in augmentations for seed in range(8)]
print(zlib.crc32(np.stack(images).tobytes()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) == digest()


NOTHING = [
    ColorJitter(),
    ColorJitter(0.4, 0.4, 0.4, 0.5, p=0),
    Grayscale(0),
    RandomErasing(0),
    RandAugment(num_ops=0, magnitude=30),
    Augment(),
]


@pytest.mark.parametrize("augmentation", NOTHING, ids=repr)
@few
@anywhere
def test_nothing_asked_for_is_nothing_done(augmentation, h, w, seed):
    image = picture(h, w, seed)
    np.testing.assert_array_equal(augmentation(image, np.random.default_rng(seed)), image)


@pytest.mark.parametrize("name", [n for n in augment.OPERATIONS if n not in ("auto_contrast", "equalize")])
@few
@anywhere
def test_operations_of_magnitude_zero_are_the_identity(name, h, w, seed):
    image = picture(h, w, seed)
    np.testing.assert_array_equal(RandAugment().operation(name, Image.fromarray(image), 0.0), image)


def test_all_operations_are_drawn_in_both_directions(monkeypatch):
    drawn = set()
    monkeypatch.setattr(RandAugment, "operation", lambda _, name, image, s: drawn.add((name, s)) or image)
    rng = np.random.default_rng(0)
    for _ in range(200):
        RandAugment(2, 12)(picture(4, 4), rng)
    assert drawn == {(name, sign * 0.4) for name in augment.OPERATIONS for sign in (-1, 1)}


def test_the_steps_of_colour_jitter_are_drawn_in_every_order(monkeypatch):
    steps = []
    monkeypatch.setattr(augment, "_enhance", lambda name: lambda image, _: steps.append(name) or image)
    rng = np.random.default_rng(0)
    for _ in range(100):
        ColorJitter(0.5, 0.5, 0.5)(picture(4, 4), rng)
    assert len({tuple(steps[i : i + 3]) for i in range(0, 300, 3)}) == 6


def test_grey_images_are_a_share_and_grey():
    image, rng = picture(), np.random.default_rng(0)
    results = [Grayscale(0.2)(image, rng) for _ in range(500)]
    grey = [(r == r[..., :1]).all() for r in results]
    assert 70 < sum(grey) < 130
    np.testing.assert_array_equal(results[grey.index(True)][..., 0], Image.fromarray(image).convert("L"))


def test_erased_boxes_keep_to_their_ranges():
    image, rng = np.full((60, 80, 3), 7, np.uint8), np.random.default_rng(0)
    shares = []
    for _ in range(300):
        erased = (RandomErasing(p=1, area=(0.1, 0.2), fill=200)(image, rng) == 200).all(-1)
        rows, columns = erased.any(1), erased.any(0)
        assert erased.sum() == rows.sum() * columns.sum()  # one box
        shares.append(erased.mean())
    assert 0.095 < min(shares) < 0.11 and 0.19 < max(shares) < 0.205
    assert len(np.unique(RandomErasing(p=1)(image, rng))) > 100  # noise
    some = [(RandomErasing(p=0.25)(image, rng) != image).any() for _ in range(400)]
    assert 70 < sum(some) < 130


def test_they_come_after_crop_and_flip_and_only_in_training():
    image = picture(40, 60)
    plain = ImageTransform(24, random_resized_crop=(0.3, 1.0), flip=True)
    varied = ImageTransform(24, random_resized_crop=(0.3, 1.0), flip=True, augmentation=Grayscale(1.0))
    for seed in range(4):
        cropped = plain(image, np.random.default_rng(seed))
        expected = Image.fromarray(cropped).convert("L").convert("RGB")
        np.testing.assert_array_equal(varied(image, np.random.default_rng(seed)), expected)
    np.testing.assert_array_equal(varied(image), plain(image))


def test_they_are_bound_in_a_config():
    jitter = bind("data.augment.ColorJitter", brightness=0.4)
    node = bind("data.image.ImageTransform", augmentation=bind("data.augment.Augment", color_jitter=jitter))
    config.check(node)
    assert config.build(node) == ImageTransform(augmentation=Augment(color_jitter=ColorJitter(0.4)))
    node.augmentation.color_jitter.brigthness = 0.1
    with pytest.raises(UserError, match="did you mean 'brightness'"):
        config.check(node)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ColorJitter(brightness=-1), "brightness=-1"),
        (lambda: ColorJitter(hue=0.6), "hue=0.6"),
        (lambda: ColorJitter(p=1.2), "ColorJitter.p=1.2"),
        (lambda: Grayscale(-0.1), "Grayscale.p=-0.1"),
        (lambda: RandAugment(magnitude=31), "0 to 30"),
        (lambda: RandomErasing(area=(0.5, 0.1)), "low <= high"),
        (lambda: RandomErasing(aspect=(0, 1)), "low <= high"),
        (lambda: RandomErasing(fill=256), "0 to 255"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()
