"""A VQ-VAE of CIFAR-10 on a CPU: 576 bits for an image, one of 512 codes at each of 8 x 8 places.

    python -m vlm_jax.main --config=vqvae_tiny --config.data.source.path='cifar10/train-*.parquet' \\
        --config.evals.reconstructions.source.path='cifar10/test-*.parquet'

512 codes and running means with decay 0.99 are the paper's (van den Oord et al. 2017, arXiv:1711.00937, section 4.2,
appendix A.1). Its commitment weight of 0.25 goes with a squared error over the variance of the data; that of CIFAR-10's
pixels in [0, 1] is 0.06, and 0.015 the same weight beside the error itself. The start by k-means, the revival of codes
used less than once a batch (8 is the mean), the networks and the schedule are chosen. Without start and revival:
`--config.task.model.bottleneck.kmeans=0 --config.task.model.bottleneck.revive=0.0`. What it reaches is in
docs/tokenizers.md.
"""

from vlm_jax.configs._autoencoders import TINY, tiny

from vlm_jax.config import bind

VARIANTS = TINY | {"gan": "`short` with judges: the features of a random encoder, and a discriminator after 30 steps"}


def get_config(variant: str = ""):
    codes = dict(size=512, dim=16, beta=0.015, decay=0.99, revive=1.0, kmeans=10)
    bottleneck = bind("models.bottlenecks.vq.VectorQuantiser", **codes)
    if variant != "gan":
        return tiny(variant, bottleneck)
    config = tiny("short", bottleneck)
    sees = dict(width=32, depth=2, num_heads=2, patch_size=4, image_size=32, pool="gap", dtype="float32")
    patches = dict(width=16, layers=2, groups=8, dtype="float32")
    config.task.update(
        perceptual=bind("tasks.judges.Perceptual", image=bind("models.vit.ViT", **sees), layers=(0, 1), weight=0.1),
        adversary=bind(
            "tasks.judges.Adversary", discriminator=bind("models.discriminator.PatchDiscriminator", **patches), start=30
        ),
    )
    config.optimizer.freeze = ("perceptual/.*",)
    return config
