"""Finite scalar quantisation on CIFAR-10 on a CPU: 576 bits for an image, one of 8 x 8 x 8 codes at 8 x 8 places.

    python -m vlm_jax.main --config=fsq_tiny --config.data.source.path='cifar10/train-*.parquet' \\
        --config.evals.reconstructions.source.path='cifar10/test-*.parquet'

The bottleneck is that of Mentzer et al. (2023, arXiv:2309.15505), with no codebook to learn and no loss of its own;
their levels for about as many codes are (8, 6, 5), and (8, 8, 8) is chosen to have the bits of `vqvae_tiny`. What it
reaches is in docs/tokenizers.md.

`shapes` makes few and rich tokens, which a small decoder learns faster: one of 1000 codes at 4 x 4 places (their levels
for that many are these). A run of `siglip_tiny` compares the images too, without which small shapes lose their corners:
`--config.init_from.perceptual='WORKDIR#image'` says where it is.
"""

from vlm_jax.configs._autoencoders import SHAPES, TINY, tiny

from vlm_jax.config import bind

VARIANTS = TINY | SHAPES


def get_config(variant: str = ""):
    levels = (8, 5, 5, 5) if variant == "shapes" else (8, 8, 8)
    return tiny(variant, bind("models.bottlenecks.scalar.FSQ", levels=levels))
