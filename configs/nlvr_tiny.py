"""NLVR in miniature (Suhr et al. 2017): is a sentence that a person wrote true of a drawn scene? LLaVA, with tiles.

`--bind=NLVR.path='nlvr/dev.parquet'` says where the data is, `--bind=NLVR.fold=K` which fifth of it is tested on and
not trained on: no sentence and no scene is in two of them. `python -m benchmarks.nlvr` trains and tests all folds, one
after the other. The tower is a trained `siglip_tiny`'s, and is left as it is. Scenes, three boxes side by side, are
trained on in all six orders of these; a row of four tiles and a thumbnail shows them.
"""

from vlm_jax.configs._answers import decoder
from vlm_jax.configs._decoders import task
from vlm_jax.configs._shared import TINY_TOWER, tiny_tower

from vlm_jax.config import bind, late

VARIANTS = {"short": "60 steps from scratch, to see that everything works"}
MERGE, TILES = 2, 4
SIZE = TINY_TOWER["image_size"]
SIDE = SIZE // TINY_TOWER["patch_size"] // MERGE
LENGTH = 48 + SIDE**2 + SIDE * (TILES * SIDE + 1)  # a sentence and an answer, a thumbnail, rows of tiles


def scenes(split, **options):
    return bind("data.sources.nlvr.NLVR", path="nlvr/dev.parquet", split=split, **options)


def get_config(variant: str = ""):
    short = variant == "short"
    config = bind("experiment.Experiment")
    config.total_examples = 60 * 32 if short else 400 * 32
    config.batch_size = 32
    config.tokenizer = "train:256"
    config.evaluate_percent = 100
    config.checkpoint_percent = 50
    config.init_from = None if short else dict(image="workdirs/siglip_tiny#image")

    config.image = bind("data.image.ImageTransform", size=SIZE)
    config.text = bind("data.text.Text", tokenizer=late("tokenizer"), length=LENGTH, pad="pad")
    config.conversations = bind(
        "data.conversations.Conversations",
        template="plain",
        images=bind("data.conversation_images.TiledImages", tiles=1 + TILES, side=SIDE, grids=((1, TILES),)),
    )
    config.data = bind(
        "data.pipeline.Pipeline",
        source=scenes("train", renderings=6),
        image=late("image"),
        text=late("text"),
        conversations=late("conversations"),
        cache=True,
        threads=1,
    )
    model = bind(
        "models.llava.Llava",
        image=tiny_tower(),
        decoder=decoder(width=64, mlp_dim=172, length=LENGTH + 8),
        layer=None,
        projector="linear",
        merge=MERGE,
        tiles=1 + TILES,
    )
    config.task = task(model, length=LENGTH, answer=4)
    config.optimizer = bind(
        "optim.Optimizer",
        name="adamw",
        learning_rate=1e-3,
        b2=0.95,
        weight_decay=1e-1,
        clip_norm=1.0,
        freeze=() if short else ("image/.*",),
        schedule=bind("optim.schedules.Cosine", warmup_steps=10 if short else 40, final=0.02),
    )
    config.evals = dict(
        answers=bind(
            "evaluate.answers.Answers",
            source=scenes("test"),
            train=scenes("train"),
            conversations=late("conversations"),
            image=late("image"),
            text=late("text"),
            choices=("true", "false"),
        )
    )
    return config
