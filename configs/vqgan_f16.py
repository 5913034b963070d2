"""VQGAN's networks at f16 (Esser et al. 2020, arXiv:2012.09841): 16 x 16 of 1,024 codes for 256 pixels.

Theirs: the networks (128 channels times 1, 1, 2, 2, 4, two blocks, attention at 16 x 16), 1,024 codes of 256 numbers,
commitment weight 0.25, the distance L1, Adam with betas 0.5 and 0.9 and a learning rate of 4.5e-6 for each image of a
batch. The perceptual and the adversarial term are left out as yet, so it ends after 250,000 steps, where their
discriminator begins. Chosen: batches of 96, a codebook of running means with revival in place of a trained one, random
square crops of up to 3/4 of the area, and bfloat16. `smoke` has 64 pixels. Its figures have still to be measured.
"""

from vlm_jax.configs._autoencoders import FULL, full

from vlm_jax.config import bind

VARIANTS = FULL

BATCH_SIZE = 96


def get_config(variant: str = ""):
    network = dict(dim=256, widths=(128, 128, 256, 256, 512), blocks=2, attention=(4,))
    codes = dict(size=1024, dim=256, beta=0.25, decay=0.99, revive=1.0)
    model = bind(
        "models.autoencoder.Autoencoder",
        encoder=bind("models.codecs.VqganEncoder", **network),
        bottleneck=bind("models.bottlenecks.vq.VectorQuantiser", **codes),
        decoder=bind("models.codecs.VqganDecoder", **network),
        image_size=256,
    )
    config = full(variant, model, batch_size=BATCH_SIZE, steps=250_000, reconstruction="l1")
    config.image.update(random_resized_crop=(0.75, 1.0), aspect=(1.0, 1.0))
    config.optimizer = bind(
        "optim.Optimizer",
        name="adamw",
        learning_rate=4.5e-6 * BATCH_SIZE,
        b1=0.5,
        b2=0.9,
        schedule=bind("optim.schedules.Constant"),
    )
    return config
