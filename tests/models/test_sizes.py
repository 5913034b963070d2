"""Parameter counts of every size, against published checkpoints (the model cards' or safetensors' exact counts)."""

import math

import jax
import pytest

from vlm_jax.models.text import TextTransformer
from vlm_jax.models.tower import SIZES
from vlm_jax.models.two_tower import TwoTower
from vlm_jax.models.vit import ViT


def count(model):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0))))


# google/vit-base-patch16-224-in21k and its siblings, without their classifier; g: Zhai et al. 2022, table 2 (1011 M).
@pytest.mark.parametrize(
    ("size", "patch", "expected"),
    [("Ti", 16, 5_524_416), ("S", 16, 21_665_664), ("B", 16, 85_798_656), ("L", 16, 303_301_632)],
)
def test_vit(size, patch, expected):
    assert count(ViT(size=size, patch_size=patch, pool="cls", scan=True)) == expected


def test_vit_g_has_a_billion():
    assert count(ViT(size="g", patch_size=14, pool="cls", scan=True)) == pytest.approx(1.011e9, rel=0.002)


@pytest.mark.parametrize(
    ("size", "patch", "image", "length", "expected"),
    [
        ("B", 16, 224, 64, 203_155_970),  # google/siglip-base-patch16-224
        ("L", 16, 256, 64, 652_150_786),  # google/siglip-large-patch16-256
        ("So400m", 14, 378, 64, 877_960_498),  # google/siglip-so400m-patch14-384, which crops its images to 378
    ],
)
def test_siglip(size, patch, image, length, expected):
    model = TwoTower(
        image=ViT(size=size, patch_size=patch, image_size=image, scan=True),
        text=TextTransformer(size=size, length=length, out_dim=SIZES[size].width, scan=True),
    )
    assert count(model) == expected


@pytest.mark.parametrize(
    ("size", "patch", "width", "heads", "expected"),
    [
        ("B", 32, 512, 8, 151_277_313),  # openai/clip-vit-base-patch32
        ("B", 16, 512, 8, 149_620_737),  # openai/clip-vit-base-patch16
        ("L", 14, 768, 12, 427_616_513),  # openai/clip-vit-large-patch14
    ],
)
def test_clip(size, patch, width, heads, expected):
    head = {"out_dim": width, "head_bias": False, "scan": True}
    model = TwoTower(
        image=ViT(size=size, patch_size=patch, pool="cls", pre_norm=True, patch_bias=False, **head),
        text=TextTransformer(
            vocab_size=49_408, length=77, width=width, depth=12, num_heads=heads, pool="eos", eos_id=49_407, **head
        ),
        logit_bias_init=None,
    )
    assert count(model) == expected
