"""CLIP in miniature on drawn shapes: `siglip_tiny` with the InfoNCE loss, no bias, and CLIP's bounds on the scale."""

import math

from vlm_jax.configs import siglip_tiny

VARIANTS = siglip_tiny.SHORT


def get_config(variant: str = ""):
    config = siglip_tiny.get_config(variant)
    config.task.objective = "infonce"
    config.task.model.update(logit_scale_init=math.log(1 / 0.07), logit_scale_max=math.log(100), logit_bias_init=None)
    config.optimizer.learning_rate_mults = (("logit_scale", 20.0),)
    return config
