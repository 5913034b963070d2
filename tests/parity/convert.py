"""Tables of names from Hugging Face models to ours.

Every conversion is linear (transpose, concatenate, reshape), so one table converts weights and their gradients.
"""

from collections.abc import Callable, Mapping

import numpy as np

Leaves = dict[str, np.ndarray]
SIGLIP_BLOCK = {
    "ln1": "layer_norm1",
    "ln2": "layer_norm2",
    "qkv": "self_attn.{}_proj",
    "out": "self_attn.out_proj",
    "mlp": "mlp",
}
VIT_BLOCK = {
    "ln1": "layernorm_before",
    "ln2": "layernorm_after",
    "qkv": "attention.{}_proj",
    "out": "attention.o_proj",
    "mlp": "mlp",
}


def _linear(weights: Mapping[str, np.ndarray], theirs: str, ours: str) -> Leaves:
    out = {f"{ours}/kernel": weights[f"{theirs}.weight"].T}
    if f"{theirs}.bias" in weights:
        out[f"{ours}/bias"] = weights[f"{theirs}.bias"]
    return out


def _norm(weights: Mapping[str, np.ndarray], theirs: str, ours: str) -> Leaves:
    return {f"{ours}/scale": weights[f"{theirs}.weight"], f"{ours}/bias": weights[f"{theirs}.bias"]}


def _mlp(weights: Mapping[str, np.ndarray], theirs: str, ours: str) -> Leaves:
    return _linear(weights, f"{theirs}.fc1", f"{ours}/fc1") | _linear(weights, f"{theirs}.fc2", f"{ours}/fc2")


def _blocks(weights: Mapping[str, np.ndarray], theirs: str, ours: str, depth: int, names: Mapping[str, str]) -> Leaves:
    out: Leaves = {}
    for i in range(depth):
        get: Callable[[str], str] = lambda part, i=i: f"{theirs}.{i}.{names[part]}"
        block = f"{ours}/blocks/{i:02d}"
        for norm in ("ln1", "ln2"):
            out |= _norm(weights, get(norm), f"{block}/{norm}")
        qkv = [_linear(weights, get("qkv").format(part), part) for part in "qkv"]
        for leaf in ("kernel", "bias"):
            parts = [matrix[f"{part}/{leaf}"] for part, matrix in zip("qkv", qkv)]
            out[f"{block}/attn/qkv/{leaf}"] = np.concatenate(parts, axis=-1)
        out |= _linear(weights, get("out"), f"{block}/attn/out") | _mlp(weights, get("mlp"), f"{block}/mlp")
    return out


def _patches(weights: Mapping[str, np.ndarray], theirs: str, ours: str) -> Leaves:
    out = {f"{ours}/kernel": weights[f"{theirs}.weight"].transpose(2, 3, 1, 0)}  # OIHW -> HWIO
    if f"{theirs}.bias" in weights:
        out[f"{ours}/bias"] = weights[f"{theirs}.bias"]
    return out


def _text(weights: Mapping[str, np.ndarray], depth: int) -> Leaves:
    theirs = "text_model.embeddings"
    return {
        "text/embed/token": weights[f"{theirs}.token_embedding.weight"],
        "text/embed/posemb": weights[f"{theirs}.position_embedding.weight"],
        **_blocks(weights, "text_model.encoder.layers", "text", depth, SIGLIP_BLOCK),
        **_norm(weights, "text_model.final_layer_norm", "text/ln_post"),
    }


def siglip(weights: Mapping[str, np.ndarray], depth: int) -> Leaves:
    """`SiglipModel` -> leaves of a `TwoTower` with MAP pooling and a text head with bias."""
    head = "vision_model.head"
    kernels = np.split(weights[f"{head}.attention.in_proj_weight"].T, 3, axis=-1)
    biases = np.split(weights[f"{head}.attention.in_proj_bias"], 3)
    return {
        **_patches(weights, "vision_model.embeddings.patch_embedding", "image/embed/patch"),
        "image/embed/posemb": weights["vision_model.embeddings.position_embedding.weight"],
        **_blocks(weights, "vision_model.encoder.layers", "image", depth, SIGLIP_BLOCK),
        **_norm(weights, "vision_model.post_layernorm", "image/ln_post"),
        "image/pool/probe": weights[f"{head}.probe"][0, 0],
        "image/pool/q/kernel": kernels[0],
        "image/pool/q/bias": biases[0],
        "image/pool/kv/kernel": np.concatenate(kernels[1:], axis=-1),
        "image/pool/kv/bias": np.concatenate(biases[1:]),
        **_linear(weights, f"{head}.attention.out_proj", "image/pool/out"),
        **_norm(weights, f"{head}.layernorm", "image/pool/ln"),
        **_mlp(weights, f"{head}.mlp", "image/pool/mlp"),
        **_text(weights, depth),
        **_linear(weights, "text_model.head", "text/head"),
        "logit_scale": weights["logit_scale"][0],
        "logit_bias": weights["logit_bias"][0],
    }


def clip(weights: Mapping[str, np.ndarray], depth: int) -> Leaves:
    """`CLIPModel` -> leaves of a `TwoTower` with CLS and EOS pooling and projections without bias."""
    return {
        "image/embed/cls": weights["vision_model.embeddings.class_embedding"],
        **_patches(weights, "vision_model.embeddings.patch_embedding", "image/embed/patch"),
        "image/embed/posemb": weights["vision_model.embeddings.position_embedding.weight"],
        **_norm(weights, "vision_model.pre_layrnorm", "image/ln_pre"),
        **_blocks(weights, "vision_model.encoder.layers", "image", depth, SIGLIP_BLOCK),
        **_norm(weights, "vision_model.post_layernorm", "image/ln_post"),
        **_linear(weights, "visual_projection", "image/head"),
        **_text(weights, depth),
        **_linear(weights, "text_projection", "text/head"),
        "logit_scale": weights["logit_scale"],
    }


def vit(weights: Mapping[str, np.ndarray], depth: int) -> Leaves:
    """`ViTModel` without its pooling layer -> leaves of a `ViT` with CLS pooling."""
    leaves = {
        "/embed/cls": weights["embeddings.cls_token"][0, 0],
        "/embed/posemb": weights["embeddings.position_embeddings"][0],
        **_patches(weights, "embeddings.patch_embeddings.projection", "/embed/patch"),
        **_blocks(weights, "layers", "", depth, VIT_BLOCK),
        **_norm(weights, "layernorm", "/ln_post"),
    }
    return {name.removeprefix("/"): leaf for name, leaf in leaves.items()}
