"""Show, Attend and Tell in miniature on drawn shapes (Xu et al. 2015, arXiv 1502.03044): a ResNet and an LSTM.

A reference beside `coca_tiny`, on the same data and captions. Sizes, optimizer and number of examples are chosen here;
what it reaches is in docs/results.md.
"""

from vlm_jax.configs import siglip_tiny
from vlm_jax.configs.coca_tiny import LENGTH

from vlm_jax.config import bind, late

VARIANTS = siglip_tiny.SHORT


def get_config(variant: str = ""):
    config = siglip_tiny.get_config(variant)
    if variant != "short":
        config.total_examples = 96_000
    config.text.update(length=LENGTH, bos=True)
    config.data.source.update(scenes="uniform", relations=False)
    config.task = bind(
        "tasks.image_to_text.ImageToText",
        bos_id=late("bos_id"),
        model=bind(
            "models.lstm_captioner.LstmCaptioner",
            image=bind(
                "models.lstm_captioner.ResNet",
                image_size=32,
                channels=(16, 32, 64),
                blocks=(1, 1, 1),
                large_stem=False,
                groups=8,
                dtype="float32",
            ),
            decoder=bind(
                "models.lstm_captioner.LstmDecoder",
                width=192,
                embed_dim=96,
                attention_dim=96,
                context_width=64,
                vocab_size=late("vocab_size"),
                length=LENGTH,
                pad_id=late("pad_id"),
                eos_id=late("eos_id"),
                dtype="float32",
            ),
        ),
    )
    config.optimizer.learning_rate_mults = ()
    config.evals = dict(
        captions=bind(
            "evaluate.captions.Captions",
            source=bind("data.sources.shapes.Shapes", image_size=32, split="test", size=500),
            image=late("image"),
            text=late("text"),
        )
    )
    return config
