"""Folders of Hugging Face models: `config.json` to our model, weights by the tables of `names`; back: `described`."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vlm_jax.config import bind
from vlm_jax.errors import UserError, closest
from vlm_jax.interop import encoder_decoder, language, multimodal, names, tensors
from vlm_jax.interop.imported import Fields, Source, complete, read_json
from vlm_jax.interop.table import Table

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
# Ours: theirs. Every tower has the first four.
SIZES = {
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
}
IMAGE = {"patch_size": "patch_size", "image_size": "image_size"}
TEXT = {"vocab_size": "vocab_size", "length": "max_position_embeddings"}

# What their configuration classes fill in where config.json says nothing.
_TOWER = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_VISION = {**_TOWER, "num_channels": 3, "image_size": 224, "patch_size": 16}
_SIGLIP = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
_CLIP = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_SIGLIP_TEXT = {**_TOWER, **_SIGLIP, "vocab_size": 32_000, "max_position_embeddings": 64}
_SIGLIP_VISION = {**_VISION, **_SIGLIP, "vision_use_head": True}
_SIGLIP2_VISION = {k: v for k, v in _SIGLIP_VISION.items() if k != "image_size"} | {"num_patches": 256}
_CLIP_TEXT = {
    **_CLIP,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "vocab_size": 49_408,
    "max_position_embeddings": 77,
    "eos_token_id": 49_407,
    "pad_token_id": 1,
}
_CLIP_VISION = {**_VISION, **_CLIP, "patch_size": 32}
_VIT = {**_VISION, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "qkv_bias": True}
_DINOV2 = {k: v for k, v in _VIT.items() if k != "intermediate_size"}
_DINOV2 |= {"layer_norm_eps": 1e-6, "patch_size": 14, "mlp_ratio": 4, "use_swiglu_ffn": False}
_DINOV2 |= {"layerscale_value": 1.0}
_REGISTERS = {**_DINOV2, "patch_size": 16, "num_register_tokens": 4}
# By the class of theirs that has them.
DEFAULTS = {
    "SiglipTextConfig": _SIGLIP_TEXT,
    "SiglipVisionConfig": _SIGLIP_VISION,
    "Siglip2TextConfig": _SIGLIP_TEXT,
    "Siglip2VisionConfig": _SIGLIP2_VISION,
    "CLIPTextConfig": _CLIP_TEXT,
    "CLIPVisionConfig": _CLIP_VISION,
    "ViTConfig": _VIT,
    "Dinov2Config": _DINOV2,
    "Dinov2WithRegistersConfig": _REGISTERS,
}

# What their classes always have, which is what ours are set to, or must be to be written.
_PLAIN = {"stem_channels": (), "posemb": "learn", "registers": 0, "layer_scale": None}
_PLAIN_TEXT = {"layer_scale": None}
SIGLIP_IMAGE = {**_PLAIN, "pool": "map", "pre_norm": False, "patch_bias": True, "qkv_bias": True, "out_dim": None}
SIGLIP_TEXT = {**_PLAIN_TEXT, "pool": "last", "causal": False, "mask_padding": False, "qkv_bias": True}
SIGLIP_TEXT |= {"head_bias": True}
CLIP_IMAGE = {**_PLAIN, "pool": "cls", "pre_norm": True, "patch_bias": False, "qkv_bias": True, "head_bias": False}
CLIP_TEXT = {**_PLAIN_TEXT, "pool": "eos", "causal": True, "qkv_bias": True, "head_bias": False}
VIT_IMAGE = {**_PLAIN, "pool": "cls", "pre_norm": False, "patch_bias": True, "head_bias": True}
DINOV2_IMAGE = {"stem_channels": (), "posemb": "learn", "pool": "cls", "pre_norm": False, "patch_bias": True}
DINOV2_IMAGE |= {"out_dim": None}

POSITION_IDS = r".*embeddings\.position_ids"  # a buffer of versions before 4.31


@dataclasses.dataclass(frozen=True)
class Family:
    """One kind of config.json.

    Attributes:
      model: our model from theirs (config.json, folder).
      table: of names, for our model.
      ignored: tensors that our model does without.
      rename: their older names, or prefixes, to those of the table.
    """

    model: Callable[[dict, str], ConfigDict]
    table: Callable[[Any], Table]
    ignored: tuple[str, ...] = ()
    rename: tuple[tuple[str, str], ...] = ()


def source(folder: Path) -> Source:
    """The model of a folder, its arrays not yet read. Raises UserError."""
    config = read_json(folder / "config.json")
    where = str(folder / "config.json")
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise UserError(f"{where}: no model of type {kind!r} is known here; {closest(str(kind), FAMILIES)}")
    family = FAMILIES[kind]
    node = complete(family.model(config, where))
    held = tensors.open_tensors(tensors.find(folder, tensors.HUGGING_FACE)).renamed(
        lambda name: _renamed(name, family.rename)
    )
    name = "siglip2_naflex" if kind == "siglip2" else "dinov2" if kind.startswith("dinov2") else kind
    return Source(name, node, family.table(node), held, family.ignored)


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _tower(fields: Fields, keys: Mapping[str, str]) -> dict[str, Any]:
    sizes = {ours: fields.whole(theirs) for ours, theirs in keys.items()}
    activation = fields.choose("hidden_act", ACTIVATIONS)
    return sizes | {"activation": activation, "norm_eps": float(fields["layer_norm_eps"]), "dtype": "float32"}


def _trimmed(tower: dict[str, Any]) -> dict[str, Any]:
    """Patches that do not divide the image leave the rest of it out."""
    return tower | {"trim": tower["image_size"] % tower["patch_size"] != 0}


def _parts(config: dict, where: str, text: dict, vision: dict) -> tuple[Fields, Fields]:
    both = []
    for part, defaults in (("text_config", text), ("vision_config", vision)):
        values = {**(config.get(part) or {}), **(config.get(f"{part}_dict") or {})}
        both.append(Fields(values, defaults, f"{where}, {part}"))
    both[1].require(num_channels=3)
    return both[0], both[1]


def _siglip(config: dict, where: str) -> ConfigDict:
    naflex = config["model_type"] == "siglip2"
    text, vision = _parts(config, where, _SIGLIP_TEXT, _SIGLIP2_VISION if naflex else _SIGLIP_VISION)
    vision.require(vision_use_head=True)
    if naflex:
        side = math.isqrt(vision.whole("num_patches"))
        image = _tower(vision, SIZES | {"patch_size": "patch_size"})
        image |= {"image_size": side * image["patch_size"], "posemb_resize": "bilinear"}
    else:
        image = _trimmed(_tower(vision, SIZES | IMAGE)) | {"posemb_resize": "bicubic"}
    out_dim = text.get("projection_size") or text.whole("hidden_size")
    return bind(
        "models.two_tower.TwoTower",
        image=bind("models.vit.ViT", **image, **SIGLIP_IMAGE),
        text=bind("models.text.TextTransformer", **_tower(text, SIZES | TEXT), **SIGLIP_TEXT, out_dim=out_dim),
    )


def _clip(config: dict, where: str) -> ConfigDict:
    text, vision = _parts(config, where, _CLIP_TEXT, _CLIP_VISION)
    out_dim = Fields(config, {"projection_dim": 512}, where).whole("projection_dim")
    eos = text.whole("eos_token_id")
    if eos == 2:  # of old configs, whose models pool at the largest id, which is the last of the vocabulary
        eos = text.whole("vocab_size") - 1
    image = _trimmed(_tower(vision, SIZES | IMAGE)) | {"posemb_resize": "bicubic", "out_dim": out_dim}
    return bind(
        "models.two_tower.TwoTower",
        image=bind("models.vit.ViT", **image, **CLIP_IMAGE),
        text=bind(
            "models.text.TextTransformer",
            **_tower(text, SIZES | TEXT),
            **CLIP_TEXT,
            out_dim=out_dim,
            eos_id=eos,
            pad_id=text.get("pad_token_id"),
        ),
        logit_bias_init=None,
        logit_scale_init=math.log(1 / 0.07),
        logit_scale_max=math.log(100),
    )


def _clip_image(values: dict, where: str) -> ConfigDict:
    vision = Fields(values, _CLIP_VISION, where)
    vision.require(num_channels=3)
    image = _trimmed(_tower(vision, SIZES | IMAGE)) | {"posemb_resize": "bicubic", "out_dim": None}
    return bind("models.vit.ViT", **image, **CLIP_IMAGE)


def _vit(config: dict, where: str) -> ConfigDict:
    fields = Fields(config, _VIT, where)
    fields.require(num_channels=3)
    labels = None
    if _classifies(config):
        labels = len(config["id2label"]) if config.get("id2label") else config.get("num_labels", 2)
    tower = _trimmed(_tower(fields, SIZES | IMAGE)) | {"posemb_resize": "cubic", "out_dim": labels}
    return bind("models.vit.ViT", **tower, **VIT_IMAGE, qkv_bias=bool(fields["qkv_bias"]))


def _classifies(config: dict) -> bool:
    return any(name.endswith("ForImageClassification") for name in config.get("architectures") or ())


def _dinov2(config: dict, where: str) -> ConfigDict:
    registers = config["model_type"] == "dinov2_with_registers"
    fields = Fields(config, _REGISTERS if registers else _DINOV2, where)
    fields.require(num_channels=3)
    tower = _tower(fields, {k: v for k, v in (SIZES | IMAGE).items() if k != "mlp_dim"})
    swiglu = bool(fields["use_swiglu_ffn"])
    tower["mlp_dim"] = dinov2_mlp(tower["width"], fields["mlp_ratio"], swiglu)
    if swiglu:
        tower["activation"] = "swiglu"
    return bind(
        "models.vit.ViT",
        **_trimmed(tower),
        **DINOV2_IMAGE,
        qkv_bias=bool(fields["qkv_bias"]),
        posemb_resize="bicubic" if registers else "cubic",
        registers=fields.whole("num_register_tokens") if registers else 0,
        layer_scale=float(fields["layerscale_value"]),
    )


def dinov2_mlp(width: int, ratio: float, swiglu: bool) -> int:
    """Hidden width of DINOv2's MLP; of the gated one two thirds, in eights."""
    hidden = int(width * ratio)
    return (int(hidden * 2 / 3) + 7) // 8 * 8 if swiglu else hidden


_CURRENT_VIT = (  # the names that transformers 5 has in memory
    (r"(^|\.)layers\.(\d+)\.attention\.q_proj\.", r"\1encoder.layer.\2.attention.attention.query."),
    (r"(^|\.)layers\.(\d+)\.attention\.k_proj\.", r"\1encoder.layer.\2.attention.attention.key."),
    (r"(^|\.)layers\.(\d+)\.attention\.v_proj\.", r"\1encoder.layer.\2.attention.attention.value."),
    (r"(^|\.)layers\.(\d+)\.attention\.o_proj\.", r"\1encoder.layer.\2.attention.output.dense."),
    (r"(^|\.)layers\.(\d+)\.mlp\.fc1\.", r"\1encoder.layer.\2.intermediate.dense."),
    (r"(^|\.)layers\.(\d+)\.mlp\.fc2\.", r"\1encoder.layer.\2.output.dense."),
    (r"(^|\.)layers\.(\d+)\.", r"\1encoder.layer.\2."),
)


def _vit_table(model: Any) -> Table:
    return names.VIT if model.out_dim is None else names.VIT_CLASSIFIER


def _dinov2_table(model: Any) -> Table:
    return names.dinov2(model.activation == "swiglu")


FAMILIES: dict[str, Family] = {
    "siglip": Family(_siglip, lambda model: names.SIGLIP, (POSITION_IDS,)),
    "siglip2": Family(_siglip, lambda model: names.SIGLIP2_NAFLEX),
    "clip": Family(_clip, lambda model: names.CLIP, (POSITION_IDS,)),
    "vit": Family(_vit, _vit_table, (r"pooler\..*", r".*mask_token"), _CURRENT_VIT),
    "dinov2": Family(_dinov2, _dinov2_table, (r"embeddings\.mask_token",)),
    "dinov2_with_registers": Family(_dinov2, _dinov2_table, (r"embeddings\.mask_token",)),
    encoder_decoder.KIND: Family(
        lambda config, where: encoder_decoder.model(config, where, _vit),
        lambda model: names.TROCR,
        encoder_decoder.IGNORED,
    ),
    **dict.fromkeys(
        ("llava", multimodal.NEXT),
        Family(
            lambda config, where: multimodal.llava(config, where, _clip_image),
            lambda model: names.LLAVA,
            language.IGNORED + (r".*position_ids",),
            multimodal.LLAVA_NAMES,
        ),
    ),
    "fuyu": Family(
        multimodal.fuyu,
        lambda model: names.fuyu(model.decoder.num_heads),
        language.IGNORED,
        multimodal.FUYU_NAMES,
    ),
    **dict.fromkeys(language.KINDS, Family(language.model, lambda model: names.LLAMA, language.IGNORED, language.BARE)),
}
