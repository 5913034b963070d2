"""LLaVA in miniature on drawn shapes: a trained `siglip_tiny` tower, a projector, a decoder that answers questions.

The tower is tuned with the rest, all in one stage. Train `siglip_tiny` first, or name where its run is:
`--config.init_from.image='WORKDIR#image'`. Answers are one word and the end token.
"""

from vlm_jax.configs._answers import LENGTH, decoder, questions
from vlm_jax.configs._decoders import task
from vlm_jax.configs._shared import tiny_tower

from vlm_jax.config import bind

VARIANTS = {"short": "60 steps from scratch, to see that everything works"}


def get_config(variant: str = ""):
    images = bind("data.conversation_images.FixedImages", count=1, tokens=16)
    config = questions(images, short=variant == "short")
    config.init_from = None if variant else dict(image="workdirs/siglip_tiny#image")
    model = bind(
        "models.llava.Llava",
        image=tiny_tower(),
        decoder=decoder(),
        layer=None,
        projector="linear",
    )
    config.task = task(model, length=LENGTH, answer=4)
    return config
