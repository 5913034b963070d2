"""Chameleon in miniature on drawn shapes: one decoder writes captions for images, and draws images for captions.

    python -m vlm_jax.main --config=fsq_tiny:shapes
    python -m vlm_jax.main --config=siglip_tiny
    python -m vlm_jax.main --config=chameleon_tiny

The first makes the tokens of images, 8 x 8 of 240 codes; the second says what was drawn. Other runs are named by
`--config.init_from.tokenizer=WORKDIR` and `--bind=Drawn.classifier=WORKDIR`. Norms of queries and keys and the z-loss
are Chameleon's (2024, arXiv:2405.09818, section 2.3); all other numbers are chosen. A step takes 0.93 s of one core's
time, and so all of them a quarter of an hour; what they reach has still to be measured.
"""

from vlm_jax.configs._fused import SHORT, tiny

VARIANTS = SHORT


def get_config(variant: str = ""):
    return tiny(variant)
