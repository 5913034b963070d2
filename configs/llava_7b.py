"""LLaVA-1.5 7B: CLIP's L/14 at 336 pixels, two layers that project, Vicuna-7B (Liu et al. 2023, arXiv 2310.03744).

As its published scripts have it: first the projector alone, 558K captions, 256 a step at 1e-3; then projector and
language model, 665K conversations, 128 a step at 2e-5; each one epoch, a cosine after a warm-up of 3%, no decay. The
last but one of CLIP's layers is taken. Chosen here: rows of 4096 tokens hold several conversations of at most that
length (there each has a row of its own, of 2048), on average 4 of both stages; with far longer ones raise `rows` and
`batch_size`. It starts from published weights (`init_from` of the first stage), and parameters are split over up
to 32 devices.

`tiles` shows images as LLaVA-NeXT does (llava-vl.github.io/blog/2024-01-30-llava-next): a grid of up to four tiles and
a thumbnail, up to 2928 tokens. Stages, data and rates are those above; rows of 8192 hold 2 conversations on average.
"""

from vlm_jax.configs._decoders import ANSWER, VARIANTS, conversations, smoke, task

from vlm_jax.config import bind

VARIANTS = VARIANTS | {"tiles": "images at any resolution, as tiles and a thumbnail"}
LENGTH = 4096
IMAGES = 6
PIXELS = dict(image_mean=(0.48145466, 0.4578275, 0.40821073), image_std=(0.26862954, 0.26130258, 0.27577711))


def clip_l14(image_size: int, **changes):
    """The image tower of OpenAI's CLIP, without its head."""
    options = dict(activation="quick_gelu", norm_eps=1e-5, patch_bias=False, pre_norm=True, pool="cls", scan=True)
    return bind("models.vit.ViT", size="L", patch_size=14, image_size=image_size, **{**options, **changes})


def in_tiles(config, length=2 * LENGTH, rows=64, count=4):
    """Changes the recipe to images in tiles, of which a row has room for five for each image."""
    images = bind("data.conversation_images.TiledImages", count=count, tiles=5 * count, side=24)
    config.image.update(resize="squash", fill=(0, 0, 0))
    config.batch_size = rows
    config.conversations.images, config.conversations.rows = images, rows
    config.text.length = config.task.length = length
    config.evals.questions.length = length // 2
    config.task.model.update(images=count, tiles=5 * count)
    config.task.model.decoder.length = length + ANSWER
    config.stages.a_projector.update(batch_size=2 * rows, conversations=dict(examples=256, rows=2 * rows))


def get_config(variant: str = ""):
    small = variant == "smoke"
    image_size = 56 if small else 336
    images = bind("data.conversation_images.FixedImages", count=IMAGES, tokens=(image_size // 14) ** 2)
    window = dict(examples=128, rows=32, per_row=12)
    config = conversations(length=LENGTH, images=images, size=image_size, **window)
    config.image.update(resize="pad", fill=(122, 116, 104))
    config.batch_size = 32
    config.mesh = bind("mesh.Layout", fsdp=-1)
    tower = dict(width=128, depth=3, mlp_dim=256, num_heads=4) if small else {}
    config.task = task(
        bind(
            "models.llava.Llava",
            image=clip_l14(image_size, **tower),
            layer=-2,
            projector="mlp",
            images=IMAGES,
            **PIXELS,
            decoder=bind("models.decoder.LanguageModel", size="7B", length=LENGTH + ANSWER),
        ),
        length=LENGTH,
    )
    config.optimizer = bind(
        "optim.Optimizer",
        name="adamw",
        learning_rate=2e-5,
        clip_norm=1.0,
        schedule=bind("optim.schedules.Cosine", warmup_percent=3),
    )
    config.stages = dict(  # in the order of their names
        a_projector=dict(
            total_examples=558_128,
            init_from=dict(image="hf:openai/clip-vit-large-patch14-336#image", decoder="hf:lmsys/vicuna-7b-v1.5"),
            init_from_skip=("image/head/.*",),
            batch_size=64,
            conversations=dict(examples=256, rows=64),
            data=dict(source=dict(path="data/blip_laion_cc_sbu_558k.json", images="data/images")),
            optimizer=dict(learning_rate=1e-3, freeze=("image/.*", "decoder/.*")),
        ),
        b_tuning=dict(
            total_examples=665_298,
            conversations=dict(template="vicuna"),
            data=dict(source=dict(path="data/llava_v1_5_mix665k.json", images="data")),
            optimizer=dict(freeze=("image/.*",)),
        ),
    )
    if variant == "tiles":
        in_tiles(config)
    if small:
        smoke(config, rows=4, image_size=image_size)
    return config
