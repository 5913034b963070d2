"""CoCa in miniature on drawn shapes: `siglip_tiny`, whose text tower goes on as a decoder that writes captions.

The paper's parallel poolers (Yu et al. 2022, section 3.2) over the patches of a convolutional stem; the contrastive
loss is SigLIP's, for captions repeat within a batch. What it reaches is in docs/results.md: every caption of one object
is right, and of several their order from left to right often is not.
"""

import math

from vlm_jax.configs import siglip_tiny

from vlm_jax.config import bind, late

VARIANTS = siglip_tiny.SHORT
LENGTH = 25  # siglip_tiny's, and the begin token that the first word is predicted from


def get_config(variant: str = ""):
    config = siglip_tiny.get_config(variant)
    config.text.update(length=LENGTH, bos=True)
    image = dict(image_size=32, patch_size=8, stem_channels=(24, 48, 96), width=96, depth=3, mlp_dim=384, num_heads=3)
    pooling = dict(pool="gap", pooler="parallel", queries=16, pool_heads=4, out_dim=128)
    text = dict(width=64, depth=2, mlp_dim=256, num_heads=2, vocab_size=late("vocab_size"), dtype="float32")
    ids = dict(pad_id=late("pad_id"), eos_id=late("eos_id"))
    config.task = bind(
        "tasks.captioning.Captioning",
        objective="sigmoid",
        equal_captions="positives",
        contrastive_weight=1.0,
        caption_weight=2.0,
        bos_id=late("bos_id"),
        model=bind(
            "models.coca.CoCa",
            image=bind("models.coca.ImageTower", **image, **pooling, dtype="float32"),
            text=bind("models.coca.TextTower", **text, **ids, length=LENGTH, pool="last", out_dim=128),
            decoder=bind("models.coca.CaptionDecoder", **text, context_width=128),
            logit_scale_init=math.log(10),
            logit_scale_max=None,
            logit_bias_init=-10.0,
        ),
    )
    config.evals.captions = bind(
        "evaluate.captions.Captions",
        source=bind("data.sources.shapes.Shapes", image_size=32, split="test", size=500),
        image=late("image"),
        text=late("text"),
    )
    return config
