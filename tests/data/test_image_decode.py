"""Decoding of what the web holds, by either decoder."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.data.pictures import PICTURE, RGB, close, encode, gradient
from vlm_jax.data import image as image_module
from vlm_jax.data.errors import UnreadableImage
from vlm_jax.data.image import ImageTransform, decode
from vlm_jax.errors import UserError


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
    monkeypatch.setattr(image_module, "upright", fail)
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
