"""Images made the size that is asked for, and the random crops and flips."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.data.pictures import PICTURE, RGB, encode, gradient
from vlm_jax.data.errors import UnreadableImage
from vlm_jax.data.image import ImageTransform
from vlm_jax.errors import UserError


@pytest.mark.parametrize(
    "array",
    [PICTURE, PICTURE[..., 0], PICTURE[..., :1], np.dstack([PICTURE, np.full((40, 60), 255, np.uint8)])],
    ids="rgb grey grey1 rgba".split(),
)
def test_arrays_and_pictures_are_taken_as_well(array):
    colour = array.ndim == 3 and array.shape[2] > 1
    expected = PICTURE if colour else np.stack([PICTURE[..., 0]] * 3, -1)
    transform = ImageTransform(20)
    np.testing.assert_array_equal(transform(array), transform(encode(Image.fromarray(expected), "PNG")))
    np.testing.assert_array_equal(transform(array), transform(Image.fromarray(expected)))


def test_arrays_of_another_kind_are_refused():
    for array in (PICTURE / 255, PICTURE[None], PICTURE[..., :2]):
        with pytest.raises(UnreadableImage, match="uint8"):
            ImageTransform(20)(array)


def test_resize_ways():
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200  # the middle square
    assert (ImageTransform(20, resize="crop", interpolation="bilinear")(wide)[:, 1:-1] == 200).all()
    squashed = ImageTransform(30, resize="squash", interpolation="box")(wide)
    assert (squashed[:, 10:20] == 200).all() and (squashed[:, :10] == 0).all() and (squashed[:, 20:] == 0).all()
    padded = ImageTransform(60, resize="pad", interpolation="nearest")(wide)
    assert (padded[:20] == 128).all() and (padded[40:] == 128).all()
    np.testing.assert_array_equal(padded[20:40], wide)


def test_crop_pct_takes_the_middle_of_a_larger_one():
    picture = gradient(100, 150)
    larger, middle = ImageTransform(25)(picture), ImageTransform(20, crop_pct=0.8)(picture)
    np.testing.assert_array_equal(middle, larger[2:22, 2:22])
    square = gradient(20, 20)  # is not taken as done already
    assert (ImageTransform(20, crop_pct=0.8)(square) != square).any()


def test_padding_has_the_colour_that_is_asked_for():
    padded = ImageTransform(30, resize="pad", fill=(1, 2, 3))(gradient(20, 60))
    assert (padded[:10] == (1, 2, 3)).all() and (padded[20:] == (1, 2, 3)).all()
    np.testing.assert_array_equal(padded[10:20], ImageTransform(30, resize="pad")(gradient(20, 60))[10:20])


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_strips_take_no_more_memory_than_squares(resize, monkeypatch):
    sizes, resized = [], Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, size, *a: sizes.append(size) or resized(self, size, *a))
    for shape in ((1, 20_000), (20_000, 1)):
        strip = np.full((*shape, 3), 50, np.uint8)
        assert ImageTransform(8, resize=resize)(strip).shape == (8, 8, 3)
    assert max(w * h for w, h in sizes) <= 16 * 8 * 8


def test_shrinking_is_antialiased():
    checkers = np.indices((64, 64)).sum(0) % 2 * 255
    grey = ImageTransform(16, interpolation="bilinear")(checkers.astype(np.uint8))
    assert np.abs(grey.astype(int) - 128).max() < 16


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@pytest.mark.parametrize("interpolation", ["nearest", "box", "bilinear", "bicubic", "lanczos"])
def test_an_image_of_the_right_size_stays_as_it_is(resize, interpolation):
    square = gradient(32, 32)
    transform = ImageTransform(32, resize=resize, interpolation=interpolation)
    np.testing.assert_array_equal(transform(square), square)
    np.testing.assert_array_equal(transform(encode(Image.fromarray(square), "PNG")), square)


AUGMENTED = [
    ImageTransform(24, random_resized_crop=(0.3, 1.0)),
    ImageTransform(24, flip=True),
    ImageTransform(24, pad_crop=4),
    ImageTransform(24, random_resized_crop=(0.5, 0.9), flip=True, pad_crop=2),
]


@pytest.mark.parametrize("transform", AUGMENTED, ids="crop flip pad all".split())
def test_augmentation_depends_on_the_generator_alone(transform):
    np.random.seed(0)
    once = [transform(PICTURE, np.random.default_rng(seed)) for seed in range(12)]
    np.random.seed(1)
    again = [transform(PICTURE, np.random.default_rng(seed)) for seed in range(12)]
    assert all(image.shape == (24, 24, 3) and image.dtype == np.uint8 for image in once)
    np.testing.assert_array_equal(once, again)
    assert len({image.tobytes() for image in once}) > 1
    np.testing.assert_array_equal(transform(PICTURE), ImageTransform(24)(PICTURE))  # none in evaluation


@pytest.mark.parametrize("transform", AUGMENTED, ids="crop flip pad all".split())
def test_the_two_halves_make_the_whole_and_change_nothing_in_place(transform):
    data = encode(RGB, "PNG")
    kept = transform.decode_resize(data)
    before = kept.copy()
    for seed in range(5):
        halves = transform.augment(kept, np.random.default_rng(seed))
        np.testing.assert_array_equal(halves, transform(data, np.random.default_rng(seed)))
    np.testing.assert_array_equal(kept, before)


def test_flips_mirror_half_of_the_images():
    square, rng = gradient(16, 16), np.random.default_rng(0)
    transform = ImageTransform(16, flip=True)
    results = [transform(square, rng) for _ in range(400)]
    flipped = sum(np.array_equal(result, square[:, ::-1]) for result in results)
    assert flipped + sum(np.array_equal(result, square) for result in results) == 400
    assert 160 < flipped < 240


def test_pad_crop_shifts_by_every_offset():
    square, rng = gradient(16, 16) | 1, np.random.default_rng(0)
    transform = ImageTransform(16, pad_crop=2)
    padded = np.pad(square, ((2, 2), (2, 2), (0, 0)))
    windows = {padded[y : y + 16, x : x + 16].tobytes(): (y, x) for y in range(5) for x in range(5)}
    seen = {windows[transform(square, rng).tobytes()] for _ in range(400)}
    assert len(seen) == 25


def test_random_crops_keep_to_their_ranges():
    transform = ImageTransform(16, random_resized_crop=(0.2, 0.6), aspect=(0.5, 2.0))
    rng = np.random.default_rng(0)
    boxes = np.array([transform._draw_box(200, 300, rng) for _ in range(500)])
    w, h = (boxes[:, 2:] - boxes[:, :2]).T
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= 300).all() and (boxes[:, 3] <= 200).all()
    area, aspect = w * h / 60_000, w / h
    assert 0.19 < area.min() < 0.22 and 0.55 < area.max() < 0.61
    assert 0.49 < aspect.min() < 0.6 and 1.7 < aspect.max() < 2.03


def test_a_random_crop_of_a_long_strip_is_its_middle():
    strip = np.zeros((10, 400, 3), np.uint8)
    transform = ImageTransform(16, random_resized_crop=(0.9, 1.0))
    assert transform._draw_box(*strip.shape[:2], np.random.default_rng(0)) == (193, 0, 206, 10)
    assert transform(strip, np.random.default_rng(0)).shape == (16, 16, 3)


def test_crops_are_cut_from_enough_pixels():
    large = encode(Image.fromarray(gradient(480, 640)), "JPEG")
    assert ImageTransform(64, random_resized_crop=(0.9, 1.0)).decode_resize(large).shape == (120, 160, 3)
    assert ImageTransform(64, random_resized_crop=(0.08, 1.0)).decode_resize(large).shape == (240, 320, 3)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"resize": "sqash"}, "did you mean 'squash'"),
        ({"interpolation": "cubic"}, "did you mean 'bicubic'"),
        ({"size": 0}, "size >= 1"),
        ({"pad_crop": -1}, "pad_crop >= 0"),
        ({"random_resized_crop": (0.9, 0.1)}, "low <= high"),
        ({"random_resized_crop": (0.5, 1.5)}, "low <= high <= 1"),
        ({"aspect": (2.0, 1.0)}, "low <= high"),
        ({"crop_pct": 0.0}, "0 < crop_pct <= 1"),
        ({"crop_pct": 87.5}, "0 < crop_pct <= 1"),
        ({"fill": (0, 0, 256)}, "0 to 255"),
        ({"resizer": "simt"}, "did you mean 'simd'"),
        ({"decoder": "simple"}, "'pillow', 'simplejpeg'|did you mean 'simplejpeg'"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError, match=message):
        ImageTransform(**options)
