"""`ImageTransform` gives what each public family's own image processor gives, for photographs of many sizes and modes.

Bounds: 2 / 255 for the worst value and 0.1 / 255 on average, and every bit where both resize with Pillow.
"""

from __future__ import annotations

import functools
import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vlm_jax.data import naflex
from vlm_jax.data.image import ImageTransform
from vlm_jax.errors import UserError

from . import peers

SIZES = [(480, 640), (300, 200), (200, 300), (375, 500), (500, 375), (97, 640), (150, 180), (64, 61), (224, 224)]
MODES = ["RGB", "RGBA", "L", "LA", "P", "P+transparency", "RGB+key", "CMYK", "1", "I;16", "exif"]


@functools.cache
def photograph() -> Image.Image:
    """A portrait of 512 x 600 that matplotlib brings along."""
    matplotlib = pytest.importorskip("matplotlib")
    return Image.open(Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg").convert("RGB")


@functools.cache
def picture(h: int, w: int) -> Image.Image:
    """Of natural statistics: noise whose amplitude falls with frequency, a tenth of it saturated, edges and grain."""
    rng = np.random.default_rng([h, w])
    frequency = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w)[None])
    frequency[0, 0] = 1
    noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(3, h, w))) / frequency**1.2).real
    noise /= noise.std(axis=(1, 2), keepdims=True)
    values = 128 + 70 * (noise[0] + 0.3 * noise) + rng.normal(0, 2, (3, h, w))
    values[:, h // 3 : h // 2, w // 3 : w // 2] = np.array([250, 240, 5])[:, None, None]
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8).transpose(1, 2, 0))


def in_mode(mode: str, size: tuple[int, int] = (170, 230)) -> Image.Image:
    """A picture as a file of that mode is when it is opened."""
    image, file, options = picture(*size), io.BytesIO(), {}
    alpha = Image.fromarray(np.asarray(picture(size[1], size[0]))[..., 0].T.copy())
    if mode in ("RGBA", "LA"):
        image = image.convert(mode[:-1])
        image.putalpha(alpha)
    elif mode.startswith("P"):
        image = image.quantize(32)
        options = {"transparency": int(np.bincount(np.asarray(image).ravel()).argmax())} if "+" in mode else {}
    elif mode == "RGB+key":
        options = {"transparency": (250, 240, 5)}
    elif mode == "I;16":
        image = Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16) * 2)
    elif mode == "exif":
        options = {"exif": Image.Exif()}
        options["exif"][0x0112] = 6
    elif mode != "RGB":
        image = image.convert(mode)
    image.save(file, "TIFF" if mode == "CMYK" else "PNG", **options)
    return Image.open(io.BytesIO(file.getvalue()))


def assert_near(ours: np.ndarray, theirs: np.ndarray, what: str) -> None:
    assert ours.shape == theirs.shape
    difference = np.abs(ours.astype(np.float64) - theirs)
    assert difference.max() <= 2 and difference.mean() < 0.1, (what, difference.max(), difference.mean())


HUGGING_FACE = {
    "clip": ("CLIPImageProcessor", {}, dict(resize="crop")),
    "clip_336": (
        "CLIPImageProcessor",
        {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}},
        dict(resize="crop", size=336),
    ),
    "siglip": ("SiglipImageProcessor", {}, dict(resize="squash")),
    "siglip_384": ("SiglipImageProcessor", {"size": {"height": 384, "width": 384}}, dict(size=384)),
    "siglip2": ("SiglipImageProcessor", {"resample": 2}, dict(interpolation="bilinear")),
    "vit": ("ViTImageProcessor", {"do_convert_rgb": True}, dict(interpolation="bilinear")),
    "dinov2": ("BitImageProcessor", {"size": {"shortest_edge": 256}}, dict(resize="crop", crop_pct=224 / 256)),
    "odd_cut": ("BitImageProcessor", {"size": {"shortest_edge": 257}}, dict(resize="crop", crop_pct=224 / 257)),
}


def hugging_face(family: str, backend: str = ""):
    """(their processor as a function that gives [h, w, 3], our transform)."""
    name, options, ours = HUGGING_FACE[family]
    make = getattr(peers.transformers(), name + backend)(**options, do_rescale=False, do_normalize=False)
    theirs = lambda image: np.asarray(make(image, return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)
    return theirs, ImageTransform(**{"size": 224, **ours}, convention="transformers", decoder="full")


@pytest.mark.parametrize("family", HUGGING_FACE)
def test_photographs_are_as_in_transformers(family):
    theirs, ours = hugging_face(family)
    for image in (photograph(), *(picture(*size) for size in SIZES)):
        assert_near(ours(image), theirs(image), f"{family} {image.size}")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_modes_are_as_in_transformers(family, mode):
    theirs, ours = hugging_face(family)
    assert_near(ours(in_mode(mode)), theirs(in_mode(mode)), mode)


@pytest.mark.parametrize("family", ["clip", "siglip", "vit", "dinov2", "odd_cut"])
def test_its_pillow_backend_gives_the_same_bits_where_it_resizes_rows_first(family):
    theirs, ours = hugging_face(family, "Pil")
    for image in (picture(200, 300), picture(97, 640), picture(480, 640)):
        np.testing.assert_array_equal(ours(image), theirs(image))


@pytest.mark.parametrize("backend", ["", "Pil"])
@pytest.mark.parametrize("patch_size, max_patches", [(16, 256), (14, 100), (16, 1000)])
def test_naflex_is_that_of_siglip2(patch_size, max_patches, backend):
    make = getattr(peers.transformers(), "Siglip2ImageProcessor" + backend)(
        patch_size=patch_size, max_num_patches=max_patches, do_rescale=False, do_normalize=False
    )
    options = dict(resize="naflex", patch_size=patch_size, max_patches=max_patches, interpolation="bilinear")
    ours = ImageTransform(**options, convention="transformers", decoder="full")
    for size in [(480, 640), (97, 640), (300, 200), (64, 61), (20, 900)]:
        theirs = make(picture(*size), return_tensors="np")
        rows, cols = theirs["spatial_shapes"][0].tolist()
        patches = np.asarray(theirs["pixel_values"][0])[: rows * cols].reshape(rows, cols, patch_size, patch_size, 3)
        expected = patches.swapaxes(1, 2).reshape(rows * patch_size, cols * patch_size, 3)
        if backend == "":
            assert_near(ours(picture(*size)), expected, str(size))
        assert ours(picture(*size)).shape == expected.shape


def test_grids_of_naflex_are_those_of_siglip2():
    peers.transformers()
    from transformers.models.siglip2.image_processing_pil_siglip2 import get_image_size_for_max_num_patches

    rng = np.random.default_rng(0)
    for h, w, most in rng.integers(1, [3000, 3000, 1200], (400, 3)).tolist():
        rows, cols = naflex.grid(h, w, 16, most)
        assert (rows * 16, cols * 16) == get_image_size_for_max_num_patches(h, w, 16, most)
        assert rows * cols <= most


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize, theirs", [("crop", "shortest"), ("pad", "longest"), ("squash", "squash")])
def test_modes_are_as_in_open_clip(resize, theirs, interpolation, mode):
    transform = peers.torchvision("open_clip.transform").image_transform
    preprocess = transform(
        96, is_train=False, resize_mode=theirs, interpolation=interpolation, mean=(0,) * 3, std=(1,) * 3
    )
    ours = ImageTransform(96, resize, interpolation, fill=(0, 0, 0), convention="open_clip", decoder="full")
    expected = (preprocess(in_mode(mode)).permute(1, 2, 0).numpy() * 255).round()
    found = ours(in_mode(mode))
    if theirs == "longest" and mode in ("P", "P+transparency", "CMYK"):  # they pad with colour 0, black only by chance
        rows = slice((96 - 71) // 2, (96 - 71) // 2 + 71)
        expected, found = expected[rows], found[rows]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "I;16"])
def test_modes_are_as_in_our_own_convention_or_not(mode):
    """What the conventions are for: without them these modes come out differently."""
    plain = ImageTransform(96)(in_mode(mode)).astype(int)
    for convention in ("transformers", "open_clip", "big_vision"):
        other = ImageTransform(96, convention=convention)(in_mode(mode))
        differs = np.abs(plain - other).mean() > 2
        expected = {"transformers": {"exif"}, "big_vision": {"exif", "RGBA", "LA", "P+transparency", "RGB+key"}}
        expected["open_clip"] = expected["big_vision"] | {"P", "1"}
        assert differs == (mode in expected[convention]), (convention, mode)


def assert_cut_off(ours: np.ndarray, exact: np.ndarray) -> None:
    """Equal to the integers below; where that is a matter of the rounding of f32, above or below."""
    whole = np.abs(exact - exact.round()) < 0.02
    np.testing.assert_array_equal(ours[~whole], np.floor(exact)[~whole])
    assert np.abs(ours - exact)[whole].max(initial=0) < 1.02


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resize_is_that_of_big_vision(interpolation, antialias):
    """`jax.image.resize` has the arithmetic of `tf.image.resize`; big_vision's cast to uint8 cuts fractions off."""
    ours = ImageTransform(224, "squash", interpolation, convention="big_vision", antialias=antialias, decoder="full")
    for size in SIZES:
        image = jnp.asarray(np.asarray(picture(*size)), jnp.float32)
        method = {"bilinear": "linear", "bicubic": "cubic"}[interpolation]
        theirs = jax.image.resize(image, (224, 224, 3), method, antialias=antialias)
        assert_cut_off(ours(picture(*size)), np.asarray(theirs).clip(0, 255))


def test_bilinear_without_antialiasing_is_that_of_torch():
    torch = peers.torch()
    ours = ImageTransform(224, interpolation="bilinear", convention="big_vision", antialias=False)
    for size in SIZES:
        image = torch.tensor(np.asarray(picture(*size))).permute(2, 0, 1)[None].float()
        theirs = torch.nn.functional.interpolate(image, (224, 224), mode="bilinear", align_corners=False)
        assert_cut_off(ours(picture(*size)), theirs[0].permute(1, 2, 0).numpy())


def test_what_a_convention_lacks_is_named():
    for options, why in (
        (dict(convention="open-clip"), "did you mean 'open_clip'"),
        (dict(antialias=False), "for convention='big_vision'"),
        (dict(convention="big_vision", interpolation="lanczos"), "has bilinear and bicubic"),
        (dict(resize="naflex", crop_pct=0.9), "leave crops out"),
        (dict(resize="naflex", patch_size=0), "at least 1"),
        (dict(convention="transformers", resizer="simd"), "has its own"),
    ):
        with pytest.raises(UserError, match=why):
            ImageTransform(**options)
