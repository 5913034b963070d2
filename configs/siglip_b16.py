"""SigLIP ViT-B/16: sigmoid loss on image-text pairs (Zhai et al. 2023, arXiv 2303.15343).

Loss, initial scale and bias, batch of 32k, b2 = 0.95 and 32k pieces of lower-cased text padded to 64 are the paper's
(sections 3.2, 4.2 and 4.6). It does not print its whole schedule; learning rate, weight decay, clipping, 20k steps of
warm-up and 40B examples are those of its successor with the same towers (Tschannen et al. 2025, arXiv 2502.14786,
section 2).
"""

import math

from vlm_jax.configs._shared import VARIANTS as VARIANTS
from vlm_jax.configs._shared import pairs, smoke, zero_shot_shapes

from vlm_jax.config import bind, late


def get_config(variant: str = ""):
    return siglip(variant, size="B", patch_size=16, image_size=224)


def siglip(variant: str, *, size: str, patch_size: int, image_size: int, scan: bool = False, smoke_batch: int = 8):
    """The recipe at one size of both towers; the text tower has the image tower's depth and width."""
    config = bind("experiment.Experiment")
    config.total_examples = 40_000_000_000
    config.batch_size = 32_768
    config.tokenizer = None
    config.log_steps = 50
    config.checkpoint_steps = 1000
    config.evaluate_steps = 5000

    config.image = bind("data.image.ImageTransform", size=image_size, resize="squash", interpolation="bilinear")
    config.text = bind(
        "data.text.Text", tokenizer=late("tokenizer"), length=64, canonicalise="siglip", eos="sticky", pad="eos"
    )
    config.data = pairs()

    # What scanned layers keep is copied into a stack and out of it: on TPUs computing it again is faster, and smaller.
    # So are hidden units of an MLP that never reach main memory. On GPUs "none" is the fastest, where it fits.
    remat = "block" if scan else "mlp"
    tower = dict(size=size, pool="map", scan=scan, remat=remat, activation="gelu_tanh", norm_eps=1e-6)
    config.task = bind(
        "tasks.contrastive.Contrastive",
        objective="sigmoid",
        model=bind(
            "models.two_tower.TwoTower",
            image=bind("models.vit.ViT", **tower, patch_size=patch_size, image_size=image_size),
            text=bind(
                "models.text.TextTransformer",
                **tower | dict(pool="last"),
                vocab_size=32_000,
                length=64,
                out_dim=width(size),
            ),
            logit_scale_init=math.log(10),
            logit_bias_init=-10.0,
        ),
    )
    config.optimizer = bind(
        "optim.Optimizer",
        name="adamw",
        learning_rate=1e-3,
        b2=0.95,
        weight_decay=0.1,  # 1e-4 a step where decay is not multiplied by the learning rate, as the paper has it
        clip_norm=1.0,
        mu_dtype="bfloat16",
        schedule=bind("optim.schedules.Cosine", warmup_steps=20_000),
    )

    config.evals = dict(zero_shot_shapes=zero_shot_shapes(image_size))
    if variant == "smoke":
        smoke(config, image_size=image_size, batch_size=smoke_batch)
    return config


def width(size: str) -> int:
    """Of the image tower, which the text tower's head must match."""
    return {"B": 768, "L": 1024, "So400m": 1152}[size]
