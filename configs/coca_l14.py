"""CoCa ViT-L/14: `coca_b32` with the larger image tower, text tower and decoder 768 wide, as open_clip has it."""

from vlm_jax.configs._shared import VARIANTS as VARIANTS
from vlm_jax.configs.coca_b32 import coca


def get_config(variant: str = ""):
    return coca(variant, size="L", patch_size=14, width=768, num_heads=12)
