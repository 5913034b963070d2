"""Decoding of what the web holds, and the random crops and flips."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from vlm_jax.data import image as image_module
from vlm_jax.data.errors import UnreadableImage
from vlm_jax.data.image import ImageTransform, decode
from vlm_jax.errors import UserError


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gradient(h: int = 40, w: int = 60) -> np.ndarray:
    """Smooth, without symmetry, so that JPEG keeps it and a turn or a flip is noticed."""
    y, x = np.mgrid[:h, :w]
    return np.stack([255 * x / w, 255 * y / h, 255 * (x + y) / (w + h)], -1).astype(np.uint8)


def close(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    return a.shape == b.shape and np.abs(a.astype(int) - b).mean() < tolerance


PICTURE = gradient()
RGB = Image.fromarray(PICTURE)


@pytest.mark.parametrize(
    "data, tolerance",
    [
        (encode(RGB, "JPEG", quality=95), 3),
        (encode(RGB, "JPEG", quality=95, progressive=True), 3),
        (encode(RGB.convert("CMYK"), "JPEG", quality=95), 6),
        (encode(RGB, "PNG"), 0.01),
        (encode(RGB, "BMP"), 0.01),
        (encode(RGB, "TIFF"), 0.01),
        (encode(RGB, "WEBP", lossless=True), 0.01),
        (encode(RGB, "GIF"), 12),
        (encode(RGB.quantize(256), "PNG"), 12),
        (encode(RGB.convert("RGBA"), "PNG"), 0.01),
        (encode(RGB.convert("RGBA"), "WEBP", lossless=True), 0.01),
    ],
    ids="jpeg progressive cmyk png bmp tiff webp gif palette rgba webp_rgba".split(),
)
def test_formats_give_the_same_picture(data, tolerance):
    decoded = decode(data)
    assert decoded.dtype == np.uint8
    assert close(decoded, PICTURE, tolerance)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_grey_has_three_equal_channels(kind):
    grey = RGB.convert("L")
    decoded = decode(encode(grey, kind))
    assert close(decoded, np.stack([np.asarray(grey)] * 3, -1), 2)


def test_one_bit():
    black_and_white = Image.fromarray(np.eye(16) > 0)
    assert set(np.unique(decode(encode(black_and_white, "PNG")))) == {0, 255}


def test_sixteen_bits_are_scaled_and_not_saturated():
    values = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    for kind in ("PNG", "TIFF"):
        decoded = decode(encode(Image.fromarray(values), kind))
        np.testing.assert_array_equal(decoded[..., 0].ravel(), np.arange(256))
        assert (decoded == decoded[..., :1]).all()
    portable = b"P5 16 16 65535\n" + values.astype(">u2").tobytes()  # Pillow opens this one as 32 bits
    np.testing.assert_array_equal(decode(portable)[..., 0].ravel(), np.arange(256))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = {
        1: PICTURE,
        2: PICTURE[:, ::-1],
        3: PICTURE[::-1, ::-1],
        4: PICTURE[::-1],
        5: PICTURE.transpose(1, 0, 2),
        6: np.rot90(PICTURE),
        7: PICTURE[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(PICTURE, -1),
    }[orientation]
    upright = decode(encode(Image.fromarray(np.ascontiguousarray(stored)), "JPEG", quality=95, exif=exif))
    assert close(upright, PICTURE, 3)


def test_broken_exif_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(RGB, "JPEG", quality=95, exif=exif)
    start = data.index(b"Exif\0\0") + 6
    broken = data[:start] + b"\xff" * 8 + data[start + 8 :]
    assert close(decode(broken), PICTURE, 3)


def test_transparency_is_laid_on_white():
    rgba = np.dstack([PICTURE, np.full(PICTURE.shape[:2], 255, np.uint8)])
    rgba[:20, :, 3] = 0  # hidden colours must not show
    rgba[20:, :30, 3] = 128
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        decoded = decode(encode(Image.fromarray(rgba), kind, **options))
        assert (decoded[:20] == 255).all()
        assert close(decoded[20:, 30:], PICTURE[20:, 30:], 0.01)
        assert close(decoded[20:, :30], ((PICTURE[20:, :30].astype(int) + 255) / 2).astype(int), 2)
    grey = np.dstack([PICTURE[..., 0], np.zeros(PICTURE.shape[:2], np.uint8)])
    assert (decode(encode(Image.fromarray(grey, "LA"), "PNG")) == 255).all()


def test_transparent_palette_entries_are_white():
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([200, 0, 0, 0, 0, 200])
    palette.putpixel((3, 3), 1)
    for kind in ("PNG", "GIF"):
        decoded = decode(encode(palette, kind, transparency=0))
        assert (decoded[0, 0] == 255).all() and tuple(decoded[3, 3]) == (0, 0, 200)


def test_transparent_colour_of_an_image_without_alpha():
    keyed = Image.new("RGB", (4, 4), (10, 20, 30))
    keyed.putpixel((1, 1), (1, 2, 3))
    decoded = decode(encode(keyed, "PNG", transparency=(10, 20, 30)))
    assert (decoded[0, 0] == 255).all() and tuple(decoded[1, 1]) == (1, 2, 3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = decode(encode(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert decoded.shape == (8, 8, 3)
    assert tuple(decoded[4, 4]) == (255, 0, 0)


JPEG = encode(RGB, "JPEG", quality=95)
PNG = encode(RGB, "PNG")


@pytest.mark.parametrize(
    "data, why",
    [
        (b"", "empty"),
        (b"<html><body>404 Not Found</body></html>", "not an image"),
        (b"\xff\xd8\xff", "not an image"),
        (JPEG[: len(JPEG) // 2], "(?i)truncated"),
        (PNG[: len(PNG) // 2], "truncated"),
        (PNG[:60] + bytes(100) + PNG[160:], "."),
        (encode(Image.new("F", (4, 4)), "TIFF"), "floating-point"),
        (encode(Image.fromarray(np.full((4, 4), 1 << 20, np.int32)), "TIFF"), "beyond 16 bits"),
    ],
    ids="empty html header_only jpeg_truncated png_truncated png_corrupt float int32".split(),
)
def test_what_is_no_image_is_refused_in_one_line(data, why):
    with pytest.raises(UnreadableImage, match=why) as error:
        decode(data)
    assert isinstance(error.value, ValueError)
    assert len(str(error.value).splitlines()) == 1


def test_every_cut_and_many_flipped_bytes_are_decoded_or_refused():
    rng = np.random.default_rng(0)
    for data in (JPEG, PNG, encode(RGB, "GIF"), encode(RGB, "WEBP")):
        broken = [data[:n] for n in rng.integers(0, len(data), 20)]
        for _ in range(40):
            flipped = bytearray(data)
            flipped[rng.integers(len(data))] ^= int(rng.integers(1, 256))
            broken.append(bytes(flipped))
        for candidate in broken:
            try:
                decoded = decode(candidate, min_size=16)
            except UnreadableImage:
                continue
            assert decoded.ndim == 3 and decoded.shape[2] == 3


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_refused_before_they_are_decoded(monkeypatch):
    def fail(*_):
        raise AssertionError("decoded")

    bombs = [encode(Image.new("1", (n, n)), "PNG") for n in (9_500, 14_000)]
    monkeypatch.setattr(Image.Image, "load", fail)
    monkeypatch.setattr(image_module, "_upright", fail)
    for bomb in bombs:
        with pytest.raises(UnreadableImage, match=r"pixels|Bomb"):
            decode(bomb)


def test_draft_decodes_large_jpegs_small():
    large = encode(Image.fromarray(gradient(480, 640)), "JPEG")
    assert decode(large).shape == (480, 640, 3)
    assert decode(large, min_size=224).shape == (240, 320, 3)
    assert decode(large, min_size=241).shape == (480, 640, 3)
    assert decode(large, min_size=32).shape == (60, 80, 3)
    assert decode(JPEG, min_size=500).shape == PICTURE.shape
    full, half = (ImageTransform(64)(image) for image in (decode(large), large))
    assert close(full, half, 1.5)


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
        ({"decoder": "simple"}, "'pillow', 'simplejpeg'|did you mean 'simplejpeg'"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError, match=message):
        ImageTransform(**options)


def test_full_decoding_drafts_nothing():
    large = encode(Image.fromarray(gradient(480, 640)), "JPEG")
    np.testing.assert_array_equal(decode(large, min_size=60, decoder="full"), decode(large))


@pytest.fixture
def simplejpeg():
    return pytest.importorskip("simplejpeg", reason="pip install 'vlm_jax[fast]'")


KINDS = [
    {"quality": 85},
    {"quality": 95, "subsampling": 0},
    {"quality": 80, "subsampling": 1},
    {"quality": 75, "progressive": True},
]


def textured(h: int, w: int) -> np.ndarray:
    return np.clip(gradient(h, w) + np.random.default_rng(0).normal(0, 30, (h, w, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("options", KINDS, ids="420 444 422 progressive".split())
@pytest.mark.parametrize("shape", [(480, 640), (333, 501), (18, 33)])
def test_simplejpeg_decodes_as_pillow_does(options, shape, simplejpeg):
    data = encode(Image.fromarray(textured(*shape)), "JPEG", **options)
    grey = encode(Image.fromarray(textured(*shape)).convert("L"), "JPEG", quality=85)
    for image in (data, grey):
        np.testing.assert_array_equal(decode(image, decoder="simplejpeg"), decode(image))
        half = min(shape) // 2  # a scale that both have
        drafted = decode(image, min_size=half)
        np.testing.assert_array_equal(decode(image, min_size=half, decoder="simplejpeg"), drafted)


def test_simplejpeg_decodes_at_eighths(simplejpeg):
    large = encode(Image.fromarray(gradient(480, 640)), "JPEG", quality=95)
    shapes = {min_size: decode(large, min_size, "simplejpeg").shape for min_size in (480, 400, 301, 300, 224, 100, 10)}
    assert shapes == {
        480: (480, 640, 3),
        400: (420, 560, 3),
        301: (360, 480, 3),
        300: (300, 400, 3),
        224: (240, 320, 3),
        100: (120, 160, 3),
        10: (60, 80, 3),
    }
    full, fast = (ImageTransform(280, decoder=decoder)(large) for decoder in ("full", "simplejpeg"))
    assert close(full, fast, 1.5)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_simplejpeg_turns_as_exif_says(orientation, simplejpeg):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(RGB, "JPEG", quality=95, exif=exif)
    np.testing.assert_array_equal(decode(data, decoder="simplejpeg"), decode(data))


@pytest.mark.parametrize(
    "data",
    [encode(RGB.convert("CMYK"), "JPEG"), PNG, encode(RGB, "WEBP", lossless=True), encode(RGB.convert("RGBA"), "PNG")],
    ids="cmyk png webp rgba".split(),
)
def test_what_simplejpeg_cannot_read_goes_to_pillow(data, simplejpeg):
    np.testing.assert_array_equal(decode(data, min_size=10, decoder="simplejpeg"), decode(data, min_size=10))


def test_both_decoders_read_and_refuse_the_same_bytes(simplejpeg):
    rng = np.random.default_rng(0)
    broken = [JPEG[:n] for n in rng.integers(0, len(JPEG), 40)] + [JPEG + b"behind the end"]
    for _ in range(200):
        flipped = bytearray(JPEG)
        flipped[rng.integers(len(JPEG))] ^= int(rng.integers(1, 256))
        broken.append(bytes(flipped))

    def outcome(data: bytes, decoder: str):
        try:
            return decode(data, decoder=decoder)
        except UnreadableImage as error:
            return str(error)

    for data in broken:
        ours, theirs = outcome(data, "simplejpeg"), outcome(data, "pillow")
        np.testing.assert_array_equal(ours, theirs)


def test_a_bomb_never_reaches_simplejpeg(simplejpeg, monkeypatch):
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("decoded"))
    monkeypatch.setattr(image_module, "MAX_PIXELS", 40 * 60 - 1)
    with pytest.raises(UnreadableImage, match="40"):
        decode(JPEG, decoder="simplejpeg")


def test_simplejpeg_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(image_module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'vlm_jax\[fast\]'"):
        ImageTransform(decoder="simplejpeg")
