"""A language model of LLaMA-7B's sizes (Touvron et al. 2023, arXiv 2302.13971): 6.7 billion parameters, 32 layers.

Recalled, and not read again: rows of 2048 tokens, 4 million tokens a step, 1 trillion in all; AdamW with b1 0.9, b2
0.95 and a decay of 0.1, a peak of 3e-4 after 2000 steps and a cosine to a tenth of it, clipping at 1. Data as in
`lm_135m`. Parameters and optimizer are split over up to 32 devices.
"""

from vlm_jax.configs._decoders import VARIANTS as VARIANTS
from vlm_jax.configs._decoders import smoke
from vlm_jax.configs.lm_135m import LENGTH, language_model

from vlm_jax.config import bind


def get_config(variant: str = ""):
    config = language_model(
        "7B",
        vocab_size=32_000,
        tied=False,
        rope_theta=10_000.0,
        batch_size=2048,
        steps=238_000,
        length=LENGTH,
        learning_rate=3e-4,
        weight_decay=0.1,
        schedule=bind("optim.schedules.Cosine", warmup_steps=2000, final=0.1),
    )
    config.mesh = bind("mesh.Layout", fsdp=-1)
    if variant == "smoke":
        smoke(config, rows=4)
    return config
