"""Augmentations of decoded images: small frozen dataclasses, each a pure function of the image and a generator."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np
from jaxtyping import UInt8

from vlm_jax.errors import UserError

GREY = 128  # what is filled in: near zero for the model
FULL_MAGNITUDE = 30


class Augmentation(Protocol):
    """Anything that varies a uint8 image [h, w, 3], keeps its shape, and takes all random numbers from `rng`."""

    def __call__(self, image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]: ...


@dataclasses.dataclass(frozen=True)
class Augment:
    """Several augmentations one after another, in the order of the fields; None leaves one out."""

    rand_augment: RandAugment | None = None
    color_jitter: ColorJitter | None = None
    grayscale: Grayscale | None = None
    erasing: RandomErasing | None = None

    def __call__(self, image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
        for field in dataclasses.fields(self):
            if (augmentation := getattr(self, field.name)) is not None:
                image = augmentation(image, rng)
        return image


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """Changes brightness, contrast, saturation and hue, in random order, as torchvision does with Pillow images.

    Attributes:
      brightness, contrast, saturation: the factor is uniform in [max(0, 1 - x), 1 + x]; 0 leaves it as it is.
      hue: turns of the colour circle, uniform in [-x, x]; at most 0.5.
      p: share of the images that are changed (0.8 in SimCLR, arXiv 2002.05709, appendix A).
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    p: float = 1.0

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises: UserError for a value out of its range."""
        _probability("ColorJitter.p", self.p)
        for name in ("brightness", "contrast", "saturation"):
            if getattr(self, name) < 0:
                raise UserError(f"ColorJitter.{name}={getattr(self, name)}: wanted is at least 0.")
        if not 0 <= self.hue <= 0.5:
            raise UserError(f"ColorJitter.hue={self.hue}: wanted are 0 to 0.5 turns.")

    def __call__(self, image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
        from PIL import Image

        if rng.random() >= self.p:
            return image
        varied = Image.fromarray(image)
        for name in rng.permutation(["Brightness", "Contrast", "Color", "hue"]):
            strength = self.saturation if name == "Color" else getattr(self, name.lower())
            if not strength:
                continue
            if name == "hue":
                varied = _turn_hue(varied, rng.uniform(-strength, strength))
            else:
                varied = _enhance(name)(varied, rng.uniform(max(0.0, 1 - strength), 1 + strength))
        return np.asarray(varied)


@dataclasses.dataclass(frozen=True)
class Grayscale:
    """Takes the colour away from a share `p` of the images; the result still has three channels."""

    p: float = 0.2

    def __post_init__(self):
        _probability("Grayscale.p", self.p)

    def __call__(self, image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
        from PIL import Image

        if rng.random() >= self.p:
            return image
        return np.asarray(Image.fromarray(image).convert("L").convert("RGB"))


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """`num_ops` operations drawn from fourteen, all of one magnitude (Cubuk et al. 2019, arXiv 1909.13719).

    The operations and their ranges are torchvision's. At magnitude 0 all but `auto_contrast` and `equalize`, which
    have none, leave the image as it is. Rotations, shears and shifts make captions with places untrue.

    Attributes:
      num_ops: operations an image.
      magnitude: 0 to 30.
      interpolation: of rotations and shears: "nearest" (torchvision's default) | "bilinear" | "bicubic".
      fill: grey level of what comes into view.
    """

    num_ops: int = 2
    magnitude: float = 9.0
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "nearest"
    fill: int = GREY

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises: UserError for a value out of its range."""
        if self.num_ops < 0 or not 0 <= self.magnitude <= FULL_MAGNITUDE or not 0 <= self.fill <= 255:
            raise UserError(
                f"RandAugment(num_ops={self.num_ops}, magnitude={self.magnitude}, fill={self.fill}): "
                f"num_ops >= 0, magnitude of 0 to {FULL_MAGNITUDE}, fill of 0 to 255."
            )

    def __call__(self, image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
        from PIL import Image

        varied = Image.fromarray(image)
        for _ in range(self.num_ops):
            name = OPERATIONS[rng.integers(len(OPERATIONS))]
            sign = rng.choice((-1, 1))
            varied = self.operation(name, varied, sign * self.magnitude / FULL_MAGNITUDE)
        return np.asarray(varied)

    def operation(self, name: str, image, strength: float):
        """One operation on a `PIL.Image`; `strength` is in [-1, 1], its sign matters where there are two directions."""
        from PIL import Image, ImageOps

        if name in ("auto_contrast", "equalize"):
            return ImageOps.autocontrast(image) if name == "auto_contrast" else ImageOps.equalize(image)
        if name == "posterize":
            return ImageOps.posterize(image, 8 - round(4 * abs(strength)))
        if name == "solarize":
            return ImageOps.solarize(image, 256 * (1 - abs(strength)))
        if name in ENHANCED:
            return _enhance(ENHANCED[name])(image, 1 + 0.9 * strength)
        options = dict(resample=Image.Resampling[self.interpolation.upper()], fillcolor=(self.fill,) * 3)
        if name == "rotate":
            return image.rotate(30 * strength, **options)
        w, h = image.size
        shear, far = 0.3 * strength, 150 / 331 * strength
        affine = {
            "identity": (1, 0, 0, 0, 1, 0),
            "shear_x": (1, shear, 0, 0, 1, 0),
            "shear_y": (1, 0, 0, shear, 1, 0),
            "translate_x": (1, 0, -int(far * w), 0, 1, 0),
            "translate_y": (1, 0, 0, 0, 1, -int(far * h)),
        }[name]
        return image.transform(image.size, Image.Transform.AFFINE, affine, **options)


ENHANCED = {"brightness": "Brightness", "color": "Color", "contrast": "Contrast", "sharpness": "Sharpness"}
AFFINE = ("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate")
OPERATIONS = (*AFFINE, *ENHANCED, "posterize", "solarize", "auto_contrast", "equalize")


@dataclasses.dataclass(frozen=True)
class RandomErasing:
    """Covers a random box of a share `p` of the images (Zhong et al. 2017, arXiv 1708.04896).

    Attributes:
      p: share of the images that lose a box.
      area: range of the box's area as a fraction of the image's.
      aspect: range of its width to height ratio.
      fill: grey level of the box; None fills it with noise.
    """

    p: float = 0.25
    area: tuple[float, float] = (0.02, 1 / 3)
    aspect: tuple[float, float] = (0.3, 3.3)
    fill: int | None = None

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises: UserError for a value out of its range."""
        _probability("RandomErasing.p", self.p)
        if not (len(self.area) == 2 and 0 < self.area[0] <= self.area[1] <= 1):
            raise UserError(f"RandomErasing.area={self.area}: wanted are (low, high), 0 < low <= high <= 1.")
        if not (len(self.aspect) == 2 and 0 < self.aspect[0] <= self.aspect[1]):
            raise UserError(f"RandomErasing.aspect={self.aspect}: wanted are (low, high), 0 < low <= high.")
        if self.fill is not None and not 0 <= self.fill <= 255:
            raise UserError(f"RandomErasing.fill={self.fill}: wanted are 0 to 255, or None for noise.")

    def __call__(self, image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
        if rng.random() >= self.p:
            return image
        box = random_box(*image.shape[:2], self.area, self.aspect, rng)
        if box is None:
            return image
        x0, y0, x1, y1 = box
        erased = image.copy()
        noise = rng.integers(0, 256, (y1 - y0, x1 - x0, 3), np.uint8) if self.fill is None else self.fill
        erased[y0:y1, x0:x1] = noise
        return erased


def random_box(
    h: int, w: int, area: tuple[float, float], aspect: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int] | None:
    """A box (x0, y0, x1, y1) of random area (as a fraction of `h * w`), aspect ratio and place; None after ten misses.

    Source: Szegedy et al. 2014, arXiv 1409.4842, section 6.
    """
    low, high = np.log(aspect)
    for _ in range(10):
        pixels = h * w * rng.uniform(*area)
        ratio = math.exp(rng.uniform(low, high))
        bw, bh = max(1, round(math.sqrt(pixels * ratio))), max(1, round(math.sqrt(pixels / ratio)))
        if bw <= w and bh <= h:
            x, y = int(rng.integers(0, w - bw + 1)), int(rng.integers(0, h - bh + 1))
            return x, y, x + bw, y + bh
    return None


def _turn_hue(image, turns: float):
    from PIL import Image

    hsv = np.array(image.convert("HSV"))
    hsv[..., 0] += np.uint8(int(turns * 255) % 256)  # wraps around, as the circle does
    return Image.fromarray(hsv, "HSV").convert("RGB")


def _enhance(name: str) -> Callable:
    from PIL import ImageEnhance

    return lambda image, factor: getattr(ImageEnhance, name)(image).enhance(factor)


def _probability(name: str, p: float) -> None:
    if not 0 <= p <= 1:
        raise UserError(f"{name}={p}: wanted is a probability, 0 to 1.")
