"""What recipes with texts and images as tokens of one vocabulary share: the task, and small ones on drawn shapes."""

from vlm_jax.configs import fsq_tiny

from vlm_jax.config import bind, late

SHORT = {"short": "20 steps with a tokenizer that nobody trained, to see that everything works"}
TOKENIZER, CLASSIFIER = "workdirs/fsq_tiny-shapes", "workdirs/siglip_judge"
LENGTH, ANSWER = 32, 10  # captions of one shape have at most 7 tokens
GRID, CODES = 4, 1000  # of `fsq_tiny:shapes`


def tokenizer():
    """The autoencoder of `fsq_tiny:shapes`."""
    return fsq_tiny.get_config("shapes").task.model


def task(decoder, *, length: int, tokenizer=None, **options):
    """Predicting the next token of documents."""
    return bind(
        "tasks.early_fusion.EarlyFusion",
        length=length,
        fusion=late("fusion"),
        bos_id=late("bos_id"),
        end_id=late("eos_id"),
        pad_id=late("pad_id"),
        model=bind("models.chameleon.Chameleon", decoder=decoder, tokenizer=tokenizer),
        **options,
    )


def tiny(variant: str, *, sentinels: int = 0, **fusion):
    """Captions of single shapes and their images, in either order, by a decoder of 4 x 128 and a trained tokenizer."""
    short = variant == "short"
    config = bind("experiment.Experiment")
    config.total_examples = 20 * 16 if short else 6000 * 64
    config.batch_size = 16 if short else 64
    config.tokenizer = "train:96"
    config.evaluate_percent = 50
    config.checkpoint_percent = 25
    config.init_from = None if short else dict(tokenizer=TOKENIZER)

    config.image = bind("data.image.ImageTransform", size=32)
    config.text = bind("data.text.Text", tokenizer=late("tokenizer"), length=LENGTH, bos=True, pad="pad")
    config.fusion = bind(
        "data.fusion.Fusion",
        vocabulary=bind("data.fused_vocabulary.Vocabulary", text=late("vocab_size"), codes=CODES, sentinels=sentinels),
        grid=GRID,
        pictures=True,
        **fusion,
    )
    config.data = bind(
        "data.pipeline.Pipeline",
        source=_shapes(60_000),
        image=late("image"),
        text=late("text"),
        fusion=late("fusion"),
        cache=True,
        threads=1,
    )
    sizes = dict(width=128, depth=4, mlp_dim=344, num_heads=4, num_kv_heads=4, qk_norm="layer_per_head")
    options = dict(dtype="float32", scan=False, remat="none", init_style="gpt")
    decoder = bind("models.decoder.LanguageModel", vocab_size=late("fused_size"), length=2 * LENGTH, **sizes, **options)
    config.task = task(
        decoder,
        length=LENGTH,
        tokenizer=tokenizer(),
        z_loss=1e-5,
        image_weight=0.5,
        sampling=bind("generate.Sampling", max_tokens=ANSWER),
        drawing=bind("generate.Sampling", temperature=0.8, top_p=0.9),
        guidance=3.0,
    )
    config.optimizer = bind(
        "optim.Optimizer",
        name="adamw",
        learning_rate=1.5e-3,
        b2=0.95,
        weight_decay=1e-2,
        clip_norm=1.0,
        freeze=("tokenizer/.*",),
        schedule=bind("optim.schedules.Cosine", warmup_steps=5 if short else 100, final=0.02),
    )
    common = dict(image=late("image"), text=late("text"))
    drawn = dict(**common, fusion=late("fusion"), classifier=None if short else CLASSIFIER)
    config.evals = dict(
        captions=bind("evaluate.captions.Captions", source=_shapes(16 if short else 400, split="test"), **common),
        drawn_seen=bind("evaluate.drawn.Drawn", source=_shapes(16 if short else 240, split="test"), **drawn),
        drawn_held_out=bind(
            "evaluate.drawn.Drawn", source=_shapes(8 if short else 80, split="test", pairs="held_out"), **drawn
        ),
    )
    return config


def _shapes(size: int, **options):
    return bind("data.sources.shapes.Shapes", size=size, image_size=32, scenes="single", **options)
