"""What recipes at full size share: pairs from Parquet, an evaluator that needs no files, and the `smoke` variant."""

from vlm_jax.config import bind, late

VARIANTS = {
    "full": "the recipe; needs --config.tokenizer=PATH and --config.data.source.path=FILES (Parquet)",
    "smoke": "the same model on any machine: small batch, 4 steps, drawn shapes, byte tokenizer; default on a CPU",
}


def pairs():
    """Image-text pairs in Parquet files with the columns `image` and `text`."""
    return bind(
        "data.pipeline.Pipeline",
        source=bind("data.sources.parquet.Parquet", path="data/*.parquet", text_column="text"),
        image=late("image"),
        text=late("text"),
        threads=16,
    )


def zero_shot_shapes(image_size: int):
    """Drawn shapes by colour and shape; bind evaluators of labelled images of your own the same way."""
    shapes = dict(size=480, image_size=image_size, split="test", scenes="single", pairs="all")
    return bind(
        "evaluate.zero_shot.ZeroShot",
        source=bind("data.sources.shapes.Shapes", **shapes),
        image=late("image"),
        text=late("text"),
        templates=("a picture of a {}",),
    )


def captions_shapes(image_size: int):
    """Captions of drawn shapes; bind evaluators of captioned images of your own the same way."""
    shapes = dict(size=480, image_size=image_size, split="test")
    return bind(
        "evaluate.captions.Captions",
        source=bind("data.sources.shapes.Shapes", **shapes),
        image=late("image"),
        text=late("text"),
    )


def smoke(config, *, image_size: int, batch_size: int):
    """Changes a recipe so that a laptop takes a few steps of the same model in about a minute."""
    config.total_examples = 4 * batch_size
    config.batch_size = batch_size
    config.tokenizer = "bytes"
    config.log_steps = 1
    config.data.source = bind("data.sources.shapes.Shapes", size=1000, image_size=image_size)
    config.data.threads = 1
    for evaluator in config.evals.values():
        evaluator.source.size = 16
        evaluator.batch_size = 16
    config.optimizer.schedule.warmup_steps = 1


def plain(config):
    """No stem, pooling by attention and by the last token, no head on images: what other libraries have of SigLIP."""
    config.task.model.image.update(stem_channels=(), patch_size=4, pool="map", out_dim=None)
    config.task.model.text.update(pool="last", mask_padding=False, out_dim=config.task.model.image.width)


# Sizes of `siglip_tiny`'s image tower, for recipes that take over its weights or its shape.
TINY_TOWER = dict(image_size=32, patch_size=8, stem_channels=(24, 48, 96), width=96, depth=3, mlp_dim=384, num_heads=3)


def tiny_tower():
    """The image tower, as a run of `siglip_tiny` has it at `#image`."""
    return bind("models.vit.ViT", **TINY_TOWER, pool="gap", out_dim=128, dtype="float32")
