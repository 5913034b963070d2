"""Fuyu in miniature on drawn shapes: patches of 4 x 4 pixels straight into a decoder, from scratch.

Nothing tells the decoder what a patch is but the answers, so it is deeper than `llava_tiny`'s, and each picture comes
with all its questions, one after the other.
"""

from vlm_jax.configs._answers import decoder, questions
from vlm_jax.configs._decoders import task

from vlm_jax.config import bind, late

VARIANTS = {"short": "60 steps, to see that everything works"}
SIDE, PATCH = 8, 4
LENGTH = 80 + SIDE * (SIDE + 1)  # eight questions have 80 tokens


def get_config(variant: str = ""):
    patches = dict(patch_size=PATCH, patches=SIDE**2)
    images = bind("data.conversation_images.NativeImages", **patches, budget=SIDE**2, longest=SIDE)
    config = questions(images, short=variant == "short", length=LENGTH, turns=8)
    if variant != "short":
        config.total_examples = 64_000
    config.optimizer.learning_rate = 1e-3
    model = bind(
        "models.fuyu.Fuyu",
        decoder=decoder(width=128, depth=4, mlp_dim=344, length=LENGTH + 8),
        **patches,
        newline_id=late("eos_id"),
    )
    config.task = task(model, length=LENGTH, answer=4)
    return config
