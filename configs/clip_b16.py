"""CLIP ViT-B/16; see `clip_b32` for where its numbers come from (Radford et al. 2021, table 20)."""

from vlm_jax.configs._shared import VARIANTS as VARIANTS
from vlm_jax.configs.clip_b32 import clip


def get_config(variant: str = ""):
    return clip(variant, patch_size=16)
