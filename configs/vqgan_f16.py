"""VQGAN's networks at f16 (Esser et al. 2020, arXiv:2012.09841): 16 x 16 of 1,024 codes for 256 pixels.

Theirs: the networks (128 channels times 1, 1, 2, 2, 4, two blocks, attention at 16 x 16), 1,024 codes of 256 numbers,
commitment weight 0.25, the distance L1 and as much of a perceptual one, from step 250,001 on a patch discriminator with
0.8 of its adaptive weight, Adam with betas 0.5 and 0.9 and a learning rate of 4.5e-6 for each image of a batch, for
both sides. Chosen: batches of 96, 500,000 steps, the features of four layers of CLIP's B/16 in place of LPIPS's trained
VGG, a codebook of running means with revival in place of a trained one, GroupNorm in the discriminator, random square
crops of up to 3/4 of the area, and bfloat16. `smoke` has 64 pixels, random features, and a discriminator from the third
step on. Its figures have still to be measured.
"""

from vlm_jax.configs._autoencoders import FULL, full
from vlm_jax.configs.llava_7b import PIXELS

from vlm_jax.config import bind

VARIANTS = FULL

BATCH_SIZE = 96
CLIP = dict(patch_bias=False, pre_norm=True, pool="cls", activation="quick_gelu", norm_eps=1e-5)


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
    smoke = variant == "smoke"
    config = full(variant, model, batch_size=BATCH_SIZE, steps=500_000, reconstruction="l1")
    sees = dict(width=64, depth=2, num_heads=4, image_size=64) if smoke else dict(size="B", image_size=224)
    config.task.perceptual = bind(
        "tasks.judges.Perceptual",
        image=bind("models.vit.ViT", patch_size=16, **sees, **CLIP),
        layers=(0, 1) if smoke else (2, 5, 8, 11),
        **PIXELS,
    )
    config.task.adversary = bind("tasks.judges.Adversary", start=2 if smoke else 250_001)
    if not smoke:
        config.init_from = dict(perceptual="hf:openai/clip-vit-base-patch16#image")
        config.init_from_skip = ("perceptual/head/.*",)
    config.image.update(random_resized_crop=(0.75, 1.0), aspect=(1.0, 1.0))
    config.optimizer = bind(
        "optim.Optimizer",
        name="adamw",
        learning_rate=4.5e-6 * BATCH_SIZE,
        b1=0.5,
        b2=0.9,
        schedule=bind("optim.schedules.Constant"),
        freeze=("perceptual/.*",),
    )
    return config
