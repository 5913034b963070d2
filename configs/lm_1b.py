"""A language model of TinyLlama's sizes (Zhang et al. 2024, arXiv 2401.02385): 1.1 billion parameters, 22 layers.

Recalled, and not read again: rows of 2048 tokens, 2 million tokens a step, 3 trillion in all; AdamW with b1 0.9, b2
0.95 and a decay of 0.1, a peak of 4e-4 after 2000 steps and a cosine to 4e-5, clipping at 1. Data as in `lm_135m`.
Parameters and optimizer are split over up to 32 devices.
"""

from vlm_jax.configs._decoders import VARIANTS as VARIANTS
from vlm_jax.configs._decoders import smoke
from vlm_jax.configs.lm_135m import LENGTH, language_model

from vlm_jax.config import bind


def get_config(variant: str = ""):
    config = language_model(
        "1B",
        vocab_size=32_000,
        tied=False,
        rope_theta=10_000.0,
        batch_size=1024,
        steps=1_430_000,
        length=LENGTH,
        learning_rate=4e-4,
        weight_decay=0.1,
        schedule=bind("optim.schedules.Cosine", warmup_steps=2000, final=0.1),
    )
    config.mesh = bind("mesh.Layout", fsdp=-1)
    if variant == "smoke":
        smoke(config, rows=4)
    return config
