"""Chameleon in miniature on drawn shapes: one decoder writes captions for images, and draws images for captions.

    python -m vlm_jax.main --config=siglip_tiny
    python -m vlm_jax.main --config=fsq_tiny:shapes
    python -m vlm_jax.main --config=siglip_tiny --config.seed=1 --workdir=workdirs/siglip_judge
    python -m vlm_jax.main --config=chameleon_tiny

The second makes the tokens of images, 4 x 4 of 1000 codes, and the first helps it; the third says what was drawn, and
has seen nothing of the others. Runs elsewhere are named by `--config.init_from.tokenizer=WORKDIR` and
`--bind=Drawn.classifier=WORKDIR`. Norms of queries and keys and the z-loss are Chameleon's (2024, arXiv:2405.09818,
section 2.3), the weight of images' tokens is Emu3's (2024, arXiv:2409.18869); all other numbers are chosen. What it
reaches is in docs/tokenizers.md.
"""

from vlm_jax.configs._fused import SHORT, tiny

VARIANTS = SHORT


def get_config(variant: str = ""):
    return tiny(variant)
