"""CoCa in folders of open_clip: those whose config has a `multimodal_cfg`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vlm_jax.config import bind
from vlm_jax.errors import UserError
from vlm_jax.interop import names, open_clip, tensors
from vlm_jax.interop.described import fits
from vlm_jax.interop.hugging_face import CLIP_IMAGE
from vlm_jax.interop.imported import Fields, Source, complete
from vlm_jax.interop.open_clip import ABSENT_TEXT, ABSENT_VISION, CONFIG, TEXT, VISION
from vlm_jax.interop.table import Table
from vlm_jax.models.coca import CoCa

POOLER = {"attentional_pool": False, "attn_pooler_queries": 256, "attn_pooler_heads": 8}
POOLERS = {True: "first", "cascade": "cascade", "parallel": "parallel"}
# What its class has whatever the config says; `mlp_ratio`, `n_queries` and other keys of multimodal_cfg change nothing.
DECODER = {"norm_eps": 1e-5, "qkv_bias": True, "layer_scale": None}
MULTIMODAL = {"width": 512, "layers": 12, "heads": 8, "ls_init_value": None}


def is_coca(folder: Path) -> bool:
    """Whether it is to be read here. Raises UserError where its config is damaged."""
    return "multimodal_cfg" in open_clip.read_config(folder)[0]


def source(folder: Path) -> Source:
    """The model of a folder, its arrays not yet read. Raises UserError."""
    config, _ = open_clip.read_config(folder)
    node = complete(model(config, str(folder / CONFIG)))
    held = tensors.open_tensors(tensors.find(folder, tensors.OPEN_CLIP + tensors.HUGGING_FACE))
    return Source("coca", node, table(node), held, (r"(text|text_decoder)\.attn_mask",))


def table(node: Any) -> Table:
    """Of a `CoCa`, or of a node of it."""
    return names.open_clip_coca(one_width=node.image.width == node.image.out_dim, head_bias=node.text.head_bias)


def model(config: dict, where: str) -> ConfigDict:
    """The bound node of a `model_cfg`. Raises UserError for what has no equal here."""
    dim = Fields(config, {}, where).whole("embed_dim")
    quick = bool(config.get("quick_gelu"))
    pooling = Fields(config.get("vision_cfg"), POOLER, f"{where}, vision_cfg")
    if pooling.get("attentional_pool") not in POOLERS:
        raise UserError(f"{where}, vision_cfg: CoCa without an attentional pooler is not supported.")
    rest = {key: value for key, value in (config.get("vision_cfg") or {}).items() if key not in POOLER}
    if rest.get("timm_model_name"):
        raise UserError(f"{where}, vision_cfg: CoCa with a tower of timm is not supported; open_clip's own is.")
    image = open_clip.read_image(Fields(rest, VISION | ABSENT_VISION, f"{where}, vision_cfg"), dim, quick)
    image |= {
        "pooler": POOLERS[pooling.get("attentional_pool")],
        "queries": pooling.whole("attn_pooler_queries"),
        "pool_heads": pooling.whole("attn_pooler_heads"),
    }
    words = Fields(config.get("text_cfg"), TEXT | ABSENT_TEXT | {"embed_cls": True}, f"{where}, text_cfg")
    words.require(embed_cls=True, no_causal_mask=False)
    rest = {key: value for key, value in (config.get("text_cfg") or {}).items() if key != "embed_cls"}
    text = open_clip.read_text(Fields(rest, TEXT | ABSENT_TEXT, f"{where}, text_cfg"), dim, quick)
    text |= {"pool": "last", "mask_padding": True, "correct_cls_mask": bool(words.get("correct_cls_mask"))}
    decoder = _decoder(Fields(config["multimodal_cfg"], MULTIMODAL, f"{where}, multimodal_cfg"), text, quick)
    return bind(
        "models.coca.CoCa",
        image=bind("models.coca.ImageTower", **image, posemb_resize="bicubic", dtype="float32"),
        text=bind("models.coca.TextTower", **text, dtype="float32"),
        decoder=bind("models.coca.CaptionDecoder", **decoder, dtype="float32"),
        **open_clip.read_scale(config),
    )


def _decoder(fields: Fields, text: dict[str, Any], quick: bool) -> dict[str, Any]:
    fields.require(ls_init_value=None)
    width = fields.whole("width")
    return DECODER | {
        "width": width,
        "depth": fields.whole("layers"),
        "num_heads": fields.whole("heads"),
        "mlp_dim": 4 * width,
        "vocab_size": text["vocab_size"],
        "activation": "quick_gelu" if quick else "gelu",
    }


def describe(model: CoCa) -> tuple[dict, Table]:
    """(`model_cfg`, table of names) of the open_clip model that is this one.

    Raises:
      UserError: there is none, and why.
    """
    image, text, decoder = model.image, model.text, model.decoder
    fits("open_clip's CoCa", image, CLIP_IMAGE, "image")
    # Its class has the right mask, and its config no word for it.
    fits("open_clip's CoCa", text, {"correct_cls_mask": False}, "text")
    for name, part in (("text", text), ("image", image)):
        fits("open_clip's CoCa", part, {"layer_scale": None, "qkv_bias": True}, name)
    activation = "quick_gelu" if "quick_gelu" in (image.activation, text.activation, decoder.activation) else "gelu"
    width = decoder.geometry.width
    fixed = DECODER | {"activation": activation}
    fits("open_clip's CoCa", decoder, fixed, "decoder")
    if activation == "quick_gelu" and not image.activation == text.activation == activation:
        raise UserError("open_clip has quick_gelu everywhere or nowhere.")
    if decoder.geometry.mlp_dim != 4 * width or image.out_dim != width:
        raise UserError(
            f"open_clip's CoCa cannot express decoder.mlp_dim={decoder.geometry.mlp_dim} with image.out_dim="
            f"{image.out_dim} and a decoder of width {width}; it has {4 * width} and {width}."
        )
    if image.pooler != "first" and image.geometry.width != image.out_dim:
        raise UserError(
            f"open_clip's CoCa has pooler={image.pooler!r} only where image.width={image.geometry.width} is "
            f"image.out_dim={image.out_dim}."
        )
    if not image.queries:
        raise UserError("open_clip's CoCa cannot express image.queries=0: its decoder has pooled tokens.")
    poolers = {ours: theirs for theirs, ours in POOLERS.items()}
    sizes = {"width": width, "layers": decoder.geometry.depth, "heads": decoder.geometry.num_heads}
    config = {
        "embed_dim": model.dim,
        "custom_text": True,
        "vision_cfg": {
            **open_clip.write_image(model),
            "attentional_pool": poolers[image.pooler],
            "attn_pooler_queries": image.queries,
            "attn_pooler_heads": image.pool_heads,
            "output_tokens": True,
        },
        "text_cfg": _write_text(model),
        "multimodal_cfg": {**sizes, "context_length": text.length, "vocab_size": decoder.vocab_size},
        "init_logit_scale": model.logit_scale_init,
    }
    if model.logit_bias_init is not None:
        config["init_logit_bias"] = model.logit_bias_init
    if activation == "quick_gelu":
        config["quick_gelu"] = True
    one_width = image.geometry.width == image.out_dim
    return config, names.open_clip_coca(one_width=one_width, head_bias=text.head_bias)


def _write_text(model: CoCa) -> dict[str, Any]:
    text = model.text
    end = {} if text.eos_id is None else {"pool_type": "eos", "eos_id": text.eos_id}  # where texts end, for importers
    return {
        **open_clip.write_tower(text),
        **end,
        "heads": text.geometry.num_heads,
        "context_length": text.length,
        "vocab_size": text.vocab_size,
        "embed_cls": True,
        "proj_bias": text.head_bias,
        "pad_id": text.pad_id,
        "output_tokens": True,
    }
