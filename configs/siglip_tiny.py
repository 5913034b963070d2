"""SigLIP in miniature on drawn shapes: a CPU learns zero-shot classification of colour and shape in minutes.

An 8x8 linear patch stem stays at chance on shape for 100k images; three stride-2 convolutions do not. Scale and bias
start at the paper's values (Zhai et al. 2023, section 3.2) and need 20 times the learning rate to move in so few steps.
Captions repeat within a batch, so equal ones count as positives.
"""

import math

from vlm_jax.configs._shared import plain, tiny_tower

from vlm_jax.config import bind, late

SHORT = {"short": "60 steps, to see that everything works"}
VARIANTS = SHORT | {
    "plain": "SigLIP's own architecture (linear patches, pooled as published), which other libraries can load"
}


def get_config(variant: str = ""):
    text = dict(length=24, vocab_size=late("vocab_size"), pad_id=late("pad_id"), pool="mean", mask_padding=True)
    shapes = dict(image_size=32, split="test", scenes="single")
    prompts = ("a picture of a {}",)

    config = bind("experiment.Experiment")
    config.total_examples = 224_000
    config.batch_size = 64
    config.tokenizer = "train:96"
    config.evaluate_percent = 25
    config.checkpoint_percent = 25

    config.image = bind("data.image.ImageTransform", size=32)
    config.text = bind("data.text.Text", tokenizer=late("tokenizer"), length=24)
    config.data = bind(
        "data.pipeline.Pipeline",
        source=bind("data.sources.shapes.Shapes", size=60_000, image_size=32),
        image=late("image"),
        text=late("text"),
        cache=True,
        threads=1,
    )

    config.task = bind(
        "tasks.contrastive.Contrastive",
        model=bind(
            "models.two_tower.TwoTower",
            image=tiny_tower(),
            text=bind(
                "models.text.TextTransformer",
                **text,
                width=64,
                depth=2,
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
        learning_rate=2e-3,
        b2=0.95,
        weight_decay=1e-2,
        clip_norm=1.0,
        learning_rate_mults=(("logit_(scale|bias)", 20.0),),
        schedule=bind("optim.schedules.Cosine", warmup_steps=100, final=0.02),
    )

    evaluator = dict(image=late("image"), text=late("text"))
    zero_shot = dict(**evaluator, templates=prompts)
    config.evals = dict(
        zero_shot_seen=bind(
            "evaluate.zero_shot.ZeroShot", source=bind("data.sources.shapes.Shapes", **shapes, size=2400), **zero_shot
        ),
        zero_shot_held_out=bind(
            "evaluate.zero_shot.ZeroShot",
            source=bind("data.sources.shapes.Shapes", **shapes, size=800, pairs="held_out"),
            **zero_shot,
        ),
        retrieval=bind(
            "evaluate.retrieval.Retrieval",
            source=bind("data.sources.shapes.Shapes", image_size=32, split="test", size=500),
            **evaluator,
        ),
    )
    if variant == "plain":
        plain(config)
    if variant == "short":
        config.total_examples = 60 * 64
        config.optimizer.schedule.warmup_steps = 10
    return config
