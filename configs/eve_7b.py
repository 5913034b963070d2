"""EVE-7B: patches in Vicuna-7B, aligned with CLIP's L/14 at 336 pixels (Diao et al. 2024, arXiv 2406.11832).

Three stages, AdamW without decay, a cosine: the language model is frozen at first, 16M of 33M captions, 512 a step at
4e-4, warm-up 3%; then all of it on 33M, 512 a step at 4e-5, warm-up 1%; then 665K conversations, 128 a step at 2e-5,
warm-up 1%. An image has at most 48 x 48 patches of 14 pixels, 672 pixels a side, and 24 x 24 tokens of 2 x 2; every
fourth layer is aligned, in all stages as in the published code. Chosen here: rows of 4096 tokens hold several
conversations of at most that length (there each has a row of its own, of 2048). It starts from published weights
(`init_from` of the first stage), and parameters are split over up to 32 devices.
"""

from vlm_jax.configs._decoders import ANSWER, conversations, smoke, task
from vlm_jax.configs._decoders import VARIANTS as VARIANTS
from vlm_jax.configs.llava_7b import LENGTH, PIXELS, clip_l14

from vlm_jax.config import bind

IMAGES = 6
SIDE, PATCH, MERGE = 48, 14, 2


def get_config(variant: str = ""):
    small = variant == "smoke"
    side, view = (8, 56) if small else (SIDE, 336)
    patches = dict(patch_size=PATCH, merge=MERGE, patches=IMAGES * side**2)
    native = dict(count=IMAGES, budget=side**2, longest=side, cls=True, view=view)
    images = bind("data.conversation_images.NativeImages", **patches, **native)
    config = conversations(length=LENGTH, images=images, size=view, examples=128, rows=32, per_row=12)
    config.batch_size = 128
    config.mesh = bind("mesh.Layout", fsdp=-1)
    tower = dict(width=128, depth=3, mlp_dim=256, num_heads=4) if small else {}
    teacher = bind("models.eve.Teacher", image=clip_l14(view, **tower), layer=-2, interval=1 if small else 4, **PIXELS)
    config.task = task(
        bind(
            "models.eve.Eve",
            decoder=bind("models.decoder.LanguageModel", size="7B", length=LENGTH + ANSWER),
            **patches,
            images=IMAGES,
            teacher=teacher,
            **PIXELS,
            **(dict(width=128) if small else {}),
        ),
        length=LENGTH,
    )
    config.optimizer = bind(
        "optim.Optimizer",
        name="adamw",
        clip_norm=1.0,
        schedule=bind("optim.schedules.Cosine", warmup_percent=1),
    )
    teacher, pairs = "teacher/.*", dict(source=dict(path="data/captions/*.parquet"))
    config.stages = dict(  # in the order of their names
        a_alignment=dict(
            total_examples=16_000_000,
            init_from=dict(teacher="hf:openai/clip-vit-large-patch14-336#image", decoder="hf:lmsys/vicuna-7b-v1.5"),
            init_from_skip=("teacher/head/.*",),
            data=pairs,
            optimizer=dict(learning_rate=4e-4, freeze=(teacher, "decoder/.*"), schedule=dict(warmup_percent=3)),
        ),
        b_pretraining=dict(
            total_examples=33_000_000,
            data=pairs,
            optimizer=dict(learning_rate=4e-5, freeze=(teacher,)),
        ),
        c_tuning=dict(
            total_examples=665_298,
            batch_size=32,
            conversations=dict(template="vicuna"),
            data=dict(source=dict(path="data/llava_v1_5_mix665k.json", images="data")),
            optimizer=dict(learning_rate=2e-5, freeze=(teacher,)),
        ),
    )
    if small:
        smoke(config, rows=4, image_size=view)
    return config
