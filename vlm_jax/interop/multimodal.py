"""Hugging Face's decoders that see images: LLaVA (1 and 1.5) and Fuyu."""

from __future__ import annotations

from collections.abc import Callable

from ml_collections import ConfigDict

from vlm_jax.config import bind
from vlm_jax.errors import UserError
from vlm_jax.interop import language
from vlm_jax.interop.imported import Fields

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
    newline = min(71_019, fields.whole("vocab_size") - 1)
    return bind("models.fuyu.Fuyu", decoder=decoder, patch_size=outer.whole("patch_size"), newline_id=newline)


def llava(config: dict, where: str, clip_image: Callable[[dict, str], ConfigDict]) -> ConfigDict:
    """Our LLaVA from theirs; `clip_image` reads the encoder's part. Raises UserError for what it does not have."""
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
    return bind(
        "models.llava.Llava",
        image=clip_image(vision, f"{where}, vision_config"),
        decoder=language.model({"model_type": kind, **text}, f"{where}, text_config"),
        layer=layer,
        projector="mlp",
        image_mean=(0.48145466, 0.4578275, 0.40821073),
        image_std=(0.26862954, 0.26130258, 0.27577711),
    )
