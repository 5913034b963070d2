"""Small open_clip models, on disk as its hub holds them."""

import json

import pytest

from vlm_jax import interop, tree

from ..parity import peers
from .peer_models import DEPTH, HEADS, IMAGE, LENGTH, MLP, PATCH, VOCAB, WIDTH

RATIO = MLP / WIDTH
TEXT = {"context_length": LENGTH, "vocab_size": VOCAB, "width": WIDTH, "heads": HEADS, "layers": DEPTH}
TEXT |= {"mlp_ratio": RATIO}
CLIP = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": IMAGE,
        "patch_size": PATCH,
        "width": WIDTH,
        "layers": DEPTH,
        "head_width": WIDTH // HEADS,
        "mlp_ratio": RATIO,
    },
    "text_cfg": TEXT,
}
TIMM_NAME = f"vit_test_patch{PATCH}_siglip_{IMAGE}"
SIGLIP = {
    "embed_dim": WIDTH,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {"image_size": IMAGE, "timm_model_name": TIMM_NAME, "timm_pool": "map", "timm_proj": "none"},
    "text_cfg": TEXT
    | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
    | {"act_kwargs": {"approximate": "tanh"}},
}
PREPROCESS = {"size": IMAGE, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}


def library():
    """The `open_clip` module, whose import needs torchvision's."""
    return peers.torchvision("open_clip")


@pytest.fixture
def timm_tower(monkeypatch):
    """A tower of timm small enough for a test, under a name that both libraries take for one of SigLIP's."""
    library()
    import open_clip.timm_model
    from timm.models.vision_transformer import VisionTransformer

    from vlm_jax.interop import open_clip as ours

    sizes = {"width": WIDTH, "depth": DEPTH, "num_heads": HEADS, "mlp_dim": MLP}
    monkeypatch.setitem(ours.TIMM_SIZES, "test", sizes)
    monkeypatch.setitem(ours.TIMM_RESOLUTIONS, ("test", PATCH), (IMAGE,))
    options = {"img_size": IMAGE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    create = lambda name, pretrained=False, **kw: VisionTransformer(**options, mlp_ratio=RATIO, class_token=False, **kw)
    monkeypatch.setattr(open_clip.timm_model.timm, "create_model", create)


def build(config):
    models = library().model
    config = {key: value for key, value in config.items() if key != "custom_text"} | {"output_dict": True}
    return (models.CustomTextCLIP if "timm_model_name" in config["vision_cfg"] else models.CLIP)(**config)


def save(model, config, folder, file="open_clip_model.safetensors"):
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / file) if file.endswith("safetensors") else peers.torch().save(state, folder / file)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESS}))
    return folder


def our_gradients(model, config, folder):
    """The gradients of a torch model under our names: saved as if they were weights, and imported."""
    torch = peers.torch()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    return tree.flatten(interop.source(save(model, config, folder)).params())
