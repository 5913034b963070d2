"""DALL-E's discrete VAE (Ramesh et al. 2021, arXiv:2102.12092, appendix A.2): 32 x 32 of 8,192 codes for 256 pixels.

The paper's: the networks (n_hid 256, two blocks in each of four groups), the logit-Laplace density, the KL divergence's
weight from 0 to 6.6 in 5,000 steps, the temperature from 1 to 1/16 in 150,000, the learning rate from 1e-4 to 1.25e-6
along a cosine of 1,200,000, AdamW with decay 1e-4, batches of 512, an average of the weights with 0.999, crops of up to
8/9 of the side, mirrored. Its weight is beside sums over an image: beside a mean over 256 x 256 x 3 subpixels it is
6.6/192 for each of 1,024 places. The paper trains on for 3,000,000 steps in all at the last rate; this recipe ends
where the cosine does. The dtype, bfloat16, and `smoke`'s 64 pixels are chosen. Its figures have still to be measured.
"""

from vlm_jax.configs._autoencoders import FULL, full

from vlm_jax.config import bind

VARIANTS = FULL


def get_config(variant: str = ""):
    ramp = lambda *ends, steps: bind("models.bottlenecks.base.Ramp", start=ends[0], end=ends[1], steps=steps)
    model = bind(
        "models.autoencoder.Autoencoder",
        encoder=bind("models.codecs.DalleEncoder", hidden=256, blocks=2),
        bottleneck=bind(
            "models.bottlenecks.gumbel.Gumbel",
            size=8192,
            temperature=ramp(1.0, 1 / 16, steps=150_000),
            beta=ramp(0.0, 6.6 / 192, steps=5000),
        ),
        decoder=bind("models.codecs.DalleDecoder", dim=128, hidden=256, blocks=2, channels=6),
        image_size=256,
    )
    config = full(variant, model, batch_size=512, steps=1_200_000, reconstruction="logit_laplace")
    config.image.update(random_resized_crop=((8 / 9) ** 2, 1.0), aspect=(1.0, 1.0))
    config.ema = 0.999
    config.evals.reconstructions.weights = "ema"
    config.optimizer = bind(
        "optim.Optimizer",
        name="adamw",
        learning_rate=1e-4,
        weight_decay=1e-4,
        schedule=bind("optim.schedules.Cosine", final=0.0125),
    )
    return config
