"""EVEv2-7B: patches in Qwen2.5-7B, each block with weights of its own for images (Diao et al. 2025, arXiv 2502.06788).

Two convolutions make tokens of 32 x 32 pixels: by 16 to 1024, then by 2 to the decoder's width. There is no teacher.
Stages as in the published README and scripts, AdamW without decay, a cosine after a warm-up of 3%: the patch embedding
alone, 10M captions, 1024 a step at 2e-4; with the image weights, which start as copies of the text's, on 29M captions
at 1e-4; the same on 48M larger images at 5e-5; then everything, on 15M instructions, 512 a step at 2e-5, and on 7.3M
chosen ones at 1e-5. Images have at most 800 x 800 pixels in the first two stages (625 tokens), then 1600 x 1600 (2500).
Chosen here: rows of 6400 tokens hold 8 conversations with the smaller images or 2 with the larger ones (there each has
a row of its own, of 2048, 4096 or in the end 5000), and small images are enlarged. The first two stages have
128 rows, for at most 128 devices. It starts from published weights (`init_from` of the first stage), and parameters are
split over up to 32 devices.
"""

from vlm_jax.configs._decoders import ANSWER, conversations, smoke, task
from vlm_jax.configs._decoders import VARIANTS as VARIANTS
from vlm_jax.configs.llava_7b import PIXELS

from vlm_jax.config import bind

LENGTH = 6400
IMAGES = 8
SMALL, LARGE, PATCH, MERGE = 50, 100, 16, 2  # patches along a side
QWEN25_7B = dict(width=3584, depth=28, mlp_dim=18_944, num_heads=28, num_kv_heads=4, vocab_size=152_064, qkv_bias=True)
QWEN25_7B |= dict(norm_eps=1e-6, rope_theta=1e6)


def get_config(variant: str = ""):
    small = variant == "smoke"
    side, largest = (8, 8) if small else (SMALL, LARGE)
    patches = dict(patch_size=PATCH, merge=MERGE, patches=2 * largest**2)
    images = bind(
        "data.conversation_images.NativeImages", **patches, count=IMAGES, budget=side**2, longest=side, cls=True
    )
    config = conversations(length=LENGTH, images=images, examples=256, rows=32, per_row=16)
    config.batch_size = 128
    config.mesh = bind("mesh.Layout", fsdp=-1)
    decoder = bind("models.decoder.LanguageModel", length=LENGTH + ANSWER, modalities=2, **QWEN25_7B)
    model = dict(decoder=decoder, embedding="convolutions", width=128 if small else 1024, images=IMAGES)
    config.task = task(bind("models.eve.Eve", **model, **patches, **PIXELS), length=LENGTH)
    config.optimizer = bind(
        "optim.Optimizer",
        name="adamw",
        clip_norm=1.0,
        schedule=bind("optim.schedules.Cosine", warmup_percent=3),
    )
    text, pairs = r"decoder/(?!blocks/\d+/image/).*", dict(source=dict(path="data/captions/*.parquet"))
    larger = dict(images=dict(budget=largest**2, longest=largest), examples=64, rows=32)
    asked = lambda path: dict(source=dict(path=path, images="data/images"))
    config.stages = dict(  # in the order of their names
        a_embedding=dict(
            total_examples=10_000_000,
            init_from=dict(decoder="hf:Qwen/Qwen2.5-7B-Instruct"),
            task=dict(model=dict(decoder=dict(modalities=1))),
            data=pairs,
            optimizer=dict(learning_rate=2e-4, freeze=("decoder/.*",)),
        ),
        b_vision=dict(total_examples=29_000_000, data=pairs, optimizer=dict(learning_rate=1e-4, freeze=(text,))),
        c_larger=dict(
            total_examples=48_000_000,
            batch_size=512,
            conversations=larger,
            data=pairs,
            optimizer=dict(learning_rate=5e-5, freeze=(text,)),
        ),
        d_all=dict(
            total_examples=15_000_000,
            batch_size=256,
            conversations=larger | dict(template="chatml"),
            data=asked("data/infinity_mm_general.jsonl"),
            optimizer=dict(learning_rate=2e-5),
        ),
        e_tuning=dict(
            total_examples=7_300_000,
            batch_size=256,
            conversations=larger | dict(template="chatml"),
            data=asked("data/instructions.jsonl"),
            optimizer=dict(learning_rate=1e-5),
        ),
    )
    if small:
        smoke(config, rows=4)
    return config
