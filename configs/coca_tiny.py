"""CoCa in miniature on drawn shapes: `siglip_tiny`, whose text tower goes on as a decoder that writes captions.

The contrastive query of the paper's parallel poolers (Yu et al. 2022, section 3.2) over the patches of a convolutional
stem. The caption decoder has the patches themselves: pooled by learned queries, they say after so short a run what
there is and not where, and captions list objects from left to right. None says how two stand to one another, or several
would be right for a picture and one of them asked for. The contrastive loss is SigLIP's, as captions repeat in a batch.
"""

import math

from vlm_jax.configs import siglip_tiny
from vlm_jax.configs._shared import TINY_TOWER

from vlm_jax.config import bind, late

VARIANTS = siglip_tiny.SHORT
LENGTH = 25  # siglip_tiny's, and the begin token that the first word is predicted from


def get_config(variant: str = ""):
    config = siglip_tiny.get_config(variant)
    config.text.update(length=LENGTH, bos=True)
    config.data.source.update(scenes="uniform", relations=False)
    image = dict(**TINY_TOWER, posemb="sincos2d")
    pooling = dict(pool="gap", pooler="parallel", queries=0, pool_heads=4, out_dim=128)
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
            decoder=bind("models.coca.CaptionDecoder", **text, context_width=96),
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
