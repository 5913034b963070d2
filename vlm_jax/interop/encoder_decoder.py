"""Hugging Face's `VisionEncoderDecoderModel` of a ViT and TrOCR's decoder."""

from __future__ import annotations

from collections.abc import Callable

from ml_collections import ConfigDict

from vlm_jax.config import bind
from vlm_jax.errors import UserError
from vlm_jax.interop import names
from vlm_jax.interop.imported import Fields
from vlm_jax.interop.table import Table
from vlm_jax.models.captioner import Captioner
from vlm_jax.models.vit import ViT

KIND = "vision-encoder-decoder"
# Ours: theirs.
SIZES = {
    "width": "d_model",
    "depth": "decoder_layers",
    "num_heads": "decoder_attention_heads",
    "mlp_dim": "decoder_ffn_dim",
    "vocab_size": "vocab_size",
    "length": "max_position_embeddings",
}
# What `TrOCRConfig` fills in where config.json says nothing.
DEFAULTS = {
    "vocab_size": 50_265,
    "d_model": 1024,
    "decoder_layers": 12,
    "decoder_attention_heads": 16,
    "decoder_ffn_dim": 4096,
    "max_position_embeddings": 512,
    "activation_function": "gelu",
    "layernorm_embedding": True,
    "use_learned_position_embeddings": True,
    "scale_embedding": False,
    "tie_word_embeddings": True,
    "pad_token_id": 1,
    "eos_token_id": 2,
}
# What its class always has. Its activation is one of ours or none.
FIXED = {"norm": "post", "tied": True, "norm_eps": 1e-5, "qkv_bias": True, "mask_token": False}
ACTIVATION = {"gelu": "gelu"}
# Those of the ViT's pooler, which nothing uses, and the head, where it is stored beside the embedding that it is.
IGNORED = (r"encoder\.pooler\..*", r"decoder\.output_projection\.weight")


def model(config: dict, where: str, read_image: Callable[[dict, str], ConfigDict]) -> ConfigDict:
    """Our model from theirs; `read_image` is that of a ViT. Raises UserError for what it does not have."""
    encoder, decoder = config.get("encoder") or {}, config.get("decoder") or {}
    for part, wanted in ((encoder, "vit"), (decoder, "trocr")):
        if part.get("model_type") != wanted:
            raise UserError(
                f"{where}: an encoder-decoder with a part of type {part.get('model_type')!r} is not supported; "
                "only a vit with a trocr decoder is."
            )
    image = read_image({**encoder, "architectures": None}, f"{where}, encoder")
    fields = Fields(decoder, DEFAULTS, f"{where}, decoder")
    fields.require(use_learned_position_embeddings=True, scale_embedding=False, tie_word_embeddings=True)
    context = fields.get("cross_attention_hidden_size") or fields.whole("d_model")
    if context != image.width:
        raise UserError(
            f"{where}: a projection of the encoder's {image.width} features to {context} is not supported; only "
            "decoder.cross_attention_hidden_size that is the encoder's hidden_size is."
        )
    sizes = {ours: fields.whole(theirs) for ours, theirs in SIZES.items()}
    return bind(
        "models.captioner.Captioner",
        image=image,
        decoder=bind(
            "models.captioner.TextDecoder",
            **sizes,
            **FIXED,
            context_width=context,
            activation=fields.choose("activation_function", ACTIVATION),
            embed_norm=bool(fields.get("layernorm_embedding")),
            pad_id=fields.get("pad_token_id"),
            eos_id=fields.get("eos_token_id"),
            dtype="float32",
        ),
    )


def describe(model: Captioner, image: Callable[[ViT], tuple[dict, Table]]) -> tuple[dict, Table]:
    """(config.json, table of names) of theirs that is this one; `image` describes the encoder.

    Raises:
      UserError: there is none, and why.
    """
    decoder = model.decoder
    for field, value in {**FIXED, "activation": "gelu"}.items():
        if (found := getattr(decoder, field)) != value:
            raise UserError(f"TrOCRForCausalLM cannot express decoder.{field}={found!r}; it has {value!r}.")
    encoder, _ = image(model.image)
    values = decoder.geometry._asdict() | {"vocab_size": decoder.vocab_size, "length": decoder.length}
    ids = {"pad_token_id": decoder.pad_id, "eos_token_id": decoder.eos_id, "bos_token_id": None}
    config = {
        "model_type": KIND,
        "architectures": ["VisionEncoderDecoderModel"],
        "is_encoder_decoder": True,
        "tie_word_embeddings": False,  # of encoder and decoder; the decoder's own are
        "pad_token_id": decoder.pad_id,
        "eos_token_id": decoder.eos_id,
        "encoder": encoder,
        "decoder": {
            **DEFAULTS,
            **{theirs: values[ours] for ours, theirs in SIZES.items()},
            **ids,
            "model_type": "trocr",
            "is_decoder": True,
            "add_cross_attention": True,
            "cross_attention_hidden_size": decoder.context_width or decoder.geometry.width,
            "layernorm_embedding": decoder.embed_norm,
        },
    }
    return config, names.TROCR
