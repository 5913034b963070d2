"""SigLIP 2 in miniature on drawn shapes, whose boxes are exact: `siglip_tiny` with the four losses of its successor.

Captions, boxes of described objects and descriptions of boxes for a small decoder, and in the last fifth of the run
self-distillation of 16-pixel crops and masked prediction, from the moving average of the run. Coordinates are pixels.
What it reaches is in docs/results.md.
"""

from vlm_jax.configs import siglip_tiny
from vlm_jax.configs.siglip2_b16 import prompted

from vlm_jax.config import bind, late

VARIANTS = siglip_tiny.SHORT
LENGTH = 28  # the longest caption of 24 tokens with its end token, the begin token and the task's word, and some room


def get_config(variant: str = ""):
    config = siglip_tiny.get_config(variant)
    config.tokenizer = "train:160"
    config.ema = 0.995
    config.data.source = bind("data.sources.located.Located", source=config.data.source, bins=32)
    config.data.prompted = prompted(LENGTH, "siglip")

    towers = config.task.model
    ids = dict(vocab_size=late("vocab_size"), pad_id=late("pad_id"), eos_id=late("eos_id"))
    shape = dict(width=64, depth=2, mlp_dim=256, num_heads=2, dtype="float32")
    config.task = bind(
        "tasks.siglip2.SigLIP2Pretraining",
        objective="sigmoid",
        equal_captions="positives",
        prompted=prompted(LENGTH, "siglip"),
        decoder_weight=1.0,
        distill_weight=0.25,
        masked_weight=0.0625,
        crops=2,
        crop_size=16,
        crop_area=(0.1, 0.5),
        model=bind(
            "models.siglip2.SigLIP2",
            image=towers.image,
            text=towers.text,
            decoder=bind(
                "models.captioner.TextDecoder", **shape, **ids, length=LENGTH, context_width=96, mask_token=True
            ),
            crops=bind("models.siglip2.Prototypes", hidden=192, bottleneck=64, count=256),
            patches=bind("models.siglip2.Prototypes", hidden=192, bottleneck=64, count=128),
            logit_scale_init=towers.logit_scale_init,
            logit_bias_init=towers.logit_bias_init,
        ),
    )
    config.evals.captions = bind(
        "evaluate.captions.Captions",
        source=bind("data.sources.shapes.Shapes", image_size=32, split="test", size=500),
        image=late("image"),
        text=late("text"),
    )
    shapes = bind("data.sources.shapes.Shapes", image_size=32, split="test", size=500)
    config.evals.referring = bind(
        "evaluate.referring.Referring",
        source=bind("data.sources.located.Located", source=shapes, bins=32),
        image=late("image"),
        prompted=prompted(LENGTH, "siglip"),
    )
    return config
