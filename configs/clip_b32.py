"""CLIP ViT-B/32: InfoNCE on image-text pairs (Radford et al. 2021, arXiv 2103.00020, sections 2.3-2.5, tables 18-20).

Text is cut to 77 tokens and read causally; its embedding is taken at the end token. Published weights use QuickGELU,
LayerNorm epsilon 1e-5, a LayerNorm before the blocks and no bias in patches and heads.
"""

import math

from vlm_jax.configs._shared import VARIANTS as VARIANTS
from vlm_jax.configs._shared import pairs, smoke, zero_shot_shapes

from vlm_jax.config import bind, late

# Of the published preprocessing, per channel.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def get_config(variant: str = ""):
    return clip(variant, patch_size=32)


def clip(variant: str, *, patch_size: int):
    """The recipe with a B-sized image tower and the 12 x 512 text tower."""
    config = bind("experiment.Experiment")
    config.total_examples = 32 * 400_000_000
    config.batch_size = 32_768
    config.tokenizer = None
    config.log_steps = 50
    config.checkpoint_steps = 1000
    config.evaluate_steps = 5000

    config.image = bind(
        "data.image.ImageTransform",
        size=224,
        resize="crop",
        interpolation="bicubic",
        random_resized_crop=(0.9, 1.0),
        aspect=(1.0, 1.0),
    )
    config.text = bind(
        "data.text.Text",
        tokenizer=late("tokenizer"),
        length=77,
        canonicalise="lower",
        bos=True,
        eos="sticky",
        pad="pad",
    )
    config.data = pairs()

    tower = dict(activation="quick_gelu", norm_eps=1e-5, out_dim=512, head_bias=False, init_style="clip", remat="mlp")
    text = dict(width=512, depth=12, mlp_dim=2048, num_heads=8, length=77, vocab_size=49_408, causal=True)
    config.task = bind(
        "tasks.contrastive.Contrastive",
        objective="infonce",
        model=bind(
            "models.two_tower.TwoTower",
            image=bind(
                "models.vit.ViT", size="B", patch_size=patch_size, pool="cls", pre_norm=True, patch_bias=False, **tower
            ),
            text=bind("models.text.TextTransformer", **text, pool="eos", eos_id=late("eos_id"), **tower),
            logit_scale_init=math.log(1 / 0.07),
            logit_scale_max=math.log(100),
            logit_bias_init=None,
            image_mean=MEAN,
            image_std=STD,
        ),
    )
    config.optimizer = bind(
        "optim.Optimizer",
        name="adamw",
        learning_rate=5e-4,
        b2=0.98,
        eps=1e-6,
        weight_decay=0.2,
        schedule=bind("optim.schedules.Cosine", warmup_steps=2000),
    )

    config.evals = dict(zero_shot_shapes=zero_shot_shapes(224))
    if variant == "smoke":
        smoke(config, image_size=224, batch_size=8)
    return config
