"""Folders of open_clip: `open_clip_config.json` to our model, and back; weights by the tables of `names`."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vlm_jax.config import bind
from vlm_jax.errors import UserError
from vlm_jax.interop import names, tensors
from vlm_jax.interop import processing as pixels
from vlm_jax.interop.described import fits
from vlm_jax.interop.hugging_face import CLIP_IMAGE, SIGLIP_IMAGE
from vlm_jax.interop.imported import Fields, Source, complete, read_json
from vlm_jax.interop.table import Table
from vlm_jax.interop.texts import Words, from_open_clip
from vlm_jax.models.two_tower import TwoTower

CONFIG = "open_clip_config.json"
# timm's towers, which open_clip knows by name alone: `vit_SIZE_patchP_siglip_RESOLUTION`.
TIMM_SIZES = {
    "base": {"width": 768, "depth": 12, "num_heads": 12, "mlp_dim": 3072},
    "large": {"width": 1024, "depth": 24, "num_heads": 16, "mlp_dim": 4096},
    "so400m": {"width": 1152, "depth": 27, "num_heads": 16, "mlp_dim": 4304},
    "giantopt": {"width": 1536, "depth": 40, "num_heads": 16, "mlp_dim": 6144},
}
TIMM_RESOLUTIONS = {
    ("base", 32): (256,),
    ("base", 16): (224, 256, 384, 512),
    ("large", 16): (256, 384, 512),
    ("so400m", 14): (224, 378, 384),
    ("so400m", 16): (256, 384, 512),
    ("giantopt", 16): (256, 384),
}
TIMM_NAME = re.compile(r"vit_(\w+?)_patch(\d+)_siglip_(\d+)")
# Of those that have a choice between the exact GELU and its approximation by tanh.
TIMM_TANH = re.compile(r"vit_(base_patch32|large_patch16_siglip_512|so400m_patch16|giantopt).*")

VISION = {"layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16, "image_size": 224}
TEXT = {"context_length": 77, "vocab_size": 49_408, "width": 512, "heads": 8, "layers": 12, "mlp_ratio": 4.0}
TEXT |= {"pool_type": "argmax", "no_causal_mask": False, "proj_bias": False, "pad_id": 0, "eos_id": 2}
# What both towers may have and ours have not; the values are those that mean it is not there.
ABSENT = {"ls_init_value": None, "final_ln_after_pool": False, "block_type": None}
_SWITCHES = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")
ABSENT |= dict.fromkeys(_SWITCHES, False)
ABSENT_VISION = {**ABSENT, "attentional_pool": False, "no_ln_pre": False}
ABSENT_VISION |= {"pos_embed_type": "learnable", "pool_type": "tok"}
ABSENT_TEXT = {**ABSENT, "embed_cls": False, "hf_model_name": None, "proj_type": "linear"}
POOLS = {"argmax": "eos", "eos": "eos", "last": "last"}


def read_config(folder: Path) -> tuple[dict, dict]:
    """(`model_cfg`, `preprocess_cfg`) of a folder. Raises UserError."""
    config = read_json(folder / CONFIG)
    if not isinstance(config.get("model_cfg"), dict):
        raise UserError(f"{folder / CONFIG} lacks model_cfg.")
    return config["model_cfg"], config.get("preprocess_cfg") or {}


def source(folder: Path) -> Source:
    """The model of a folder, its arrays not yet read. Raises UserError."""
    config, _ = read_config(folder)
    where = str(folder / CONFIG)
    timm = bool((config.get("vision_cfg") or {}).get("timm_model_name"))
    custom = bool(config.get("custom_text")) or timm
    node = complete(_model(config, where, timm))
    table = names.open_clip(timm=timm, custom_text=custom, head_bias=node.text.head_bias)
    held = tensors.open_tensors(tensors.find(folder, tensors.OPEN_CLIP + tensors.HUGGING_FACE))
    return Source("open_clip", node, table, held, (r"(text\.)?attn_mask",))


def processing(folder: Path, model: ConfigDict) -> tuple[pixels.Pixels, Words]:
    """Preprocessing of images and texts, as the config says."""
    config, preprocess = read_config(folder)
    image = pixels.from_open_clip(preprocess, model.image.image_size, str(folder / CONFIG))
    return image, from_open_clip(folder, config.get("text_cfg") or {}, model.text.length)


def _model(config: dict, where: str, timm: bool) -> ConfigDict:
    dim = Fields(config, {}, where).whole("embed_dim")
    quick = bool(config.get("quick_gelu"))
    vision = Fields(config.get("vision_cfg"), VISION | ABSENT_VISION, f"{where}, vision_cfg")
    text = Fields(config.get("text_cfg"), TEXT | ABSENT_TEXT, f"{where}, text_cfg")
    image = _timm_image(vision, dim) if timm else read_image(vision, dim, quick)
    return bind(
        "models.two_tower.TwoTower",
        image=bind("models.vit.ViT", **image, posemb_resize="bicubic", dtype="float32"),
        text=bind("models.text.TextTransformer", **read_text(text, dim, quick), dtype="float32"),
        **read_scale(config),
    )


def read_scale(config: dict) -> dict[str, float | None]:
    """Of the similarities."""
    bias = config.get("init_logit_bias")
    return {
        "logit_bias_init": None if bias is None else float(bias),
        "logit_scale_init": float(config.get("init_logit_scale") or math.log(1 / 0.07)),
        "logit_scale_max": math.log(100),
    }


def _activation(fields: Fields, quick: bool) -> str:
    if quick:
        return "quick_gelu"
    approximate = (fields.get("act_kwargs") or {}).get("approximate", "none")
    return "gelu_tanh" if approximate == "tanh" else "gelu"


def _eps(fields: Fields) -> float:
    return float((fields.get("norm_kwargs") or {}).get("eps", 1e-5))


def read_image(fields: Fields, dim: int, quick: bool) -> dict[str, Any]:
    """Arguments of a ViT, from `vision_cfg`."""
    fields.require(**ABSENT_VISION)
    if isinstance(fields["layers"], list):
        raise UserError("open_clip's ResNets are not supported; its ViTs are.")
    width, size, patch = fields.whole("width"), fields.whole("image_size"), fields.whole("patch_size")
    return {
        **CLIP_IMAGE,
        "width": width,
        "depth": fields.whole("layers"),
        "num_heads": width // fields.whole("head_width"),
        "mlp_dim": int(width * fields["mlp_ratio"]),
        "patch_size": patch,
        "image_size": size,
        "trim": size % patch != 0,
        "out_dim": dim,
        "activation": _activation(fields, quick),
        "norm_eps": _eps(fields),
    }


def _timm_image(fields: Fields, dim: int) -> dict[str, Any]:
    name = fields["timm_model_name"]
    match = TIMM_NAME.fullmatch(name)
    if match is None or match[1] not in TIMM_SIZES:
        sizes = "|".join(TIMM_SIZES)
        raise UserError(f"timm_model_name={name!r} is not supported; vit_({sizes})_patchN_siglip_SIZE is.")
    fields.require(timm_pool="map", timm_proj="none")
    tower = {**SIGLIP_IMAGE, **TIMM_SIZES[match[1]], "patch_size": int(match[2]), "image_size": int(match[3])}
    if tower["width"] != dim:
        raise UserError(f"embed_dim={dim} is not the width of {name}, {tower['width']}.")
    tower["trim"] = tower["image_size"] % tower["patch_size"] != 0
    return tower | {"activation": "gelu_tanh" if TIMM_TANH.match(name) else "gelu", "norm_eps": 1e-6}


def read_text(fields: Fields, dim: int, quick: bool) -> dict[str, Any]:
    """Arguments of a text tower, from `text_cfg`."""
    fields.require(**ABSENT_TEXT)
    width, vocabulary = fields.whole("width"), fields.whole("vocab_size")
    pooling = fields["pool_type"]
    return {
        "width": width,
        "depth": fields.whole("layers"),
        "num_heads": fields.whole("heads"),
        "mlp_dim": int(width * fields["mlp_ratio"]),
        "vocab_size": vocabulary,
        "length": fields.whole("context_length"),
        "causal": not fields.get("no_causal_mask"),
        "pool": fields.choose("pool_type", POOLS),
        # The largest id of a text is its end token, the last of the vocabulary.
        "eos_id": {"argmax": vocabulary - 1, "eos": fields["eos_id"]}.get(pooling),
        "pad_id": fields.get("pad_id"),
        "out_dim": dim,
        "head_bias": bool(fields.get("proj_bias")),
        "activation": _activation(fields, quick),
        "norm_eps": _eps(fields),
    }


# The way back


def describe(model: TwoTower) -> tuple[dict, Table]:
    """(`model_cfg`, table of names) of the open_clip model that is this one.

    Raises:
      UserError: there is none, and why.
    """
    if not isinstance(model, TwoTower):
        raise UserError("open_clip has no models of images alone; --to=hf has.")
    timm = model.image.pool == "map"
    config: dict[str, Any] = {"embed_dim": model.dim, "custom_text": timm}
    if timm:
        fits("open_clip with a timm tower", model.image, SIGLIP_IMAGE, "image")
        config["vision_cfg"] = _write_timm(model)
    else:
        fits("open_clip", model.image, CLIP_IMAGE, "image")
        config["vision_cfg"] = write_image(model)
    config["text_cfg"] = _write_text(model)
    config |= {"init_logit_scale": model.logit_scale_init}
    if model.logit_bias_init is not None:
        config["init_logit_bias"] = model.logit_bias_init
    if "quick_gelu" in (model.text.activation, model.image.activation):
        if model.text.activation != model.image.activation:
            raise UserError("open_clip has quick_gelu in both towers or in none.")
        config["quick_gelu"] = True
    return config, names.open_clip(timm=timm, custom_text=timm, head_bias=model.text.head_bias)


def _write_timm(model: TwoTower) -> dict[str, Any]:
    image = model.image
    size = next((name for name, size in TIMM_SIZES.items() if size == image.geometry._asdict()), None)
    name = f"vit_{size}_patch{image.patch_size}_siglip_{image.image_size}"
    there = image.image_size in TIMM_RESOLUTIONS.get((size, image.patch_size), ())
    if not there or image.norm_eps != 1e-6 or image.activation not in ("gelu", "gelu_tanh"):
        raise UserError(
            f"open_clip knows SigLIP's image towers by timm's names, vit_({'|'.join(TIMM_SIZES)})_patchN_siglip_SIZE; "
            f"none has {image.geometry._asdict()}, patch_size={image.patch_size}, image_size={image.image_size}, "
            f"activation={image.activation!r}, norm_eps={image.norm_eps}."
        )
    return {"image_size": image.image_size, "timm_model_name": name, "timm_pool": "map", "timm_proj": "none"}


def differences(model: TwoTower, config: dict) -> tuple[str, ...]:
    """What open_clip computes otherwise: a tower of timm's has one of the two GELUs, whatever was trained."""
    name = config["vision_cfg"].get("timm_model_name")
    if name is None or (model.image.activation == "gelu_tanh") == bool(TIMM_TANH.match(name)):
        return ()
    theirs = "gelu_tanh" if TIMM_TANH.match(name) else "gelu"
    return (f"timm's {name} has activation={theirs!r}, this image tower {model.image.activation!r}: embeddings differ",)


def _ratio(tower: Any) -> float:
    return tower.geometry.mlp_dim / tower.geometry.width


def write_tower(tower: Any) -> dict[str, Any]:
    """What `vision_cfg` and `text_cfg` have in common."""
    width, depth, _, _ = tower.geometry
    config: dict[str, Any] = {"width": width, "layers": depth, "mlp_ratio": _ratio(tower)}
    config["norm_kwargs"] = {"eps": tower.norm_eps}
    if tower.activation == "gelu_tanh":
        config["act_kwargs"] = {"approximate": "tanh"}
    return config


def write_image(model: TwoTower) -> dict[str, Any]:
    """The `vision_cfg` of open_clip's own ViT."""
    image = model.image
    head_width = image.geometry.width // image.geometry.num_heads
    return write_tower(image) | {
        "head_width": head_width,
        "patch_size": image.patch_size,
        "image_size": image.image_size,
    }


def _write_text(model: TwoTower) -> dict[str, Any]:
    text = model.text
    if text.pool not in ("eos", "last") or text.mask_padding or text.layer_scale is not None or not text.qkv_bias:
        raise UserError(
            f"open_clip cannot express text.pool={text.pool!r}, mask_padding={text.mask_padding}, "
            f"layer_scale={text.layer_scale}, qkv_bias={text.qkv_bias}; it has 'eos' or 'last', False, None, True."
        )
    pooling = {"pool_type": "last"} if text.pool == "last" else {"pool_type": "eos", "eos_id": text.eos_id}
    return {
        **write_tower(text),
        **pooling,
        "heads": text.geometry.num_heads,
        "context_length": text.length,
        "vocab_size": text.vocab_size,
        "no_causal_mask": not text.causal,
        "proj_bias": text.head_bias,
        "pad_id": 0 if text.pad_id is None else text.pad_id,
    }
