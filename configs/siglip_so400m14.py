"""SigLIP So400m/14 at 224 pixels, the shape-optimised tower of Alabdulmohsin et al. 2023 (arXiv 2305.13035).

See `siglip_b16` for where the other numbers come from. Its state needs more than one small chip's memory: shard it with
`--config.mesh.fsdp=N`.
"""

from vlm_jax.configs._shared import VARIANTS as VARIANTS
from vlm_jax.configs.siglip_b16 import siglip


def get_config(variant: str = ""):
    return siglip(variant, size="So400m", patch_size=14, image_size=224, scan=True, smoke_batch=2)
