"""SigLIP on CIFAR-10 from pixels and class names, on a CPU: real images, captions "a photo of a CLASS".

    python -m vlm_jax.main --config=siglip_cifar10 --config.data.source.path='cifar10/train-*.parquet' \\
        --config.evals.zero_shot.source.path='cifar10/test-*.parquet'

Any Parquet files of images with class names will do: name the columns by `data.source.image_column` and
`class_name_column`. With ten captions a batch is full of equal ones, which count as positives; without that, a tenth
of the negatives would be false.
"""

import math

from vlm_jax.configs._shared import plain

from vlm_jax.config import bind, late

VARIANTS = {
    "long": "12 epochs instead of 3",
    "plain": "SigLIP's own architecture (linear patches, pooled as published), which other libraries can load",
}


def get_config(variant: str = ""):
    def parquet(path: str):
        return bind(
            "data.sources.parquet.Parquet", path=path, class_name_column="class_name", templates=("a photo of a {}",)
        )

    config = bind("experiment.Experiment")
    config.total_epochs = 12 if variant == "long" else 3
    config.batch_size = 64
    config.tokenizer = "train:64"
    config.evaluate_percent = 50
    config.checkpoint_percent = 25

    config.image = bind("data.image.ImageTransform", size=32, pad_crop=4, flip=True)
    config.text = bind("data.text.Text", tokenizer=late("tokenizer"), length=8)
    config.data = bind(
        "data.pipeline.Pipeline",
        source=parquet("cifar10/train-*.parquet"),
        image=late("image"),
        text=late("text"),
        cache=True,
        threads=1,
    )

    image = dict(
        image_size=32,
        patch_size=8,
        stem_channels=(24, 48, 128),
        width=128,
        depth=4,
        mlp_dim=512,
        num_heads=4,
        pool="gap",
    )
    text = dict(length=8, vocab_size=late("vocab_size"), pad_id=late("pad_id"), pool="mean", mask_padding=True)
    config.task = bind(
        "tasks.contrastive.Contrastive",
        model=bind(
            "models.two_tower.TwoTower",
            image=bind("models.vit.ViT", **image, out_dim=128, dtype="float32"),
            text=bind(
                "models.text.TextTransformer",
                **text,
                width=64,
                depth=1,
                mlp_dim=256,
                num_heads=2,
                out_dim=128,
                dtype="float32",
            ),
            logit_scale_init=math.log(10),
            logit_bias_init=-10.0,
        ),
        equal_captions="positives",
    )
    config.optimizer = bind(
        "optim.Optimizer",
        name="adamw",
        learning_rate=1e-3,
        b2=0.95,
        weight_decay=5e-2,
        clip_norm=1.0,
        learning_rate_mults=(("logit_(scale|bias)", 20.0),),
        schedule=bind("optim.schedules.Cosine", warmup_steps=200, final=0.02),
    )
    config.evals = dict(
        zero_shot=bind(
            "evaluate.zero_shot.ZeroShot",
            source=parquet("cifar10/test-*.parquet"),
            image=late("image"),
            text=late("text"),
            templates=("a photo of a {}",),
        )
    )
    if variant == "plain":
        plain(config)
    return config
