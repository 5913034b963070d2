"""Fuyu-8B: patches of 30 x 30 pixels by one matrix into Persimmon-8B (adept.ai/blog/fuyu-8b, 2023).

Sizes are those of the published `adept/fuyu-8b`: width 4096, 36 layers of 64 heads, hidden units 16,384 with squared
ReLU, 262,144 tokens, queries and keys normed, half of each head turned. How it was trained is not published: batch and
rates are those of `llava_7b`'s second stage. Rows of 4096 tokens hold up to two images of 36 x 36 patches and their
conversations. It starts from published weights (`init_from`), and parameters are split over up to 32 devices.
"""

from vlm_jax.configs._decoders import ANSWER, conversations, smoke, task
from vlm_jax.configs._decoders import VARIANTS as VARIANTS

from vlm_jax.config import bind, late

LENGTH = 4096
IMAGES = 2
SIDE, PATCH = 36, 30


def persimmon(length: int, **changes):
    """The decoder of Persimmon-8B."""
    sizes = dict(width=4096, depth=36, mlp_dim=16_384, num_heads=64, num_kv_heads=64, vocab_size=262_144)
    options = dict(activation="squared_relu", norm="layer", qk_norm="layer", bias=True, qkv_bias=True)
    places = dict(rope_theta=25_000.0, rotary=0.5, length=length)
    return bind("models.decoder.LanguageModel", **{**sizes, **options, **places, **changes})


def get_config(variant: str = ""):
    small = variant == "smoke"
    side = 4 if small else SIDE
    patches = dict(patch_size=PATCH, patches=IMAGES * side**2)
    native = dict(count=IMAGES, budget=side**2, longest=side)
    images = bind("data.conversation_images.NativeImages", **patches, **native)
    config = conversations(length=LENGTH, images=images, examples=128, rows=64, per_row=8)
    config.total_examples = 665_298
    config.batch_size = 64
    config.mesh = bind("mesh.Layout", fsdp=-1)
    config.init_from = "hf:adept/fuyu-8b"
    config.task = task(
        bind("models.fuyu.Fuyu", decoder=persimmon(LENGTH + ANSWER), **patches, images=IMAGES),
        length=LENGTH,
    )
    config.optimizer = bind(
        "optim.Optimizer",
        name="adamw",
        learning_rate=2e-5,
        clip_norm=1.0,
        schedule=bind("optim.schedules.Cosine", warmup_percent=3),
    )
    if small:
        config.init_from = None
        config.task.model.newline_id = late("eos_id")
        smoke(config, rows=4)
    return config
