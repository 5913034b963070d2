"""Published sizes by names and shapes alone: no array is made, here or in torch."""

import json
import re

import pytest

from vlm_jax import config as configs
from vlm_jax.interop import hugging_face, names, open_clip, processing, table
from vlm_jax.interop.imported import complete, template

from ..parity import peers
from . import open_clip_models

B16 = {"model_type": "siglip", "text_config": {}, "vision_config": {}}
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
GIANT = {"hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 40, "num_attention_heads": 16}
L14 = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
PUBLISHED = {
    "siglip-base-patch16-224": B16,
    "siglip-so400m-patch14-384": {
        "model_type": "siglip",
        "text_config": SO400M,
        "vision_config": SO400M | {"image_size": 384, "patch_size": 14},
    },
    "siglip2-giant-opt-patch16-256": {
        "model_type": "siglip",
        "text_config": SO400M | {"vocab_size": 256_000, "projection_size": 1536},
        "vision_config": GIANT | {"image_size": 256},
    },
    "siglip2-base-patch16-naflex": B16 | {"model_type": "siglip2", "text_config": {"vocab_size": 256_000}},
    "clip-vit-base-patch32": {"model_type": "clip", "text_config": {}, "vision_config": {}},
    "clip-vit-large-patch14-336": {
        "model_type": "clip",
        "projection_dim": 768,
        "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
        "vision_config": L14 | {"image_size": 336, "patch_size": 14},
    },
    "vit-base-patch16-224": {"model_type": "vit", "architectures": ["ViTForImageClassification"], "num_labels": 1000},
    "vit-large-patch32-384": {"model_type": "vit"} | L14 | {"image_size": 384, "patch_size": 32},
    "dinov2-base": {"model_type": "dinov2", "image_size": 518},
    "dinov2-giant": {
        "model_type": "dinov2",
        "hidden_size": 1536,
        "num_hidden_layers": 40,
        "num_attention_heads": 24,
        "image_size": 518,
        "use_swiglu_ffn": True,
    },
    "dinov2-with-registers-small": {
        "model_type": "dinov2_with_registers",
        "hidden_size": 384,
        "num_attention_heads": 6,
        "image_size": 518,
    },
}

OPEN_CLIP = ["ViT-B-32", "ViT-L-14-quickgelu", pytest.param("ViT-H-14", marks=pytest.mark.full)]
OPEN_CLIP += ["ViT-B-16-SigLIP", "ViT-SO400M-14-SigLIP-384", "ViT-gopt-16-SigLIP2-256"]


def shapes_in_torch(config):
    """Names and shapes of the file that transformers would write."""
    transformers, torch = peers.transformers(), peers.torch()
    from transformers.core_model_loading import revert_weight_conversion

    described = transformers.AutoConfig.for_model(**config)
    classifies = "architectures" in config
    auto = transformers.AutoModelForImageClassification if classifies else transformers.AutoModel
    with torch.device("meta"):
        model = auto.from_config(described)
    state = revert_weight_conversion(model, model.state_dict())
    return {name: tuple(value.shape) for name, value in state.items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_hugging_face(name):
    config = PUBLISHED[name]
    family = hugging_face.FAMILIES[config["model_type"]]
    node = complete(family.model(config, name))
    wanted = table.wanted(family.table(node), template(configs.build(node)))
    theirs = shapes_in_torch(config)
    unneeded = {n for n in theirs if any(re.fullmatch(pattern, n) for pattern in family.ignored)}
    assert wanted == {n: shape for n, shape in theirs.items() if n not in unneeded}


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_open_clip(name):
    library, torch = open_clip_models.library(), peers.torch()
    config = json.loads(json.dumps(library.get_model_config(name)))
    timm = "timm_model_name" in config["vision_cfg"]
    node = complete(open_clip._model(config, name, timm))
    names_of = names.open_clip(timm=timm, custom_text=timm, head_bias=node.text.head_bias)
    wanted = table.wanted(names_of, template(configs.build(node)))
    with torch.device("meta"):
        theirs = library.create_model(name, pretrained=None, device="meta").state_dict()
    assert wanted == {n: tuple(value.shape) for n, value in theirs.items()}


@pytest.mark.parametrize("name", hugging_face.DEFAULTS)
def test_defaults_are_those_of_the_configuration_class(name):
    theirs = getattr(peers.transformers(), name)()
    assert {key: getattr(theirs, key) for key in hugging_face.DEFAULTS[name]} == hugging_face.DEFAULTS[name]


@pytest.mark.parametrize("name", processing.PROCESSORS)
def test_defaults_are_those_of_the_image_processor(name):
    theirs = getattr(peers.transformers(), name)().to_dict()
    wanted = processing.PROCESSORS[name]
    tuples = lambda value: tuple(value) if isinstance(value, list) else value
    found = {key: tuples(theirs.get(key, False)) for key in wanted}
    assert found == wanted
