"""Hugging Face's decoders that see images: LLaVA (1, 1.5 and NeXT) and Fuyu."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

from vlm_jax.config import bind
from vlm_jax.data.tiles import GRIDS, Grid
from vlm_jax.errors import UserError
from vlm_jax.interop import language, processing
from vlm_jax.interop.imported import Fields
from vlm_jax.models.fuyu import Fuyu
from vlm_jax.models.llava import Llava
from vlm_jax.models.vit import ViT

NEXT, LLAVA_SIZE = "llava_next", 336
FUYU_NEWLINE = 71_019  # in Fuyu's own vocabulary
_PERSIMMON = {
    "hidden_act": "relu2",
    "layer_norm_eps": 1e-5,
    "partial_rotary_factor": 0.5,
    "qk_layernorm": True,
    "vocab_size": 262_144,
    "hidden_size": 4096,
    "intermediate_size": 16_384,
    "num_hidden_layers": 36,
    "num_attention_heads": 64,
    "max_position_embeddings": 16_384,
    "rope_theta": 25_000.0,
    "tie_word_embeddings": False,
}

# The names of newer versions in memory to those on disk.
LLAVA_NAMES = (
    (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
    (r"^model\.image_newline$", "image_newline"),
    (r"^vision_tower\.vision_model\.", "vision_tower."),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
)
FUYU_NAMES = (
    (r"^model\.vision_embed_tokens\.", "vision_embed_tokens."),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
)


def fuyu(config: dict, where: str) -> ConfigDict:
    """Our Fuyu from theirs. Raises UserError for what it does not have."""
    text = {**config, **(config.get("text_config") or {})}
    fields = Fields(text, _PERSIMMON, where)
    fields.require(hidden_act="relu2", qk_layernorm=True)
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise UserError(f"{where}: rope_scaling={rope} is not supported; only models without are.")
    outer = Fields(config, {"patch_size": 30, "num_channels": 3, "image_size": 300}, where)
    outer.require(num_channels=3)
    decoder = bind(
        "models.decoder.LanguageModel",
        **{ours: fields.whole(theirs) for ours, theirs in language.SIZES.items()},
        num_kv_heads=fields.whole("num_attention_heads"),
        norm="layer",
        qk_norm="layer",
        norm_eps=float(fields["layer_norm_eps"]),
        activation="squared_relu",
        bias=True,
        qkv_bias=True,
        tied=bool(fields["tie_word_embeddings"]),
        rope_theta=float(rope.get("rope_theta") or fields["rope_theta"]),
        rotary=float(rope.get("partial_rotary_factor") or fields["partial_rotary_factor"]),
        scan=False,
        dtype="float32",
    )
    newline = min(FUYU_NEWLINE, fields.whole("vocab_size") - 1)
    return bind("models.fuyu.Fuyu", decoder=decoder, patch_size=outer.whole("patch_size"), newline_id=newline)


def llava(config: dict, where: str, clip_image: Callable[[dict, str], ConfigDict]) -> ConfigDict:
    """Our LLaVA from theirs, which is LLaVA-NeXT where its type says so; `clip_image` reads the encoder's part.

    Raises UserError for what it does not have.
    """
    fields = Fields(
        config,
        {"vision_feature_layer": -2, "vision_feature_select_strategy": "default", "projector_hidden_act": "gelu"},
        where,
    )
    fields.require(projector_hidden_act="gelu", vision_feature_select_strategy="default")
    text, vision = config.get("text_config") or {}, config.get("vision_config") or {}
    kind = text.get("model_type", "llama")
    if kind not in language.KINDS:
        known = ", ".join(language.KINDS)
        raise UserError(f"{where}: text_config.model_type={kind!r} is not supported; known are {known}.")
    if vision.get("model_type", "clip_vision_model") != "clip_vision_model":
        raise UserError(f"{where}: vision_config.model_type={vision['model_type']!r} is not supported; CLIP's is.")
    layer = fields["vision_feature_layer"]
    if not isinstance(layer, int) or layer >= 0:
        raise UserError(f"{where}: vision_feature_layer={layer!r} is not supported; one from the last, such as -2, is.")
    image = clip_image(vision, f"{where}, vision_config")
    tiles = (
        1 + max(map(math.prod, tile_grids(config, image.image_size, where))) if config["model_type"] == NEXT else None
    )
    return bind(
        "models.llava.Llava",
        image=image,
        tiles=tiles,
        decoder=language.model({"model_type": kind, **text}, f"{where}, text_config"),
        layer=layer,
        projector="mlp",
        image_mean=(0.48145466, 0.4578275, 0.40821073),
        image_std=(0.26862954, 0.26130258, 0.27577711),
    )


def tile_grids(config: dict, size: int, where: str) -> tuple[Grid, ...]:
    """(rows, columns) of tiles of `size` that an image of LLaVA-NeXT may become. Raises UserError for other sizes."""
    pixels = config.get("image_grid_pinpoints") or processing.pinpoints(GRIDS, LLAVA_SIZE)
    if any(side % size or not side for pair in pixels for side in pair):
        raise UserError(f"{where}: image_grid_pinpoints={pixels} are not whole numbers of tiles of {size} pixels.")
    return tuple((height // size, width // size) for height, width in pixels)


def describe_llava(
    model: Llava, image: Callable[[ViT], dict[str, Any]], image_id: int, grids: Sequence[Grid] = ()
) -> dict[str, Any]:
    """The config.json of LLaVA that is this model, of tiles LLaVA-NeXT's. Raises UserError: there is none.

    Args:
      image: the part of CLIP's image tower; raises UserError for another one.
      image_id: the token that stands at the places of images.
      grids: of tiles that an image may become.
    """
    name = "LlavaForConditionalGeneration" if model.tiles is None else "LlavaNextForConditionalGeneration"
    if (model.tiles is not None) != bool(grids):
        raise UserError(f"tiles={model.tiles}, and Conversations.images has grids={tuple(grids)}; {name} needs both.")
    for field, value in {"projector": "mlp", "merge": 1}.items():
        if (found := getattr(model, field)) != value:
            raise UserError(f"{name} cannot express {field}={found!r}; it has {value!r}.")
    if model.layer is None:
        raise UserError(f"{name} cannot express layer=None, the encoder's last norm; it takes the output of a block.")
    tiled = {} if model.tiles is None else {"image_grid_pinpoints": processing.pinpoints(grids, model.image.image_size)}
    return tiled | {
        "model_type": "llava" if model.tiles is None else NEXT,
        "architectures": [name],
        "image_token_index": image_id,
        "image_seq_length": model.image_tokens,
        "vision_feature_layer": model.layer,
        "vision_feature_select_strategy": "default",
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "tie_word_embeddings": model.decoder.tied,
        "text_config": language.describe(model.decoder),
        "vision_config": {"model_type": "clip_vision_model", **image(model.image)},
    }


def describe_fuyu(model: Fuyu, image_id: int) -> dict[str, Any]:
    """The config.json of Fuyu that is this model. Raises UserError: there is none."""
    name, decoder = "FuyuForCausalLM", model.decoder
    fixed = {
        "norm": "layer",
        "qk_norm": "layer",
        "activation": "squared_relu",
        "bias": True,
        "qkv_bias": True,
        "kv_heads": decoder.geometry.num_heads,
        "dim_of_head": decoder.geometry.width // decoder.geometry.num_heads,
    }
    for field, value in fixed.items():
        if (found := getattr(decoder, field)) != value:
            raise UserError(f"{name} cannot express decoder.{field}={found!r}; it has {value!r}.")
    newline = min(FUYU_NEWLINE, decoder.vocab_size - 1)
    if model.newline_id != newline:
        raise UserError(f"{name} cannot express newline_id={model.newline_id}; of this vocabulary it is {newline}.")
    values = decoder.geometry._asdict() | {"vocab_size": decoder.vocab_size, "length": decoder.length}
    sizes = {theirs: values[ours] for ours, theirs in language.SIZES.items()}
    rope = {"rope_type": "default", "rope_theta": decoder.rope_theta, "partial_rotary_factor": decoder.rotary}
    text = {
        **sizes,
        "model_type": "persimmon",
        "hidden_act": "relu2",
        "layer_norm_eps": decoder.norm_eps,
        "qk_layernorm": True,
        "rope_theta": decoder.rope_theta,
        "partial_rotary_factor": decoder.rotary,
        "rope_parameters": rope,
        "tie_word_embeddings": decoder.tied,
    }
    config = {"model_type": "fuyu", "architectures": [name], "patch_size": model.patch_size, "num_channels": 3}
    return {**config, **text, "model_type": "fuyu", "text_config": text, "image_token_id": image_id}
