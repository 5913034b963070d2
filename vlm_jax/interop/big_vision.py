"""big_vision's `.npz`: no config lies beside it, so the model is read off the arrays' names and shapes.

What shapes do not tell is the same in all of its models: tanh GELU, epsilon 1e-6, pixels in [-1, 1], no mask.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vlm_jax.config import bind
from vlm_jax.errors import UserError
from vlm_jax.interop import names
from vlm_jax.interop.imported import Source, complete
from vlm_jax.interop.processing import Pixels
from vlm_jax.interop.tensors import Tensors, open_tensors
from vlm_jax.interop.texts import Words

# Names of the code of 2020, before big_vision, to those of today.
OLD = (
    (r"(encoderblock_\d+)/MultiHeadDotProductAttention_1/", r"\1/MultiHeadDotProductAttention_0/"),
    (r"(encoderblock_\d+)/LayerNorm_2/", r"\1/LayerNorm_1/"),
    (r"(encoderblock_\d+)/MlpBlock_3/", r"\1/MlpBlock_0/"),
    (r"Transformer/posembed_input/pos_embedding", "pos_embedding"),
)
STACKED = re.compile(r"(.*/encoderblock)/(.+)")
LAYER = re.compile(r"encoderblock_(\d+)/")
IGNORED = (r"opt/.*",)
ATTENTION = "encoderblock_0/MultiHeadDotProductAttention_0/query/kernel"


def source(path: Path) -> Source:
    """The model of a file, its arrays not yet read. Raises UserError."""
    held = _unstacked(open_tensors(path))
    prefix = "params/" if any(name.startswith("params/") for name in held.shapes) else ""
    held = held.renamed(lambda name: _current(name.removeprefix(prefix)))
    towers = "img/embedding/kernel" in held.shapes
    try:
        image, heads = _image(held, "img/" if towers else "")
        if not towers:
            table = names.big_vision_image(heads, image.pool == "cls" and not _placed(held, ""))
            return Source("big_vision", complete(image), table, held, IGNORED)
        text, text_heads = _text(held, "txt/")
    except KeyError as error:
        raise UserError(f"{path} is no ViT and no SigLIP of big_vision: it lacks {error.args[0]}.") from error
    bias = "b" in held.shapes
    node = bind("models.two_tower.TwoTower", image=image, text=text, logit_bias_init=-10.0 if bias else None)
    return Source("big_vision", complete(node), names.big_vision(heads, text_heads), held, IGNORED)


def processing(model: ConfigDict) -> tuple[Pixels, Words]:
    """SigLIP's and ViT's own: squashed bilinearly, pixels in [-1, 1]; text with the end token, padded by it."""
    image = model.get("image", model)
    node = bind(
        "data.image.ImageTransform",
        size=image.image_size,
        resize="squash",
        interpolation="bilinear",
        convention="big_vision",
        antialias=False,
        decoder="full",
    )
    pixels = Pixels(complete(node), (0.5,) * 3, (0.5,) * 3)
    if "text" not in model:
        return pixels, Words(None, None)
    text = bind("data.text.Text", length=model.text.length, canonicalise="siglip", eos="sticky", pad="eos")
    return pixels, Words(complete(text), None)


def _current(name: str) -> str:
    for pattern, replacement in OLD:
        name = re.sub(pattern, replacement, name)
    return name


def _unstacked(held: Tensors) -> Tensors:
    """Layers that were scanned, one array for all, each under a name of its own."""
    shapes, whence = {}, {}
    for name, shape in held.shapes.items():
        match = STACKED.fullmatch(name)
        if match is None:
            shapes[name], whence[name] = shape, (name, None)
            continue
        for layer in range(shape[0]):
            one = f"{match[1]}_{layer}/{match[2]}"
            shapes[one], whence[one] = shape[1:], (name, layer)

    def fetch(name: str) -> np.ndarray:
        stacked, layer = whence[name]
        return held.fetch(stacked) if layer is None else held.fetch(stacked)[layer]

    return Tensors(held.where, shapes, fetch)


def _blocks(held: Tensors, encoder: str) -> tuple[dict[str, Any], int]:
    """Sizes of an encoder, and its number of heads."""
    width, heads, _ = held.shapes[f"{encoder}/{ATTENTION}"]
    layers = {int(match[1]) for name in held.shapes if name.startswith(encoder) and (match := LAYER.search(name))}
    hidden = held.shapes[f"{encoder}/encoderblock_0/MlpBlock_0/Dense_0/kernel"][1]
    sizes = {"width": width, "depth": len(layers), "num_heads": heads, "mlp_dim": hidden}
    return sizes | {"activation": "gelu_tanh", "norm_eps": 1e-6, "dtype": "float32"}, heads


def _image(held: Tensors, prefix: str) -> tuple[ConfigDict, int]:
    shape = lambda name: held.shapes[prefix + name]
    has = lambda name: prefix + name in held.shapes
    sizes, heads = _blocks(held, f"{prefix}Transformer")
    patch = shape("embedding/kernel")[0]
    pool = "map" if has("MAPHead_0/probe") else "cls" if has("cls") else "gap"
    posemb = "learn" if has("pos_embedding") else "sincos2d"
    if posemb == "sincos2d":
        raise UserError(f"{held.where}: without pos_embedding the image size is not known; only learned ones are read.")
    side = math.isqrt(shape("pos_embedding")[1])  # also of a square and one more, for CLS
    node = bind(
        "models.vit.ViT",
        **sizes,
        patch_size=patch,
        image_size=side * patch,
        pool=pool,
        out_dim=shape("head/kernel")[1] if has("head/kernel") else None,
    )
    return node, heads


def _placed(held: Tensors, prefix: str) -> bool:
    """Whether the positions include one for CLS."""
    tokens = held.shapes[f"{prefix}pos_embedding"][1]
    return math.isqrt(tokens) ** 2 != tokens


def _text(held: Tensors, prefix: str) -> tuple[ConfigDict, int]:
    sizes, heads = _blocks(held, f"{prefix}Encoder_0")
    vocabulary, _ = held.shapes[f"{prefix}Embed_0/embedding"]
    node = bind(
        "models.text.TextTransformer",
        **sizes,
        vocab_size=vocabulary,
        length=held.shapes[f"{prefix}pos_embedding"][1],
        pool="last",
        out_dim=held.shapes[f"{prefix}head/kernel"][1],
    )
    return node, heads
