"""LLaVA in miniature on drawn shapes: a trained `siglip_tiny` tower, a projector, a decoder that answers questions.

The tower is tuned with the rest, all in one stage. Train `siglip_tiny` first, or name where its run is:
`--config.init_from.image='WORKDIR#image'`. Answers are one word and the end token.
"""

from vlm_jax.configs._answers import LENGTH, decoder, questions

from vlm_jax.config import bind, late

VARIANTS = {"short": "60 steps from scratch, to see that everything works"}


def get_config(variant: str = ""):
    images = bind("data.conversation_images.FixedImages", count=1, tokens=16)
    config = questions(images, short=variant == "short")
    config.init_from = None if variant else dict(image="workdirs/siglip_tiny#image")
    image = dict(image_size=32, patch_size=8, stem_channels=(24, 48, 96), width=96, depth=3, mlp_dim=384, num_heads=3)
    config.task = bind(
        "tasks.language_model.LanguageModeling",
        length=LENGTH,
        conversations=late("conversations"),
        end_id=late("end_id"),
        pad_id=late("pad_id"),
        sampling=bind("generate.Sampling", max_tokens=4),
        model=bind(
            "models.llava.Llava",
            image=bind("models.vit.ViT", **image, pool="gap", out_dim=128, dtype="float32"),
            decoder=decoder(),
            layer=None,
            projector="linear",
        ),
    )
    return config
