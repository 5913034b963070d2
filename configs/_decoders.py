"""What recipes of language models share, with images or without: packed conversations, an evaluator, `smoke`."""

from vlm_jax.config import bind, late

VARIANTS = {
    "full": "the recipe; needs --config.tokenizer=PATH and conversations: see --config.data.source.path",
    "smoke": "the same program with few, narrow layers on any machine: 4 steps, drawn shapes, byte tokenizer; default "
    "on a CPU",
}
ANSWER = 128  # tokens that it may write
SHORT = 256  # of the smoke variant
NARROW = dict(width=128, depth=2, mlp_dim=256, num_heads=4, num_kv_heads=2)


def conversations(*, length: int, images=None, size: int = 224, **window):
    """An experiment without task, optimizer and durations. `size` is that of images, of one size or for a teacher.

    `window` says how many conversations (`examples`) become how many `rows`, with `per_row` at most. What finds no room
    in them is left out, and counted in `packing/left_out`.
    """
    config = bind("experiment.Experiment")
    config.tokenizer = None
    config.log_steps = 10
    config.checkpoint_steps = 1000
    config.evaluate_steps = 5000
    config.image = bind("data.image.ImageTransform", size=size)
    config.text = bind("data.text.Text", tokenizer=late("tokenizer"), length=length, canonicalise="none", pad="pad")
    config.conversations = bind("data.conversations.Conversations", template="plain", images=images, **window)
    config.data = bind(
        "data.pipeline.Pipeline",
        source=bind("data.sources.conversations.Messages", path="data/*.parquet"),
        image=late("image"),
        text=late("text"),
        conversations=late("conversations"),
        threads=16,
    )
    config.evals = dict(
        questions=bind(
            "evaluate.answers.Answers",
            source=questions(480, size, told=images is None, split="test"),
            conversations=late("conversations"),
            image=late("image"),
            text=late("text"),
            length=length // 2,
            batch_size=64,
        )
    )
    return config


def questions(count: int, image_size: int, *, told: bool, **which):
    """Questions about drawn shapes, or where they are `told` about sentences; bind your own the same way."""
    shapes = bind("data.sources.shapes.Shapes", size=count, image_size=image_size, **which)
    return bind("data.sources.shapes.ShapesQuestions", shapes=shapes, per_scene=1, described=told)


def task(model, *, length: int, answer: int = ANSWER):
    """Predicting the next token of conversations; `model` has room for `length` and `answer` tokens."""
    return bind(
        "tasks.language_model.LanguageModeling",
        length=length,
        conversations=late("conversations"),
        end_id=late("end_id"),
        pad_id=late("pad_id"),
        sampling=bind("generate.Sampling", max_tokens=answer),
        model=model,
    )


def smoke(config, *, rows: int, image_size: int = 56):
    """Changes a recipe so that a laptop takes a few steps of it in about a minute.

    Stages keep what they train, and lose their data and lengths.
    """
    config.batch_size = rows
    config.conversations.update(examples=2 * rows, rows=rows, per_row=max(2, config.conversations.per_row))
    total = dict(total_steps=4, total_examples=None)
    config.update(total)
    for stage in config.get("stages", {}).values():
        for name in set(stage) - {"optimizer"}:
            del stage[name]
        if "schedule" in stage.optimizer:
            del stage.optimizer["schedule"]
        stage.update(total)
    config.tokenizer = "bytes"
    config.log_steps = 1
    config.image.size = image_size
    config.text.length = config.task.length = SHORT
    config.evals.questions.length = SHORT // 2
    config.mesh = bind("mesh.Layout")
    told = config.conversations.images is None
    config.data.source = questions(1000, image_size, told=told)
    config.data.threads = 1
    config.evals.questions.source = questions(16, image_size, told=told, split="test")
    config.evals.questions.batch_size = 16
    config.task.sampling.max_tokens = 8
    config.task.model.decoder.update(length=SHORT + ANSWER, vocab_size=late("vocab_size"), **NARROW)
    config.optimizer.schedule = bind("optim.schedules.Cosine", warmup_steps=1)
