"""What tiny recipes share that answer questions about drawn shapes: data, a small decoder, optimizer, evaluator."""

from vlm_jax.config import bind, late

LENGTH = 40


def decoder(**changes):
    """Two layers of 96."""
    sizes = dict(width=96, depth=2, mlp_dim=256, num_heads=4, num_kv_heads=4, length=LENGTH + 8)
    options = dict(vocab_size=late("vocab_size"), dtype="float32", scan=False, remat="none", init_style="jax")
    return bind("models.decoder.LanguageModel", **{**sizes, **options, **changes})


def questions(images, *, short: bool, length: int = LENGTH, turns: int = 1):
    """An experiment without its task: conversations of so many questions, 480,000 of which are an epoch."""
    shapes = dict(image_size=32)
    config = bind("experiment.Experiment")
    config.total_examples = 60 * 64 if short else 180_000
    config.batch_size = 64
    config.tokenizer = "train:96"
    config.evaluate_percent = 50
    config.checkpoint_percent = 25

    config.image = bind("data.image.ImageTransform", size=32)
    config.text = bind("data.text.Text", tokenizer=late("tokenizer"), length=length, pad="pad")
    config.conversations = bind("data.conversations.Conversations", template="plain", images=images)
    source = bind("data.sources.shapes.Shapes", size=60_000, scenes="uniform", **shapes)
    config.data = bind(
        "data.pipeline.Pipeline",
        source=bind("data.sources.shapes.ShapesQuestions", shapes=source, per_scene=8 // turns, turns=turns),
        image=late("image"),
        text=late("text"),
        conversations=late("conversations"),
        threads=1,
    )
    config.optimizer = bind(
        "optim.Optimizer",
        name="adamw",
        learning_rate=1.5e-3,
        b2=0.95,
        weight_decay=1e-2,
        clip_norm=1.0,
        schedule=bind("optim.schedules.Cosine", warmup_steps=10 if short else 100, final=0.02),
    )
    held_out = bind("data.sources.shapes.Shapes", size=40 if short else 700, split="val", pairs="all", **shapes)
    config.evals = dict(
        questions=bind(
            "evaluate.answers.Answers",
            source=bind("data.sources.shapes.ShapesQuestions", shapes=held_out, per_scene=None),
            conversations=late("conversations"),
            image=late("image"),
            text=late("text"),
        )
    )
    return config
