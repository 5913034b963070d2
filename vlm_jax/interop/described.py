"""`config.json` of the class in transformers that one of our models is: the way back from `hugging_face`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlm_jax.data.tiles import Grid
from vlm_jax.errors import UserError
from vlm_jax.interop import encoder_decoder, language, multimodal, names
from vlm_jax.interop.hugging_face import (
    CLIP_IMAGE,
    CLIP_TEXT,
    DINOV2_IMAGE,
    IMAGE,
    SIGLIP_IMAGE,
    SIGLIP_TEXT,
    SIZES,
    TEXT,
    VIT_IMAGE,
    dinov2_mlp,
)
from vlm_jax.interop.table import Table, within
from vlm_jax.models.captioner import Captioner
from vlm_jax.models.fuyu import Fuyu
from vlm_jax.models.llava import Llava
from vlm_jax.models.multimodal import MultimodalDecoder, TextDecoder
from vlm_jax.models.text import TextTransformer
from vlm_jax.models.two_tower import TwoTower
from vlm_jax.models.vit import ViT

WRITTEN = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}


def describe(
    model: TwoTower | ViT | Captioner | MultimodalDecoder,
    naflex: bool = False,
    image_id: int = 0,
    grids: Sequence[Grid] = (),
) -> tuple[dict, Table]:
    """(config.json, table of names) of the class in transformers that is this model.

    Args:
      naflex: SigLIP 2's, whose images keep their aspect ratio; it has the same parameters.
      image_id: of a decoder that sees images: the token at their places.
      grids: of tiles that its images may become, where they do.

    Raises:
      UserError: there is none, and why.
    """
    if isinstance(model, MultimodalDecoder):
        return _describe_decoder(model, image_id, grids)
    if isinstance(model, ViT):
        return _describe_image(model)
    if isinstance(model, Captioner):
        return encoder_decoder.describe(model, _describe_image)
    clip = model.image.pool == "cls"
    image, text = (CLIP_IMAGE, CLIP_TEXT) if clip else (SIGLIP_IMAGE, SIGLIP_TEXT)
    name = "CLIPModel" if clip else "SiglipModel"
    fits(name, model.image, image, "image")
    fits(name, model.text, text, "text")
    if (model.logit_bias_init is None) != clip:
        raise UserError(
            f"{name} has {'no' if clip else 'a'} logit_bias, and this model has {'one' if clip else 'none'}."
        )
    vision_config, text_config = _written(model.image, SIZES | IMAGE), _written(model.text, SIZES | TEXT)
    if not clip:
        text_config["projection_size"] = model.dim
        for special in ("bos_token_id", "eos_token_id", "pad_token_id"):
            text_config[special] = None
        parts = {"text_config": text_config, "vision_config": vision_config}
        if naflex:
            size = vision_config.pop("image_size") // model.image.patch_size
            vision_config["num_patches"] = size**2
            return {"model_type": "siglip2", "architectures": ["Siglip2Model"], **parts}, names.SIGLIP2_NAFLEX
        return {"model_type": "siglip", "architectures": [name], **parts}, names.SIGLIP
    if model.text.eos_id == 2:
        raise UserError("CLIPModel takes eos_token_id=2 for an old config and pools elsewhere; the tokenizer has it.")
    text_config |= {"eos_token_id": model.text.eos_id, "pad_token_id": model.text.pad_id, "bos_token_id": None}
    for part in (text_config, vision_config):
        part["projection_dim"] = model.dim
    config = {"model_type": "clip", "architectures": [name], "projection_dim": model.dim}
    return config | {"text_config": text_config, "vision_config": vision_config}, names.CLIP


def _describe_decoder(model: MultimodalDecoder, image_id: int, grids: Sequence[Grid]) -> tuple[dict, Table]:
    if isinstance(model, TextDecoder):
        return language.describe(model.decoder), within("decoder/", "", names.LLAMA)
    if isinstance(model, Llava):
        return multimodal.describe_llava(model, _describe_clip_image, image_id, grids), names.LLAVA
    if isinstance(model, Fuyu):
        return multimodal.describe_fuyu(model, image_id), names.fuyu(model.decoder.geometry.num_heads)
    raise UserError(f"transformers has no class that is {type(model).__name__}; --to=safetensors writes it.")


def _describe_clip_image(model: ViT) -> dict[str, Any]:
    fixed = {field: value for field, value in CLIP_IMAGE.items() if field != "head_bias"}  # there is no head
    fits("CLIPVisionModel", model, fixed | {"out_dim": None}, "image")
    return _written(model, SIZES | IMAGE)


def _describe_image(model: ViT) -> tuple[dict, Table]:
    if model.layer_scale is None:
        fits("ViTModel", model, VIT_IMAGE, "image")
        config = {"model_type": "vit", "qkv_bias": model.qkv_bias, **_written(model, SIZES | IMAGE)}
        if model.out_dim is None:
            return config | {"architectures": ["ViTModel"]}, names.VIT
        labels = {str(i): f"LABEL_{i}" for i in range(model.out_dim)}
        config |= {"id2label": labels, "label2id": {name: int(i) for i, name in labels.items()}}
        return config | {"architectures": ["ViTForImageClassification"]}, names.VIT_CLASSIFIER
    name = "Dinov2WithRegistersModel" if model.registers else "Dinov2Model"
    fits(name, model, DINOV2_IMAGE, "image")
    width, _, mlp_dim, _ = model.geometry
    swiglu = model.activation == "swiglu"
    ratio = next((r for r in range(1, 17) if dinov2_mlp(width, r, swiglu) == mlp_dim), None)
    if ratio is None:
        raise UserError(f"{name} has MLPs a whole number of times as wide as the tower; this one has {mlp_dim}.")
    config = _written(model, {k: v for k, v in (SIZES | IMAGE).items() if k != "mlp_dim"})
    config |= {"mlp_ratio": ratio, "use_swiglu_ffn": swiglu, "layerscale_value": model.layer_scale}
    config |= {"architectures": [name], "qkv_bias": model.qkv_bias}
    if model.registers:
        config |= {"model_type": "dinov2_with_registers", "num_register_tokens": model.registers}
    else:
        config |= {"model_type": "dinov2", "use_mask_token": False}
    return config, names.dinov2(swiglu)


def fits(name: str, part: ViT | TextTransformer, fixed: Mapping[str, Any], where: str) -> None:
    """Raises UserError where a tower is not what the class `name` always is."""
    for field, value in fixed.items():
        if getattr(part, field) != value:
            raise UserError(f"{name} cannot express {where}.{field}={getattr(part, field)!r}; it has {value!r}.")


def _written(part: ViT | TextTransformer, keys: Mapping[str, str]) -> dict[str, Any]:
    values = part.geometry._asdict()
    out = {theirs: values[ours] if ours in values else getattr(part, ours) for ours, theirs in keys.items()}
    return out | {"hidden_act": WRITTEN.get(part.activation, "gelu"), "layer_norm_eps": part.norm_eps}
