"""What recipes of autoencoders share: small networks on CIFAR-10, images alone as data, and reconstructions of them."""

from vlm_jax.configs._shared import tiny_tower

from vlm_jax.config import bind, late

JUDGE = "workdirs/siglip_tiny#image"
TINY = {"short": "60 steps on drawn shapes, to see that everything works; it needs no files"}
SHAPES = {"shapes": "on drawn shapes, beside a trained `siglip_tiny`; decoders of images as tokens take it"}
FULL = {
    "full": "the recipe; needs --config.data.source.path=FILES (Parquet)",
    "smoke": "the same model on any machine: small batch, 4 steps, drawn shapes of 64 pixels; default on a CPU",
}


def tiny(variant: str, bottleneck):
    """An autoencoder of CIFAR-10 on a CPU: 64 places of 4 x 4 pixels stand for an image.

    All numbers are chosen: some five minutes on a core, and the mean squared error as the distance, which is what the
    baselines of `benchmarks.autoencoders` minimise. Convolutions among patches start linear, and reach the
    error of VQGAN's networks in a tenth of the time; without norms equal patches have equal codes.
    """
    network = dict(width=64, patch_size=4, dtype="float32")
    encoder = bind("models.codecs.PatchEncoder", blocks=1, **network)
    decoder = bind("models.codecs.PatchDecoder", blocks=2, **network)
    config = bind("experiment.Experiment")
    config.total_examples = 2400 * 64
    config.batch_size = 64
    config.evaluate_percent = 50
    config.checkpoint_percent = 25

    config.image = bind("data.image.ImageTransform", size=32, flip=True)
    config.data = bind("data.pipeline.Pipeline", source=_cifar10("train-*"), image=late("image"), cache=True, threads=1)
    config.task = bind(
        "tasks.autoencoding.Autoencoding",
        reconstruction="l2",
        model=bind(
            "models.autoencoder.Autoencoder",
            encoder=encoder,
            bottleneck=bottleneck,
            decoder=decoder,
            image_size=32,
        ),
    )
    config.optimizer = bind(
        "optim.Optimizer",
        name="adamw",
        learning_rate=2e-3,
        b2=0.99,
        weight_decay=1e-4,
        clip_norm=1.0,
        schedule=bind("optim.schedules.Cosine", warmup_steps=100, final=0.02),
    )
    config.evals = dict(
        reconstructions=bind("evaluate.reconstructions.Reconstructions", source=_cifar10("test-*"), image=late("image"))
    )
    if variant == "shapes":
        _few_rich_codes(config)
    if variant == "short":
        config.total_examples = 60 * 64
        config.optimizer.schedule.warmup_steps = 10
        config.data.source = _shapes(32, split="train", size=2000)
        config.evals.reconstructions.source = _shapes(32, split="test", size=256)
    return config


def _few_rich_codes(config) -> None:
    """Changes the recipe to single shapes at 4 x 4 places, by larger networks and beside a trained tower."""
    config.total_examples = 4000 * 64
    config.image.flip = False  # captions may say left or right
    config.data.source = _shapes(32, split="train", size=60_000, scenes="single")
    config.evals.reconstructions.source = _shapes(32, split="test", size=1000, scenes="single")
    config.task.model.encoder.update(width=128, patch_size=8, blocks=2)
    config.task.model.decoder.update(width=128, patch_size=8, blocks=3)
    config.task.perceptual = bind("tasks.judges.Perceptual", image=tiny_tower(), layers=(0, 1, 2), weight=0.004)
    config.init_from = dict(perceptual=JUDGE)
    config.optimizer.update(learning_rate=3e-3, freeze=("perceptual/.*",))


def full(variant: str, model, *, batch_size: int, steps: int, reconstruction: str):
    """An autoencoder of `model.image_size` pixels, whose optimizer and augmentation the recipe adds."""
    smoke, size = variant == "smoke", 64 if variant == "smoke" else model.image_size
    model.image_size = size
    config = bind("experiment.Experiment")
    config.batch_size = 2 if smoke else batch_size
    config.total_examples = 4 * 2 if smoke else steps * batch_size
    config.log_steps = 1 if smoke else 50
    config.checkpoint_steps = 1000
    config.evaluate_steps = 5000

    config.image = bind("data.image.ImageTransform", size=size, resize="crop", interpolation="bicubic", flip=True)
    parquet = bind("data.sources.parquet.Parquet", path="data/*.parquet", text_column="text")  # texts are not read
    config.data = bind(
        "data.pipeline.Pipeline",
        source=_shapes(size, split="train", size=1000) if smoke else parquet,
        image=late("image"),
        threads=1 if smoke else 16,
    )
    config.task = bind("tasks.autoencoding.Autoencoding", reconstruction=reconstruction, model=model)
    config.evals = dict(
        reconstructions=bind(
            "evaluate.reconstructions.Reconstructions",
            source=_shapes(size, split="test", size=16 if smoke else 480),
            image=late("image"),
            batch_size=16,
        )
    )
    return config


def _cifar10(files: str):
    return bind("data.sources.parquet.Parquet", path=f"cifar10/{files}.parquet", class_name_column="class_name")


def _shapes(image_size: int, **options):
    return bind("data.sources.shapes.Shapes", image_size=image_size, **options)
