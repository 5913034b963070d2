"""A variational autoencoder of CIFAR-10 on a CPU: 256 numbers for the 3,072 of an image, 4 at each of 8 x 8 places.

    python -m vlm_jax.main --config=vae_tiny --config.data.source.path='cifar10/train-*.parquet' \\
        --config.evals.reconstructions.source.path='cifar10/test-*.parquet'

The bottleneck is Kingma and Welling's (2013, arXiv:1312.6114); the networks, the weight of the KL divergence, which is
far below that of an evidence bound, and the schedule are chosen. What it reaches is in docs/tokenizers.md.
"""

from vlm_jax.configs._autoencoders import TINY, tiny

from vlm_jax.config import bind

VARIANTS = TINY


def get_config(variant: str = ""):
    config = tiny(variant, bind("models.bottlenecks.continuous.Gaussian", dim=4, beta=1e-6))
    config.task.model.encoder.blocks, config.task.model.decoder.blocks = 2, 3  # PCA is harder to beat than k-means
    if variant != "short":
        config.total_examples = 3600 * 64
    return config
