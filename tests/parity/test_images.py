"""Resizing, tiles and augmentations equal those of torchvision, open_clip, timm and Hugging Face."""

import numpy as np
import pytest
from PIL import Image

from vlm_jax.data import augment
from vlm_jax.data.augment import ColorJitter, RandAugment

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
