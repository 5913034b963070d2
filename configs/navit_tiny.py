"""NaViT in miniature on drawn shapes: images of two resolutions, packed five to a row with their captions, on a CPU.

Rows of 64 patches hold images of 16 and 9 patches, of which a tenth and none are dropped, factorised positions, and
per-image pooling (Dehghani et al. 2023, arXiv:2307.06304); the loss is SigLIP's over all pairs of the batch.
Evaluation is dense, on square images, with the same parameters. `siglip_tiny` says why the scale learns faster, and why
patches without convolutions, as packing needs them, learn colours long before shapes.
"""

import math

from vlm_jax.config import bind, late

VARIANTS = {
    "short": "60 steps, to see that everything works",
}


def get_config(variant: str = ""):
    image = dict(image_size=32, patch_size=8, posemb="factorised", width=96, depth=3, mlp_dim=384, num_heads=3)
    image |= dict(pool="map", out_dim=128, dtype="float32")
    text = dict(length=24, vocab_size=late("vocab_size"), pad_id=late("pad_id"), eos_id=late("eos_id"))
    text |= dict(
        pool="mean", mask_padding=True, width=64, depth=2, mlp_dim=256, num_heads=2, out_dim=128, dtype="float32"
    )
    shapes = dict(image_size=32, split="test", scenes="single")

    config = bind("experiment.Experiment")
    config.total_examples = 224_000
    config.batch_size = 12
    config.tokenizer = "train:96"
    config.evaluate_percent = 25
    config.checkpoint_percent = 25

    config.image = bind("data.image.ImageTransform", size=32)
    config.text = bind("data.text.Text", tokenizer=late("tokenizer"), length=24)
    config.packing = bind(
        "data.packing.Packing",
        patch_size=8,
        tokens=64,
        images=8,
        text_tokens=64,
        examples=20,
        rows=4,
        budgets=(9, 16),
        drop=(0.0, 0.1),
        smallest=9,
        longest=4,
    )
    config.data = bind(
        "data.pipeline.Pipeline",
        source=bind("data.sources.shapes.Shapes", size=60_000, image_size=32),
        image=late("image"),
        text=late("text"),
        packing=late("packing"),
        cache=True,
        threads=1,
    )

    config.task = bind(
        "tasks.contrastive.Contrastive",
        model=bind(
            "models.two_tower.TwoTower",
            image=bind("models.vit.ViT", **image),
            text=bind("models.text.TextTransformer", **text),
            logit_scale_init=math.log(10),
            logit_bias_init=-10.0,
        ),
        packing=late("packing"),
        equal_captions="positives",
    )
    config.optimizer = bind(
        "optim.Optimizer",
        learning_rate=2e-3,
        b2=0.95,
        weight_decay=1e-2,
        clip_norm=1.0,
        learning_rate_mults=(("logit_(scale|bias)", 20.0),),
        schedule=bind("optim.schedules.Cosine", warmup_steps=100, final=0.02),
    )

    evaluator = dict(image=late("image"), text=late("text"), templates=("a picture of a {}",))
    config.evals = dict(
        zero_shot_seen=bind(
            "evaluate.zero_shot.ZeroShot",
            source=bind("data.sources.shapes.Shapes", **shapes, size=800),
            **evaluator,
        ),
    )
    if variant == "short":
        config.total_examples = 60 * 60
        config.optimizer.schedule.warmup_steps = 10
    return config
