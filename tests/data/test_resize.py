"""The resizer with vector instructions: how far its pixels are from Pillow's, and why."""

from __future__ import annotations

import concurrent.futures
import itertools
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks.images import photograph
from tests.data.numbered import TEXT, Numbered, same, take
from tests.data.pictures import PICTURE, RGB, encode, gradient
from vlm_jax.data import image as image_module
from vlm_jax.data import resize as resize_module
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.packing import Packing
from vlm_jax.data.pipeline import Pipeline
from vlm_jax.data.resize import SIMD_FILTERS, resize
from vlm_jax.errors import UserError

RANDOM = np.random.default_rng(0)
PHOTOGRAPH = photograph(480, 640)
PICTURES = {
    "photograph": PHOTOGRAPH,
    "noise": RANDOM.integers(0, 256, (240, 320, 3), np.uint8),
    "edges": RANDOM.integers(0, 2, (240, 320, 3), np.uint8) * 255,
    "line": RANDOM.integers(0, 256, (1, 70, 3), np.uint8),
    "large": np.tile(gradient(40, 50), (60, 70, 1)),  # longer than Pillow's blocks of memory, 16 MiB
}


@pytest.fixture
def simd():
    return pytest.importorskip("cykooz_resizer", reason="pip install cykooz.resizer")


def difference(one, other) -> np.ndarray:
    assert one.shape == other.shape and one.dtype == other.dtype == np.uint8
    return np.abs(one.astype(int) - other)


def vertical_first(image: Image.Image, size, interpolation: str, box=None) -> np.ndarray:
    """Pillow's two passes in the order that the other resizer has, each rounded to 8 bits."""
    x0, y0, x1, y1 = box or (0, 0, *image.size)
    method = Image.Resampling[interpolation.upper()]
    tall = image.resize((image.width, size[1]), method, (0, y0, image.width, y1))
    return np.asarray(tall.resize(size, method, (x0, 0, x1, size[1])))


@pytest.mark.parametrize("interpolation", SIMD_FILTERS)
@pytest.mark.parametrize("name", PICTURES)
def test_pixels_are_those_of_pillows_passes_vertical_first(name, interpolation, simd):
    image = Image.fromarray(PICTURES[name])
    boxes = [None, (0, 0, 1, 1), (30, 0, 63, 1)]
    if image.height > 1:
        boxes += [(3, 5, image.width - 7, image.height - 9), (2.5, 1.25, 10.75, 20.5)]
    rounding = 1 if interpolation == "bilinear" else 2  # where weights are negative, their sizes add up to more than 1
    for size, box in itertools.product([(224, 224), (33, 17), (1, 5)], boxes):
        found = resize(image, size, interpolation, "simd", box)
        assert difference(found, vertical_first(image, size, interpolation, box)).max() <= rounding, (size, box)
    np.testing.assert_array_equal(np.asarray(image), PICTURES[name])


# Bilinear weights are positive: nothing overshoots, and only rounding differs. The others overshoot beside sharp edges,
# and what lies beyond black and white is cut off after the first pass: Pillow's horizontal one, in most cases.
@pytest.mark.parametrize(
    "name, interpolation, mean, largest",
    [
        ("photograph", "bilinear", 0.3, 1),
        ("photograph", "bicubic", 0.3, 1),
        ("photograph", "lanczos", 0.3, 1),
        ("noise", "bilinear", 0.3, 1),
        ("noise", "bicubic", 0.5, 30),
        ("edges", "bilinear", 0.3, 1),
        ("edges", "bicubic", 5, 40),
        ("edges", "lanczos", 9, 70),
    ],
)
def test_pixels_are_close_to_pillows(name, interpolation, mean, largest, simd):
    image = Image.fromarray(PICTURES[name])
    found = difference(*(resize(image, (224, 224), interpolation, resizer) for resizer in ("pillow", "simd")))
    assert found.mean() <= mean and found.max() <= largest, (found.mean(), found.max())


@pytest.mark.parametrize("interpolation", ["nearest", "box"])
def test_filters_that_pick_pixels_are_pillows(interpolation, simd):
    pillow, fast = (ImageTransform(224, interpolation=interpolation, resizer=name) for name in ("pillow", "simd"))
    np.testing.assert_array_equal(pillow(PHOTOGRAPH), fast(PHOTOGRAPH))


@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg", "full"])
@pytest.mark.parametrize(
    "options",
    [{}, {"resize": "crop", "crop_pct": 0.875}, {"resize": "pad"}, {"random_resized_crop": (0.2, 1.0), "flip": True}],
    ids="squash crop pad random".split(),
)
def test_every_way_of_a_transform(options, decoder, simd):
    if decoder == "simplejpeg":
        pytest.importorskip("simplejpeg", reason="pip install 'vlm_jax[fast]'")
    data = encode(Image.fromarray(PHOTOGRAPH), "JPEG", quality=95)  # 224 of it are decoded at a half, or at 4/8
    for interpolation in ("bilinear", "bicubic"):
        transforms = [
            ImageTransform(100, interpolation=interpolation, decoder=decoder, resizer=resizer, **options)
            for resizer in ("pillow", "simd")
        ]
        for seed in range(3):
            found = difference(*(transform(data, np.random.default_rng(seed)) for transform in transforms))
            assert 0 < found.mean() < 0.3 and found.max() <= 2


@pytest.mark.parametrize(
    "data", [encode(RGB.convert(mode), "PNG") for mode in ("RGBA", "L", "P", "1", "LA")], ids="RGBA L P 1 LA".split()
)
def test_pictures_of_other_modes(data, simd):
    pillow, fast = (ImageTransform(20, interpolation="bilinear", resizer=name)(data) for name in ("pillow", "simd"))
    assert difference(pillow, fast).max() <= 1


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_an_image_of_the_right_size_stays_as_it_is(interpolation, simd):
    square = gradient(32, 32)
    transform = ImageTransform(32, interpolation=interpolation, resizer="simd")
    np.testing.assert_array_equal(transform(encode(Image.fromarray(square), "PNG")), square)


def test_packed_images_take_it_as_well(simd):
    transforms = [Packing().transform(ImageTransform(resizer=resizer)) for resizer in ("pillow", "simd")]
    found = difference(*(transform.augment(PHOTOGRAPH, np.random.default_rng(0), (7, 9)) for transform in transforms))
    assert 0 < found.mean() < 0.3 and found.max() <= 1


def test_threads_have_resizers_of_their_own(simd):
    transform = ImageTransform(64, resizer="simd")
    pictures = [photograph(h, w, seed=h) for h, w in ((200, 300), (90, 64), (64, 500), (333, 222))] * 10
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        np.testing.assert_array_equal(list(pool.map(transform, pictures)), [transform(one) for one in pictures])
        resizers = [pool.submit(resize_module._resizer).result() for _ in range(8)]
    assert resize_module._resizer() is resize_module._resizer() and resize_module._resizer() not in resizers


def test_worker_processes_make_the_same_pixels(simd):
    image = ImageTransform(13, random_resized_crop=(0.3, 1.0), resizer="simd")
    image(PICTURE, np.random.default_rng(0))
    assert pickle.loads(pickle.dumps(image)) == image
    make = lambda workers: Pipeline(Numbered(), image=image, text=TEXT, threads=2, workers=workers)
    same(take(make(2), 4)[0], take(make(0), 4)[0])


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(image_module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"^ImageTransform.resizer='simd' is not installed: pip install cykooz.resizer"):
        ImageTransform(resizer="simd")


def test_pillow_alone_is_enough(monkeypatch):
    monkeypatch.setitem(sys.modules, "cykooz_resizer", None)
    assert ImageTransform(20)(PICTURE).shape == (20, 20, 3)
