"""Preprocessing as other libraries' files describe it: pixels to an `ImageTransform`, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vlm_jax.config import bind
from vlm_jax.data.image import ImageTransform
from vlm_jax.errors import UserError
from vlm_jax.interop.imported import RGB, Fields, complete, read_json

PILLOW = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box"}
IMAGENET = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}  # open_clip's
RESIZE_MODES = {"shortest": "crop", "squash": "squash", "longest": "pad"}
TILED, BLACK = "LlavaNextImageProcessor", (0, 0, 0)  # around its images
# How each processor class fills in what its file does not say.
SQUARE = {"size": {"height": 224, "width": 224}, "do_center_crop": False}
CROPPED = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True}
COMMON = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}
HALVES = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}
CLIP_PIXELS = {"image_mean": IMAGENET["mean"], "image_std": IMAGENET["std"]}
PROCESSORS = {
    "SiglipImageProcessor": {**COMMON, **HALVES, **SQUARE, "resample": 3},
    "Siglip2ImageProcessor": {**COMMON, **HALVES, "resample": 2, "max_num_patches": 256, "patch_size": 16},
    "ViTImageProcessor": {**COMMON, **HALVES, **SQUARE, "resample": 2},
    "CLIPImageProcessor": {**COMMON, **CLIP_PIXELS, **CROPPED, "resample": 3},
    "BitImageProcessor": {**COMMON, **CLIP_PIXELS, **CROPPED, "resample": 3},
    TILED: {**COMMON, **CLIP_PIXELS, **CROPPED, "resample": 3},
}


@dataclasses.dataclass(frozen=True)
class Pixels:
    """A bound `ImageTransform`, and mean and standard deviation of pixels in [0, 1]."""

    image: ConfigDict
    mean: RGB
    std: RGB


def from_hugging_face(folder: Path) -> Pixels:
    """What `preprocessor_config.json`, or the image part of `processor_config.json`, says. Raises UserError."""
    path, config = _processor(folder)
    name = config.get("image_processor_type") or config.get("feature_extractor_type") or ""
    name = name.removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    if name not in PROCESSORS:
        raise UserError(f"{path}: image processor {name!r} is not supported; known are {', '.join(PROCESSORS)}.")
    fields = Fields(config, PROCESSORS[name], str(path))
    fields.require(do_resize=True, do_rescale=True)
    if abs(fields["rescale_factor"] * 255 - 1) > 1e-6:
        raise UserError(f"{path}: rescale_factor={fields['rescale_factor']} is not supported; only 1 / 255 is.")
    mean, std = (0.0,) * 3, (1.0,) * 3
    if fields["do_normalize"]:
        mean, std = _rgb(fields, "image_mean"), _rgb(fields, "image_std")
    if fields["resample"] not in PILLOW:
        raise UserError(f"{path}: resample={fields['resample']!r} is no filter; known are {PILLOW}.")
    options = {"interpolation": PILLOW[fields["resample"]], "convention": "transformers", "decoder": "full"}
    if name == "Siglip2ImageProcessor":
        patch, most = fields.whole("patch_size"), fields.whole("max_num_patches")
        geometry = {"resize": "naflex", "patch_size": patch, "max_patches": most, "size": int(most**0.5) * patch}
    else:
        geometry = _geometry(fields, path)
        if name == TILED:
            geometry["fill"] = BLACK
    return Pixels(complete(bind("data.image.ImageTransform", **geometry, **options)), mean, std)


def _processor(folder: Path) -> tuple[Path, dict]:
    path = folder / "preprocessor_config.json"
    both = folder / "processor_config.json"
    if not path.is_file() and both.is_file() and "image_processor" in (config := read_json(both)):
        return both, config["image_processor"]
    return path, read_json(path)


def _geometry(fields: Fields, path: Path) -> dict[str, Any]:
    """How the image becomes a square: squashed, or its short side resized and its middle taken."""
    size, crop = fields["size"], fields.get("crop_size")
    size = {"shortest_edge": size} if isinstance(size, int) and fields["do_center_crop"] else size
    size = {"height": size, "width": size} if isinstance(size, int) else size
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    if "height" in size and size["height"] == size["width"] and not fields["do_center_crop"]:
        return {"size": size["height"], "resize": "squash"}
    if "shortest_edge" in size and fields["do_center_crop"] and crop and crop["height"] == crop["width"]:
        return {"size": crop["height"], "resize": "crop", "crop_pct": crop["height"] / size["shortest_edge"]}
    raise UserError(f"{path}: size={size} with crop_size={crop} gives no square image, which is what is supported.")


def _rgb(fields: Fields, key: str) -> RGB:
    value = fields[key]
    if len(value) != 3:
        raise UserError(f"preprocessor: {key}={value} are not three values, for red, green and blue.")
    return tuple(float(v) for v in value)


def from_open_clip(config: dict, size: int, where: str) -> Pixels:
    """What `preprocess_cfg` says; `size` is the model's, which counts where that says nothing."""
    defaults = {**IMAGENET, "size": size, "interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0}
    fields = Fields(config, defaults, f"{where}, preprocess_cfg")
    fields.require(**({"mode": "RGB"} if "mode" in config else {}))
    options = {
        "size": fields.whole("size"),
        "resize": fields.choose("resize_mode", RESIZE_MODES),
        "interpolation": fields.choose("interpolation", {"bicubic": "bicubic", "bilinear": "bilinear"}),
        "fill": (fields["fill_color"],) * 3,
        "convention": "open_clip",
        "decoder": "full",
    }
    return Pixels(complete(bind("data.image.ImageTransform", **options)), _rgb(fields, "mean"), _rgb(fields, "std"))


def to_hugging_face(
    image: ImageTransform, mean: RGB, std: RGB, kind: str, grids: Sequence[tuple[int, int]] = ()
) -> dict:
    """`preprocessor_config.json` for a model of type `kind`, with the `grids` of tiles that its images become.

    Raises UserError for what it has no words for.
    """
    codes = {name: code for code, name in PILLOW.items()}
    config: dict[str, Any] = {
        **COMMON,
        "do_convert_rgb": True,
        "image_mean": list(mean),
        "image_std": list(std),
        "resample": codes[image.interpolation],
    }
    if grids:
        tiles = {"do_center_crop": True, "do_pad": True, "image_grid_pinpoints": pinpoints(grids, image.size)}
        sizes = {"size": {"shortest_edge": image.size}, "crop_size": {"height": image.size, "width": image.size}}
        return config | tiles | sizes | {"image_processor_type": TILED}
    if image.resize == "naflex":
        patches = {"patch_size": image.patch_size, "max_num_patches": image.max_patches}
        return config | patches | {"image_processor_type": "Siglip2ImageProcessor"}
    if image.resize == "squash" and image.crop_pct == 1:
        name = "ViTImageProcessor" if kind in ("vit", "vision-encoder-decoder") else "SiglipImageProcessor"
        return config | {"image_processor_type": name, "size": {"height": image.size, "width": image.size}}
    if image.resize == "crop":
        crop = {"do_center_crop": True, "crop_size": {"height": image.size, "width": image.size}}
        name = "BitImageProcessor" if kind.startswith("dinov2") else "CLIPImageProcessor"
        return config | crop | {"image_processor_type": name, "size": {"shortest_edge": _before_crop(image)}}
    raise UserError(f"no image processor of transformers has resize={image.resize!r}, crop_pct={image.crop_pct}.")


def pinpoints(grids: Sequence[tuple[int, int]], size: int) -> list[list[int]]:
    """Height and width in pixels of grids of tiles, as LLaVA-NeXT's files have them."""
    return [[rows * size, columns * size] for rows, columns in grids]


def _before_crop(image: ImageTransform) -> int:
    return round(image.size / image.crop_pct)


def to_open_clip(image: ImageTransform, mean: RGB, std: RGB) -> dict:
    """`preprocess_cfg`. Raises UserError for what it has no words for."""
    modes = {ours: theirs for theirs, ours in RESIZE_MODES.items()}
    if image.resize not in modes or image.crop_pct != 1 or image.interpolation not in ("bicubic", "bilinear"):
        raise UserError(
            f"open_clip has no resize={image.resize!r} with crop_pct={image.crop_pct}, {image.interpolation!r}."
        )
    return {
        "size": image.size,
        "mode": "RGB",
        "mean": list(mean),
        "std": list(std),
        "interpolation": image.interpolation,
        "resize_mode": modes[image.resize],
        "fill_color": image.fill[0],
    }
