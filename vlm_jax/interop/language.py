"""Hugging Face's language models of the LLaMA kind: LLaMA, Vicuna, SmolLM2, Mistral, Qwen2, Qwen2.5, Qwen3, Chameleon.

Of Chameleon it is the decoder: its tokenizer of images is left out."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from vlm_jax.config import bind
from vlm_jax.errors import UserError
from vlm_jax.interop.imported import Fields
from vlm_jax.models.decoder import LanguageModel
from vlm_jax.nn.causal import PER_HEAD

# Ours: theirs.
SIZES = {
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
    "vocab_size": "vocab_size",
    "length": "max_position_embeddings",
}
# What their configuration classes fill in where config.json says nothing.
_SHARED = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 10_000.0}
_SHARED |= {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
KINDS = {
    "llama": _SHARED | {"vocab_size": 32_000, "intermediate_size": 11_008, "max_position_embeddings": 2048},
    "mistral": _SHARED | {"vocab_size": 32_000, "intermediate_size": 14_336, "max_position_embeddings": 131_072},
    "qwen2": _SHARED | {"vocab_size": 151_936, "intermediate_size": 22_016, "max_position_embeddings": 32_768},
    "qwen3": _SHARED | {"vocab_size": 151_936, "intermediate_size": 22_016, "max_position_embeddings": 32_768},
    "chameleon": _SHARED
    | {"vocab_size": 65_536, "intermediate_size": 11_008, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
}
CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
CHAMELEON = "ChameleonForConditionalGeneration"
CHAMELEON_EPS = 1e-5  # of queries and keys, whatever that of the other norms
KV_HEADS = {"mistral": 8, "qwen2": 32, "qwen3": 32}  # unless given; LLaMA's are as many as its heads

IGNORED = (r".*rotary_emb\.inv_freq", r"model\.vqmodel\..*")  # a buffer of old versions; Chameleon's images
BARE = ((r"^(?=(layers|embed_tokens|norm)\.)", "model."),)  # of models that were saved without their head


def model(config: dict, where: str) -> ConfigDict:
    """Our model from theirs. Raises UserError for what it does not have."""
    kind = config["model_type"]
    fields = Fields(config, KINDS[kind], where)
    fields.require(hidden_act="silu")
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if scaling.get("rope_type", scaling.get("type", "default")) != "default":
        raise UserError(f"{where}: rope_scaling={scaling} is not supported; only models without are.")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise UserError(f"{where}: {key}=true is not supported; only models without are.")
    if config.get("use_sliding_window"):
        raise UserError(f"{where}: use_sliding_window=true is not supported; only models without are.")
    if kind == "mistral" and (window := config.get("sliding_window", 4096)) is not None:
        raise UserError(f"{where}: sliding_window={window} is not supported; only null, without one, is.")
    chameleon = kind == "chameleon"
    if chameleon:
        fields.require(rms_norm_eps=CHAMELEON_EPS)
    sizes = {ours: fields.whole(theirs) for ours, theirs in SIZES.items()}
    head_dim = config.get("head_dim") or (128 if kind == "qwen3" else None)
    return bind(
        "models.decoder.LanguageModel",
        **sizes,
        num_kv_heads=config.get("num_key_value_heads") or KV_HEADS.get(kind) or sizes["num_heads"],
        head_dim=head_dim,
        norm_eps=float(fields["rms_norm_eps"]),
        qkv_bias=kind == "qwen2",
        qk_norm="rms" if kind == "qwen3" else PER_HEAD if chameleon else None,
        placement="swin" if chameleon and config.get("swin_norm") else "pre",
        tied=bool(fields["tie_word_embeddings"]),
        rope_theta=float(scaling.get("rope_theta") or fields["rope_theta"]),
        scan=False,
        dtype="float32",
    )


def describe(model: LanguageModel) -> dict[str, Any]:
    """The config.json of the class that is this model. Raises UserError: there is none."""
    fixed = {"norm": "rms", "bias": False, "rotary": 1.0, "activation": "swiglu", "modalities": 1}
    if model.qk_norm == PER_HEAD:
        fixed |= {"qkv_bias": False, "norm_eps": CHAMELEON_EPS}
        fixed |= {"dim_of_head": model.geometry.width // model.geometry.num_heads}
    else:
        fixed |= {"placement": "pre"}
    for field, value in fixed.items():
        if getattr(model, field) != value:
            raise UserError(
                f"no class of transformers that is written here has {field}={getattr(model, field)!r}; they have "
                f"{value!r}."
            )
    kind = "qwen2" if model.qkv_bias else "llama"
    if model.qk_norm == PER_HEAD:
        kind = "chameleon"
    elif model.qk_norm is not None:
        if model.qk_norm != "rms" or model.qkv_bias:
            raise UserError("Qwen3ForCausalLM has qk_norm='rms' and no qkv_bias; this model has other ones.")
        kind = "qwen3"
    if kind == "qwen2" and model.dim_of_head * model.geometry.num_heads != model.geometry.width:
        raise UserError(f"Qwen2ForCausalLM has no head_dim of its own, this model has {model.head_dim}.")
    values = model.geometry._asdict() | {"vocab_size": model.vocab_size, "length": model.length}
    own = {} if kind != "chameleon" else {"swin_norm": model.placement == "swin", "vocabulary_map": {}}
    return {theirs: values[ours] for ours, theirs in SIZES.items()} | {
        "model_type": kind,
        "architectures": [CLASSES.get(kind, CHAMELEON)],
        "hidden_act": "silu",
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.dim_of_head,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "tie_word_embeddings": model.tied,
        **own,
    }
