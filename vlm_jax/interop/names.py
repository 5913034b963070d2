"""The tables: what each family calls our parameters. See `vlm_jax.interop.table` for how they read."""

from __future__ import annotations

from vlm_jax.interop.table import (
    AFTER_TWO,
    FLAT_PATCH,
    LEADING_1,
    LEADING_2,
    TRANSPOSED,
    UNPLACED,
    Rule,
    Table,
    by_head,
    conv,
    fused,
    heads_first,
    heads_last,
    leaf,
    linear,
    norm,
    within,
)

# Hugging Face

_MLP = linear("mlp/fc1", "mlp.fc1") + linear("mlp/fc2", "mlp.fc2")
_CLIP_BLOCK = (
    norm("ln1", "layer_norm1")
    + linear("attn/qkv", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    + linear("attn/out", "self_attn.out_proj")
    + norm("ln2", "layer_norm2")
    + _MLP
)
_HF_TEXT = (
    leaf("embed/token", "embeddings.token_embedding.weight")
    + leaf("embed/posemb", "embeddings.position_embedding.weight")
    + within("blocks/{layer}/", "encoder.layers.{layer}.", _CLIP_BLOCK)
    + norm("ln_post", "final_layer_norm")
)
_HF_MAP_HEAD = (
    leaf("probe", "probe", LEADING_2)
    + fused(("q", "kv"), "attention")
    + linear("out", "attention.out_proj")
    + norm("ln", "layernorm")
    + _MLP
)
_SIGLIP_IMAGE = (
    leaf("embed/posemb", "embeddings.position_embedding.weight")
    + within("blocks/{layer}/", "encoder.layers.{layer}.", _CLIP_BLOCK)
    + norm("ln_post", "post_layernorm")
    + within("pool/", "head.", _HF_MAP_HEAD)
)
_SIGLIP = (
    within("image/", "vision_model.", _SIGLIP_IMAGE)
    + within("text/", "text_model.", _HF_TEXT + linear("head", "head"))
    + leaf("logit_scale", "logit_scale", LEADING_1)
    + leaf("logit_bias", "logit_bias", LEADING_1)
)
SIGLIP = conv("image/embed/patch", "vision_model.embeddings.patch_embedding") + _SIGLIP
SIGLIP2_NAFLEX = (
    leaf("image/embed/patch/kernel", "vision_model.embeddings.patch_embedding.weight", FLAT_PATCH)
    + leaf("image/embed/patch/bias", "vision_model.embeddings.patch_embedding.bias")
    + _SIGLIP
)
CLIP_IMAGE = (
    leaf("embed/cls", "embeddings.class_embedding")
    + conv("embed/patch", "embeddings.patch_embedding")
    + leaf("embed/posemb", "embeddings.position_embedding.weight")
    + norm("ln_pre", "pre_layrnorm")  # their spelling
    + within("blocks/{layer}/", "encoder.layers.{layer}.", _CLIP_BLOCK)
    + norm("ln_post", "post_layernorm")
)
CLIP = (
    within("image/", "vision_model.", CLIP_IMAGE)
    + linear("image/head", "visual_projection")
    + within("text/", "text_model.", _HF_TEXT)
    + linear("text/head", "text_projection")
    + leaf("logit_scale", "logit_scale")
)

_BERT_ATTENTION = linear("attn/qkv", *(f"attention.attention.{part}" for part in ("query", "key", "value"))) + linear(
    "attn/out", "attention.output.dense"
)
_VIT_STEM = (
    leaf("embed/cls", "embeddings.cls_token", LEADING_2)
    + conv("embed/patch", "embeddings.patch_embeddings.projection")
    + leaf("embed/posemb", "embeddings.position_embeddings", LEADING_1)
    + norm("ln_post", "layernorm")
)
VIT = _VIT_STEM + within(
    "blocks/{layer}/",
    "encoder.layer.{layer}.",
    norm("ln1", "layernorm_before")
    + _BERT_ATTENTION
    + norm("ln2", "layernorm_after")
    + linear("mlp/fc1", "intermediate.dense")
    + linear("mlp/fc2", "output.dense"),
)
VIT_CLASSIFIER = within("", "vit.", VIT) + linear("head", "classifier")


def dinov2(swiglu: bool) -> Table:
    mlp = linear("mlp/fc1", "mlp.weights_in") + linear("mlp/fc2", "mlp.weights_out") if swiglu else _MLP
    block = (
        norm("ln1", "norm1")
        + _BERT_ATTENTION
        + leaf("ls1", "layer_scale1.lambda1")
        + norm("ln2", "norm2")
        + mlp
        + leaf("ls2", "layer_scale2.lambda1")
    )
    registers = leaf("embed/registers", "embeddings.register_tokens", LEADING_1)
    return _VIT_STEM + registers + within("blocks/{layer}/", "encoder.layer.{layer}.", block)


_TROCR_DECODER = (
    leaf("embed/token", "embed_tokens.weight")
    + leaf("embed/posemb", "embed_positions.weight", AFTER_TWO)
    + norm("embed/ln", "layernorm_embedding")
    + within(
        "blocks/{layer}/",
        "layers.{layer}.",
        linear("attn/qkv", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        + linear("attn/out", "self_attn.out_proj")
        + norm("ln1", "self_attn_layer_norm")
        + linear("cross/q", "encoder_attn.q_proj")
        + linear("cross/kv", "encoder_attn.k_proj", "encoder_attn.v_proj")
        + linear("cross/out", "encoder_attn.out_proj")
        + norm("ln_cross", "encoder_attn_layer_norm")
        + linear("mlp/fc1", "fc1")
        + linear("mlp/fc2", "fc2")
        + norm("ln2", "final_layer_norm"),
    )
)
TROCR = within("image/", "encoder.", VIT) + within("decoder/", "decoder.model.decoder.", _TROCR_DECODER)

_LLAMA_BLOCK = (
    norm("ln1", "input_layernorm")
    + linear("attn/q", "self_attn.q_proj")
    + linear("attn/kv", "self_attn.k_proj", "self_attn.v_proj")
    + norm("attn/q_norm", "self_attn.q_norm")
    + norm("attn/k_norm", "self_attn.k_norm")
    + linear("attn/out", "self_attn.o_proj")
    + norm("ln2", "post_attention_layernorm")
    + linear("mlp/fc1", "mlp.gate_proj", "mlp.up_proj")
    + linear("mlp/fc2", "mlp.down_proj")
)
LLAMA = (
    leaf("embed/token", "model.embed_tokens.weight")
    + within("blocks/{layer}/", "model.layers.{layer}.", _LLAMA_BLOCK)
    + norm("ln_post", "model.norm")
    + leaf("head/embedding", "lm_head.weight")
)
LLAVA = (
    within("image/", "vision_tower.", CLIP_IMAGE)
    + linear("projector/fc1", "multi_modal_projector.linear_1")
    + linear("projector/fc2", "multi_modal_projector.linear_2")
    + leaf("image_newline", "image_newline")  # of LLaVA-NeXT
    + within("decoder/", "language_model.", LLAMA)
)


def fuyu(heads: int) -> Table:
    """Fuyu's, whose decoder is Persimmon: query, key and value lie head by head."""
    block = (
        norm("ln1", "input_layernorm")
        + by_head(("attn/q", "attn/kv"), "self_attn.query_key_value", heads)
        + norm("attn/q_norm", "self_attn.q_layernorm")
        + norm("attn/k_norm", "self_attn.k_layernorm")
        + linear("attn/out", "self_attn.dense")
        + norm("ln2", "post_attention_layernorm")
        + linear("mlp/fc1", "mlp.dense_h_to_4h")
        + linear("mlp/fc2", "mlp.dense_4h_to_h")
    )
    text = (
        leaf("embed/token", "model.embed_tokens.weight")
        + within("blocks/{layer}/", "model.layers.{layer}.", block)
        + norm("ln_post", "model.final_layernorm")
        + leaf("head/embedding", "lm_head.weight")
    )
    return linear("patch", "vision_embed_tokens") + within("decoder/", "language_model.", text)


# open_clip

_OPEN_CLIP_BLOCK = (
    norm("ln1", "ln_1")
    + fused("attn/qkv", "attn")
    + linear("attn/out", "attn.out_proj")
    + norm("ln2", "ln_2")
    + linear("mlp/fc1", "mlp.c_fc")
    + linear("mlp/fc2", "mlp.c_proj")
)
_OPEN_CLIP_TEXT = (
    leaf("embed/token", "token_embedding.weight")
    + leaf("embed/posemb", "positional_embedding")
    + within("blocks/{layer}/", "transformer.resblocks.{layer}.", _OPEN_CLIP_BLOCK)
    + norm("ln_post", "ln_final")
)
_OPEN_CLIP_IMAGE = (
    leaf("embed/cls", "class_embedding")
    + conv("embed/patch", "conv1")
    + leaf("embed/posemb", "positional_embedding")
    + norm("ln_pre", "ln_pre")
    + within("blocks/{layer}/", "transformer.resblocks.{layer}.", _OPEN_CLIP_BLOCK)
    + norm("ln_post", "ln_post")
    + leaf("head/kernel", "proj")
)
_TIMM_IMAGE = (
    conv("embed/patch", "patch_embed.proj")
    + leaf("embed/posemb", "pos_embed", LEADING_1)
    + within(
        "blocks/{layer}/",
        "blocks.{layer}.",
        norm("ln1", "norm1")
        + linear("attn/qkv", "attn.qkv")
        + linear("attn/out", "attn.proj")
        + norm("ln2", "norm2")
        + _MLP,
    )
    + norm("ln_post", "norm")
    + within(
        "pool/",
        "attn_pool.",
        leaf("probe", "latent", LEADING_2)
        + linear("q", "q")
        + linear("kv", "kv")
        + linear("out", "proj")
        + norm("ln", "norm")
        + _MLP,
    )
)
_SCALARS = leaf("logit_scale", "logit_scale") + leaf("logit_bias", "logit_bias")


def open_clip(*, timm: bool, custom_text: bool, head_bias: bool) -> Table:
    """`timm`: the image tower is timm's; `custom_text`: names of the text tower begin with `text`."""
    image = within("image/", "visual.trunk.", _TIMM_IMAGE) if timm else within("image/", "visual.", _OPEN_CLIP_IMAGE)
    head = linear("head", "text_projection") if head_bias else leaf("head/kernel", "text_projection")
    return image + within("text/", "text." if custom_text else "", _OPEN_CLIP_TEXT + head) + _SCALARS


def _cross_attention(one_width: bool) -> Table:
    """torch's `MultiheadAttention`, which keeps keys and values apart where their width is not the queries'."""
    bias = Rule(("q/bias", "kv/bias"), ("in_proj_bias",))
    if one_width:
        kernels = (Rule(("q/kernel", "kv/kernel"), ("in_proj_weight",), TRANSPOSED),)
    else:
        kernels = (
            Rule(("q/kernel",), ("q_proj_weight",), TRANSPOSED),
            Rule(("kv/kernel",), ("k_proj_weight", "v_proj_weight"), TRANSPOSED),
        )
    return (*kernels, bias, *linear("out", "out_proj"))


def _pooler(one_width: bool) -> Table:
    attention = within("attn/", "attn.", _cross_attention(one_width))
    return leaf("query", "query") + norm("ln_q", "ln_q") + norm("ln_k", "ln_k") + attention


_OPEN_CLIP_CROSS_BLOCK = (
    norm("ln1", "ln_1")
    + norm("ln_context", "ln_1_kv")
    + within("attn/", "attn.", _cross_attention(one_width=True))
    + norm("ln2", "ln_2")
    + linear("mlp/fc1", "mlp.c_fc")
    + linear("mlp/fc2", "mlp.c_proj")
)
_OPEN_CLIP_DECODER = (
    within("blocks/{layer}/causal/", "resblocks.{layer}.", _OPEN_CLIP_BLOCK)
    + within("blocks/{layer}/cross/", "cross_attn.{layer}.", _OPEN_CLIP_CROSS_BLOCK)
    + norm("ln_post", "ln_final")
    + leaf("head/embedding", "text_projection", TRANSPOSED)
)


def open_clip_coca(*, one_width: bool, head_bias: bool) -> Table:
    """`one_width`: the image tower is as wide as what its poolers give."""
    towers = open_clip(timm=False, custom_text=True, head_bias=head_bias)
    return (
        towers
        + leaf("text/embed/cls", "text.cls_emb")
        + within("image/pool/", "visual.attn_pool.", _pooler(one_width))
        + within("image/contrastive_pool/", "visual.attn_pool_contrastive.", _pooler(one_width))
        + within("decoder/", "text_decoder.", _OPEN_CLIP_DECODER)
    )


# big_vision


def _dense_attention(ours: tuple[str, ...], theirs: str, heads: int) -> Table:
    parts = ("query", "key", "value")
    return tuple(
        Rule(
            tuple(f"{name}/{kind}" for name in ours),
            tuple(f"{theirs}/{part}/{kind}" for part in parts),
            heads_last(heads),
        )
        for kind in ("kernel", "bias")
    )


def _dense_linear(ours: str, theirs: str) -> Table:
    return leaf(f"{ours}/kernel", f"{theirs}/kernel") + leaf(f"{ours}/bias", f"{theirs}/bias")


def _dense_norm(ours: str, theirs: str) -> Table:
    return leaf(f"{ours}/scale", f"{theirs}/scale") + leaf(f"{ours}/bias", f"{theirs}/bias")


def _dense_out(ours: str, theirs: str, heads: int) -> Table:
    return leaf(f"{ours}/kernel", f"{theirs}/kernel", heads_first(heads)) + leaf(f"{ours}/bias", f"{theirs}/bias")


def _dense_mlp(theirs: str) -> Table:
    return _dense_linear("mlp/fc1", f"{theirs}/Dense_0") + _dense_linear("mlp/fc2", f"{theirs}/Dense_1")


def _dense_encoder(heads: int, encoder: str) -> Table:
    attention = "MultiHeadDotProductAttention_0"
    block = (
        _dense_norm("ln1", "LayerNorm_0")
        + _dense_attention(("attn/qkv",), attention, heads)
        + _dense_out("attn/out", f"{attention}/out", heads)
        + _dense_norm("ln2", "LayerNorm_1")
        + _dense_mlp("MlpBlock_0")
    )
    layers = within("blocks/{layer}/", encoder + "/encoderblock_{layer}/", block)
    return layers + _dense_norm("ln_post", f"{encoder}/encoder_norm")


def big_vision_image(heads: int, cls_unplaced: bool = False) -> Table:
    """A big_vision `vit`, whose head may be there; `cls_unplaced`: its CLS token has no position."""
    head, attention = "MAPHead_0", "MAPHead_0/MultiHeadDotProductAttention_0"
    return (
        _dense_linear("embed/patch", "embedding")
        + leaf("embed/posemb", "pos_embedding", UNPLACED if cls_unplaced else LEADING_1)
        + leaf("embed/cls", "cls", LEADING_2)
        + _dense_encoder(heads, "Transformer")
        + leaf("pool/probe", f"{head}/probe", LEADING_2)
        + _dense_attention(("pool/q", "pool/kv"), attention, heads)
        + _dense_out("pool/out", f"{attention}/out", heads)
        + _dense_norm("pool/ln", f"{head}/LayerNorm_0")
        + within("pool/", "", _dense_mlp(f"{head}/MlpBlock_0"))
        + _dense_linear("head", "head")
    )


def big_vision_text(heads: int) -> Table:
    """big_vision's `text_transformer`."""
    return (
        leaf("embed/token", "Embed_0/embedding")
        + leaf("embed/posemb", "pos_embedding", LEADING_1)
        + _dense_encoder(heads, "Encoder_0")
        + _dense_linear("head", "head")
    )


def big_vision(image_heads: int, text_heads: int) -> Table:
    """big_vision's `two_towers`: the scale's logarithm is `t`, the bias `b`, one value each."""
    return (
        within("image/", "img/", big_vision_image(image_heads))
        + within("text/", "txt/", big_vision_text(text_heads))
        + leaf("logit_scale", "t", LEADING_1)
        + leaf("logit_bias", "b", LEADING_1)
    )
