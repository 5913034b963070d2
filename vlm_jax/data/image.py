"""Encoded images to arrays of one size, with the random crops and flips of training."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import math
import typing
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from vlm_jax.data import conventions, naflex
from vlm_jax.data.augment import GREY, Augmentation, random_box
from vlm_jax.data.conventions import CONVENTIONS, Convention, to_rgb, upright
from vlm_jax.data.errors import UnreadableImage
from vlm_jax.data.resize import FLOAT_FILTERS, INTERPOLATIONS, RESIZERS, Interpolation, Resizer, resize, resize_float
from vlm_jax.errors import UserError, closest

MAX_PIXELS = 89_478_485  # a quarter of a gigabyte as RGB; where Pillow begins to suspect a decompression bomb
EXACT = 1e-9  # 224 / (224 / 257) is a hair less than 257
LONGEST_STRIP = 16  # times as long as wide; of longer ones only the middle is resized before its centre is taken
Resize = Literal["squash", "crop", "pad", "naflex"]
Decoder = Literal["pillow", "simplejpeg", "full"]
RESIZES, DECODERS = map(typing.get_args, (Resize, Decoder))
OURS = CONVENTIONS["vlm_jax"]


def decode(data: bytes, min_size: int | None = None, decoder: Decoder = "pillow") -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an image of any format that Pillow reads, upright, as RGB; colour profiles are not applied.

    Args:
      data: the encoded image.
      min_size: the short side that is needed, in pixels. A JPEG is then decoded at 1/2, 1/4 or 1/8 where both sides
        stay at least that long, which is nearly three times faster at 640x480 -> 224.
      decoder: "pillow"; "simplejpeg", which goes to any eighth, for JPEG; or "full", which ignores `min_size`.

    Raises: UnreadableImage, with the reason in one line.
    """
    return np.asarray(open_image(data, min_size, decoder))


def open_image(image, min_size: int | None, decoder: Decoder = "pillow", convention: Convention = OURS):
    """An RGB `PIL.Image` from bytes, a uint8 array [h, w], [h, w, 1 | 3 | 4], or a `PIL.Image`.

    It is upright, where the convention says so; and in its own mode, where the convention resizes it in that.
    """
    from PIL import Image

    def ready(opened):
        opened = upright(opened) if convention.exif else opened
        return opened if convention.own_mode else to_rgb(opened, convention)

    if isinstance(image, np.ndarray):
        return ready(_from_array(image))
    if isinstance(image, Image.Image):
        return ready(image)
    if not image:
        raise UnreadableImage("empty")
    try:
        with Image.open(io.BytesIO(image)) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise UnreadableImage(f"{opened.width} x {opened.height} pixels, the most is {MAX_PIXELS}")
            if decoder == "simplejpeg" and (fast := _by_simplejpeg(opened, image, min_size)) is not None:
                return ready(fast)
            if min_size is not None and decoder != "full":
                opened.draft(None, (min_size, min_size))
            opened.load()
            return ready(opened)
    except (ImportError, MemoryError, UnreadableImage):
        raise
    except Image.UnidentifiedImageError as error:
        raise UnreadableImage(f"not an image: it starts with {image[:12]!r}") from error
    except Exception as error:  # decoders raise anything on broken bytes, which lie in memory: the file is to blame
        raise UnreadableImage(f"{type(error).__name__}: {error}".splitlines()[0]) from error


def _by_simplejpeg(opened, data: bytes, min_size: int | None):
    """What simplejpeg makes of the image that Pillow has opened and not decoded; None leaves it to Pillow."""
    import simplejpeg
    from PIL import Image

    if opened.format != "JPEG" or opened.mode not in ("RGB", "L"):
        return None
    try:
        pixels = simplejpeg.decode_jpeg(data, min_height=min_size or 0, min_width=min_size or 0)
    except ValueError:  # damage that Pillow may forgive
        return None
    image = Image.fromarray(pixels)
    image.info = opened.info  # where the orientation is
    return image


def _from_array(array: np.ndarray):
    from PIL import Image

    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise UnreadableImage(f"an array of {array.dtype} {array.shape}, wanted is uint8 [h, w] or [h, w, 1 | 3 | 4]")
    return Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)


@dataclasses.dataclass(frozen=True)
class ImageTransform:
    """Brings images to `size` x `size`, and varies them where a random generator is given.

    It stays uint8: pixels are scaled on the device, which gets a quarter of the bytes. `decode_resize` is the part
    that is always the same, so its result may be cached; `augment` is the random part, a function of its generator.

    Attributes:
      size: side of the result, in pixels.
      resize: "squash" to the square (SigLIP); "crop" the middle after the short side has become `size` (CLIP; open_clip
        calls it "shortest"); "pad" after the long side has ("longest"); or "naflex": the aspect ratio stays, both sides
        become multiples of `patch_size`, with at most `max_patches` patches (SigLIP 2), and `size` is not used.
      interpolation: "nearest" | "box" | "bilinear" | "bicubic" | "lanczos"; antialiased when it shrinks.
      random_resized_crop: range of the crop's area as a fraction of the image's, such as (0.9, 1.0); None for none.
      aspect: range of the width to height ratio of that crop.
      flip: mirror half of the images. It makes captions with "left" and "right" untrue.
      pad_crop: pad by so many black pixels on all sides and crop at random (He et al. 2015, section 4.2: 4 on CIFAR).
      crop_pct: resize to `size / crop_pct` and take the middle `size` of it (timm: 0.875, 0.9).
      fill: colour of padding. open_clip pads with black, LLaVA with CLIP's mean, (122, 116, 104).
      decoder: of JPEG. "pillow" decodes at 1/2, 1/4 or 1/8 where that leaves enough pixels; "simplejpeg" at any
        eighth (extra `fast`; what it cannot read goes to Pillow); "full" always in full, slowly, as other
        implementations do.
      resizer: "pillow", or "simd", several times faster (extra `fast`; "nearest" and "box" stay Pillow's).
        Pixels differ by 1, beside edges of black against white by more: keep to one in training and in evaluation.
      augmentation: what else varies, after crop and flip: `data.augment.Augment`, one of its parts, or your own.
      convention: whose rules hold for everything else: "vlm_jax", "transformers", "open_clip" or "big_vision"; see
        `vlm_jax.data.conventions`. Weights published with a library expect its own, with `decoder="full"`.
      antialias: of "big_vision", whose resize has none unless it is asked for.
      patch_size, max_patches: of "naflex".
    """

    size: int = 224
    resize: Resize = "squash"
    interpolation: Interpolation = "bicubic"
    random_resized_crop: tuple[float, float] | None = None
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = False
    pad_crop: int = 0
    crop_pct: float = 1.0
    fill: tuple[int, int, int] = (GREY, GREY, GREY)
    decoder: Decoder = "pillow"
    resizer: Resizer = "pillow"
    augmentation: Augmentation | None = None
    convention: conventions.Name = "vlm_jax"
    antialias: bool = True
    patch_size: int = 16
    max_patches: int = 256

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises: UserError for a value that is none of the listed ones, or a range that is none."""
        fields = {"resize": RESIZES, "interpolation": INTERPOLATIONS, "decoder": DECODERS, "resizer": RESIZERS}
        fields["convention"] = conventions.NAMES
        for field, choices in fields.items():
            if (value := getattr(self, field)) not in choices:
                raise UserError(f"ImageTransform.{field}={value!r}: {closest(str(value), choices)}")
        if self.size < 1 or self.pad_crop < 0:
            raise UserError(f"ImageTransform(size={self.size}, pad_crop={self.pad_crop}): size >= 1 and pad_crop >= 0.")
        if not 0 < self.crop_pct <= 1:
            raise UserError(f"ImageTransform.crop_pct={self.crop_pct}: wanted is a fraction, 0 < crop_pct <= 1.")
        if len(self.fill) != 3 or not all(0 <= value <= 255 for value in self.fill):
            raise UserError(f"ImageTransform.fill={self.fill}: wanted are red, green and blue, 0 to 255.")
        if self.decoder == "simplejpeg" and importlib.util.find_spec("simplejpeg") is None:
            raise UserError("ImageTransform.decoder='simplejpeg' is not installed: pip install 'vlm_jax[fast]'.")
        if self.resizer == "simd" and importlib.util.find_spec("cykooz_resizer") is None:
            raise UserError("ImageTransform.resizer='simd' is not installed: pip install cykooz.resizer.")
        area = self.random_resized_crop
        if area is not None and not (len(area) == 2 and 0 < area[0] <= area[1] <= 1):
            raise UserError(f"ImageTransform.random_resized_crop={area}: wanted are (low, high), 0 < low <= high <= 1.")
        self._validate_convention()
        if not (len(self.aspect) == 2 and 0 < self.aspect[0] <= self.aspect[1]):
            raise UserError(f"ImageTransform.aspect={self.aspect}: wanted are (low, high), 0 < low <= high.")

    def _validate_convention(self) -> None:
        floats = self.rules.resample == "float"
        if floats and self.interpolation not in FLOAT_FILTERS:
            raise UserError(
                f"ImageTransform.interpolation={self.interpolation!r}: convention={self.convention!r} has "
                f"{' and '.join(FLOAT_FILTERS)}."
            )
        if self.resizer != "pillow" and self.convention != "vlm_jax":
            raise UserError(f"ImageTransform.resizer={self.resizer!r}: {self.convention!r} has its own; leave it out.")
        if not self.antialias and not floats:
            raise UserError("ImageTransform.antialias=False is for convention='big_vision'; the others always have it.")
        if min(self.patch_size, self.max_patches) < 1:
            raise UserError(
                f"ImageTransform(patch_size={self.patch_size}, max_patches={self.max_patches}): both are at least 1."
            )
        if self.resize == "naflex" and (self.random_resized_crop or self.pad_crop or self.crop_pct != 1):
            raise UserError("ImageTransform.resize='naflex' keeps the whole image: leave crops out.")

    @property
    def rules(self) -> Convention:
        """What `convention` says."""
        return CONVENTIONS[self.convention]

    def __call__(self, image, rng: np.random.Generator | None = None) -> UInt8[np.ndarray, "size size 3"]:
        """The whole way: augmented with `rng`, or, without one, as for evaluation. [rows, columns, 3] of "naflex".

        Args:
          image: encoded bytes, a uint8 array [h, w], [h, w, 1 | 3 | 4], or a `PIL.Image`.
          rng: where all random numbers come from.

        Raises: UnreadableImage.
        """
        if rng is None:
            return self._fit(image)
        return self.augment(self.decode_resize(image), rng)

    def batch(self, images: Sequence[np.ndarray]) -> np.ndarray | dict[str, np.ndarray]:
        """Images as a model takes them: [b, size, size, 3], or of "naflex" what `vlm_jax.data.naflex.rows` gives."""
        if self.resize == "naflex":
            return naflex.rows(images, self.patch_size, self.max_patches)
        return np.stack(images)

    @property
    def blank(self) -> UInt8[np.ndarray, "h w 3"]:
        """A black image of a shape that there is."""
        side = self.patch_size if self.resize == "naflex" else self.size
        return np.zeros((side, side, 3), np.uint8)

    def decode_resize(self, image) -> UInt8[np.ndarray, "h w 3"]:
        """The deterministic part: [size, size, 3], or larger where a random crop is still to be taken from it."""
        if self.random_resized_crop is None:
            return self._fit(image)
        smallest = math.sqrt(self.random_resized_crop[0])  # the smallest crop should not need to be enlarged
        opened = open_image(image, math.ceil(self.size / smallest), self.decoder, self.rules)
        return np.asarray(to_rgb(opened, self.rules))

    def augment(self, array: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "size size 3"]:
        """The random part, of what `decode_resize` returned."""
        if self.random_resized_crop is not None:
            box = self._draw_box(*array.shape[:2], rng)
            array = self.resized(open_image(array, None), (self.size, self.size), box)
        if self.pad_crop:
            pad = self.pad_crop
            padded = np.pad(array, ((pad, pad), (pad, pad), (0, 0)))
            y, x = rng.integers(0, 2 * pad + 1, 2)
            array = padded[y : y + self.size, x : x + self.size]
        if self.flip and rng.random() < 0.5:
            array = array[:, ::-1]
        array = np.ascontiguousarray(array)
        return array if self.augmentation is None else self.augmentation(array, rng)

    def _draw_box(self, h: int, w: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """A crop (x0, y0, x1, y1) of random area and aspect ratio."""
        if (box := random_box(h, w, self.random_resized_crop, self.aspect, rng)) is not None:
            return box
        cw, ch = min(w, round(h * self.aspect[1])), min(h, round(w / self.aspect[0]))  # a long strip: its middle
        x, y = (w - cw) // 2, (h - ch) // 2
        return x, y, x + cw, y + ch

    def _fit(self, image) -> UInt8[np.ndarray, "size size 3"]:
        done = (
            self.crop_pct == 1 and self.resize != "naflex" and isinstance(image, np.ndarray) and image.dtype == np.uint8
        )
        if done and image.shape == (self.size, self.size, 3):
            return image
        target = math.floor(self.size / self.crop_pct + EXACT)
        if self.resize == "naflex":
            target = math.ceil(self.patch_size * math.sqrt(self.max_patches))  # no short side becomes longer
        image = open_image(image, target, self.decoder, self.rules)
        w, h = image.size
        if self.resize == "naflex":
            rows, cols = naflex.grid(h, w, self.patch_size, self.max_patches)
            return self.resized(image, (cols * self.patch_size, rows * self.patch_size))
        if self.resize == "crop" and max(w, h) > LONGEST_STRIP * min(w, h):  # or what is cut away could fill the memory
            x, y = max(0, w - LONGEST_STRIP * h) // 2, max(0, h - LONGEST_STRIP * w) // 2
            image = image.crop((x, y, w - x, h - y))
        return self._middle(self.resized(image, self._scaled(*image.size, target)))

    def _scaled(self, w: int, h: int, target: int) -> tuple[int, int]:
        """Width and height to resize to, rounded as each protocol does."""
        if self.resize == "squash":
            return target, target
        if self.resize == "crop":
            return (target, int(target * h / w)) if w <= h else (int(target * w / h), target)
        ratio = max(w, h) / target
        return max(1, round(w / ratio)), max(1, round(h / ratio))

    def _middle(self, array: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "size size 3"]:
        """Cuts or pads each side to its middle `size`; offsets of cuts are rounded as the convention says."""
        half = (lambda cut: round(cut / 2)) if self.rules.even else (lambda cut: cut // 2)
        y, x = (half(max(0, length - self.size)) for length in array.shape[:2])
        array = np.ascontiguousarray(array[y : y + self.size, x : x + self.size])
        h, w = array.shape[:2]
        if (h, w) == (self.size, self.size):
            return array
        y, x = (self.size - h) // 2, (self.size - w) // 2
        canvas = np.full((self.size, self.size, 3), self.fill, np.uint8)
        canvas[y : y + h, x : x + w] = array
        return canvas

    def resized(self, image, size: tuple[int, int], box=None) -> UInt8[np.ndarray, "height width 3"]:
        """A `PIL.Image` that `open_image` gave by this convention, or what lies in a box of it, at (width, height)."""
        from PIL import Image

        if self.rules.resample == "float":
            whole = image if box is None else image.crop(box)
            return resize_float(np.asarray(whole), size, self.interpolation, self.antialias)
        if self.rules.resample == "rows_first" and box is None:
            image = image.resize((size[0], image.height), Image.Resampling[self.interpolation.upper()])
        if image.mode == "RGB":
            return resize(image, size, self.interpolation, self.resizer, box)
        resized = image.resize(size, Image.Resampling[self.interpolation.upper()], box)
        return np.asarray(to_rgb(resized, self.rules))
