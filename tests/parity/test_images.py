"""Resizing, tiles and augmentations equal those of torchvision, open_clip, timm and Hugging Face."""

import io

import numpy as np
import pytest
from PIL import Image

from vlm_jax.data import augment
from vlm_jax.data.augment import ColorJitter, RandAugment
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.tiles import Tiles, best_grid

from . import peers


def picture(h: int, w: int) -> np.ndarray:
    """Smooth parts, edges and noise; every value occurs, white and black too."""
    rng = np.random.default_rng(h * w)
    y, x = np.mgrid[:h, :w]
    smooth = np.stack([255 * x / w, 255 * y / h, 255 * (x // 8 % 2)], -1)
    return np.clip(smooth + rng.normal(0, 40, (h, w, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", augment.OPERATIONS)
@pytest.mark.parametrize("strength", [-1.0, -0.3, 0.5, 1.0])
def test_operations_are_those_of_torchvision(name, strength):
    autoaugment = peers.torchvision("torchvision.transforms.autoaugment")
    functional = peers.torchvision("torchvision.transforms.functional")
    image = Image.fromarray(picture(64, 90).clip(20, 235))  # not of full contrast yet
    bins, at = autoaugment.RandAugment()._augmentation_space(31, (64, 90)), round(abs(strength) * 30)
    theirs = {"auto_contrast": "AutoContrast"}.get(name, name.title().replace("_", ""))
    magnitudes, signed = bins[theirs]
    value = float(magnitudes[at]) if magnitudes.ndim else 0.0
    value = -value if signed and strength < 0 else value
    if name == "solarize":
        value = 256 * (1 - abs(strength))  # theirs ends at 255, where white turns black at magnitude 0
    nearest = functional.InterpolationMode.NEAREST
    expected = np.asarray(autoaugment._apply_op(image, theirs, value, nearest, [128.0] * 3))
    ours = np.asarray(RandAugment().operation(name, image, strength))
    # Shears go through atan and tan there: a sample at the edge of a pixel may be its neighbour's.
    different = (ours != expected).any(-1).mean()
    assert different <= (0.01 if name.startswith("shear") else 0), different
    assert name == "identity" or (ours != np.asarray(image)).any()


@pytest.mark.parametrize("field", ["brightness", "contrast", "saturation", "hue"])
def test_colour_jitter_is_that_of_torchvision(field):
    functional = peers.torchvision("torchvision.transforms.functional")
    jitter, image = ColorJitter(**{field: 0.4}), picture(24, 37)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        rng.random(), rng.permutation(["Brightness", "Contrast", "Color", "hue"])
        factor = rng.uniform(-0.4, 0.4) if field == "hue" else rng.uniform(0.6, 1.4)
        expected = getattr(functional, f"adjust_{field}")(Image.fromarray(image), factor)
        np.testing.assert_array_equal(jitter(image, np.random.default_rng(seed)), expected)


ODD = (20, 27)  # 32 x 43, of which eleven columns are cut
SIZES = [(60, 90), (91, 64), (40, 41), (200, 33), (32, 32), ODD, (333, 500)]


def as_uint8(tensor) -> np.ndarray:
    return (tensor.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize, theirs", [("crop", "shortest"), ("pad", "longest"), ("squash", "squash")])
def test_resizing_is_that_of_open_clip(resize, theirs, interpolation):
    transform = peers.torchvision("open_clip.transform").image_transform
    preprocess = transform(
        32, is_train=False, resize_mode=theirs, interpolation=interpolation, mean=(0,) * 3, std=(1,) * 3
    )
    ours = ImageTransform(32, resize=resize, interpolation=interpolation, fill=(0, 0, 0))
    for size in SIZES:
        theirs = as_uint8(preprocess(Image.fromarray(picture(*size))))
        np.testing.assert_array_equal(ours(picture(*size)), theirs)


def test_a_whole_jpeg_is_what_open_clip_makes_of_it():
    transform = peers.torchvision("open_clip.transform").image_transform
    preprocess = transform(64, is_train=False, mean=(0,) * 3, std=(1,) * 3)
    file = io.BytesIO()
    Image.fromarray(picture(300, 410)).save(file, "JPEG")
    expected = as_uint8(preprocess(Image.open(file)))
    np.testing.assert_array_equal(ImageTransform(64, resize="crop", decoder="full")(file.getvalue()), expected)
    drafted = ImageTransform(64, resize="crop")(file.getvalue())
    assert (drafted != expected).mean() > 0.1  # so the test can see a draft


@pytest.mark.parametrize("crop_pct", [1.0, 0.9, 0.875])
@pytest.mark.parametrize("resize, theirs", [("crop", "center"), ("pad", "border"), ("squash", "squash")])
def test_resizing_is_that_of_timm(resize, theirs, crop_pct):
    transform = peers.torchvision("timm.data.transforms_factory").transforms_imagenet_eval
    grey = tuple(128 / 255 for _ in range(3))
    preprocess = transform(
        32, crop_pct=crop_pct, crop_mode=theirs, interpolation="bicubic", mean=grey, use_prefetcher=True
    )
    ours = ImageTransform(32, resize=resize, crop_pct=crop_pct)
    for size in SIZES:
        theirs = preprocess(Image.fromarray(picture(*size))).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(ours(picture(*size)), theirs)


@pytest.mark.parametrize("backend", ["", "Pil"])
@pytest.mark.parametrize(
    "processor, options, ours",
    [
        ("CLIPImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": 32}, {"resize": "crop"}),
        ("SiglipImageProcessor", {"size": {"height": 32, "width": 32}}, {"resize": "squash"}),
        ("SiglipImageProcessor", {"size": {"height": 32, "width": 32}, "resample": 2}, {"interpolation": "bilinear"}),
    ],
    ids="clip siglip siglip_bilinear".split(),
)
def test_resizing_is_that_of_hugging_face(processor, options, ours, backend):
    make = getattr(peers.transformers(), processor + backend)(**options, do_rescale=False, do_normalize=False)
    for size in SIZES:
        if (processor, size) == ("CLIPImageProcessor", ODD):
            continue  # theirs rounds the offset of an odd cut down, OpenAI's and open_clip's to even
        # Bicubic overshoots beyond black and white, where Pillow clips between its two passes and torch does not.
        image = picture(*size) if backend else picture(*size).clip(80, 175)
        theirs = make(Image.fromarray(image), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        difference = np.abs(ImageTransform(32, **ours)(image).astype(int) - theirs)
        assert difference.max() <= (0 if backend else 1)


def test_tiles_are_those_of_llava_next():
    grids = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
    make = peers.transformers().LlavaNextImageProcessorPil(
        size={"shortest_edge": 32},
        crop_size=32,
        image_grid_pinpoints=[[32 * rows, 32 * columns] for rows, columns in grids],
        do_rescale=False,
        do_normalize=False,
        do_pad=False,
    )
    for size in (*SIZES, (64, 64), (33, 100), (500, 90)):
        tiled = Tiles(32, grids, fill=(0, 0, 0))(picture(*size))
        theirs = make(Image.fromarray(picture(*size)), return_tensors="np")["pixel_values"][0]
        np.testing.assert_array_equal(tiled.tiles, theirs.transpose(0, 2, 3, 1))


def test_tiles_are_those_of_llava_next_s_torch_processor():
    sizes = {"size": {"shortest_edge": 32}, "crop_size": 32, "image_grid_pinpoints": [[32, 64], [64, 32], [64, 64]]}
    make = peers.transformers().LlavaNextImageProcessor(**sizes, do_rescale=False, do_normalize=False, do_pad=False)
    tiles = Tiles(32, ((1, 2), (2, 1), (2, 2)), fill=(0, 0, 0), convention="transformers")
    for size in (*SIZES, (64, 64), (33, 100)):
        image = picture(*size).clip(80, 175)
        theirs = np.asarray(make(Image.fromarray(image), return_tensors="np")["pixel_values"][0])
        difference = np.abs(tiles(image).tiles.astype(int) - theirs.transpose(0, 2, 3, 1))
        assert difference.max() <= 1


def test_grids_are_chosen_as_llava_next_does():
    peers.transformers()
    from transformers.image_processing_utils import select_best_resolution

    grids = [(rows, columns) for rows in range(1, 7) for columns in range(1, 7)]
    rng = np.random.default_rng(0)
    for h, w in rng.integers(1, 3000, (300, 2)).tolist():
        theirs = select_best_resolution((h, w), [(336 * rows, 336 * columns) for rows, columns in grids])
        rows, columns = best_grid(h, w, grids, 336)
        assert (336 * rows, 336 * columns) == theirs
