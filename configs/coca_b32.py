"""CoCa ViT-B/32: contrast and captioning of image-text pairs (Yu et al. 2022, arXiv 2205.01917), as open_clip has it.

Loss weights 1 and 2 are the paper's; sizes, 13 billion samples and batches of 90k are those of open_clip's
`coca_ViT-B-32`, `laion2b_s13b_b90k`; the optimizer has open_clip's defaults. Texts are 76 tokens, with a CLS token of
their own. Published weights have its mask shifted by one: `--config.task.model.text.correct_cls_mask=False` for them,
and for weights that open_clip is to load.
"""

import math

from vlm_jax.configs._shared import VARIANTS as VARIANTS
from vlm_jax.configs._shared import pairs, smoke, zero_shot_shapes
from vlm_jax.configs.clip_b32 import MEAN, STD

from vlm_jax.config import bind, late


def get_config(variant: str = ""):
    return coca(variant, size="B", patch_size=32, width=512, num_heads=8)


def coca(variant: str, *, size: str, patch_size: int, width: int, num_heads: int):
    """The recipe with an image tower of this size; text tower and decoder are 12 layers of `width` each."""
    config = bind("experiment.Experiment")
    config.total_examples = 13_000_000_000
    config.batch_size = 90_112
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
        length=76,
        canonicalise="lower",
        bos=True,
        eos="sticky",
        pad="pad",
    )
    config.data = pairs()

    block = dict(activation="gelu", norm_eps=1e-5, init_style="clip", remat="mlp")
    text = dict(width=width, depth=12, num_heads=num_heads, vocab_size=49_408)
    ids = dict(pad_id=late("pad_id"), eos_id=late("eos_id"))
    image = dict(size=size, patch_size=patch_size, pre_norm=True, patch_bias=False)
    config.task = bind(
        "tasks.captioning.Captioning",
        contrastive_weight=1.0,
        caption_weight=2.0,
        bos_id=late("bos_id"),
        model=bind(
            "models.coca.CoCa",
            image=bind("models.coca.ImageTower", **image, **block, out_dim=width, queries=256, pooler="first"),
            text=bind("models.coca.TextTower", **text, **block, **ids, length=76, pool="last", out_dim=width),
            decoder=bind("models.coca.CaptionDecoder", **text, **block),
            logit_scale_init=math.log(1 / 0.07),
            logit_scale_max=math.log(100),
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
        schedule=bind("optim.schedules.Cosine", warmup_steps=10_000),
    )

    config.evals = dict(zero_shot_shapes=zero_shot_shapes(224))
    if variant == "smoke":
        smoke(config, image_size=224, batch_size=8)
    return config
