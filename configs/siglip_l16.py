"""SigLIP ViT-L/16 at 256 pixels; see `siglip_b16` for where its numbers come from."""

from vlm_jax.configs._shared import VARIANTS as VARIANTS
from vlm_jax.configs.siglip_b16 import siglip


def get_config(variant: str = ""):
    return siglip(variant, size="L", patch_size=16, image_size=256, scan=True, smoke_batch=2)
