"""SigLIP 2 ViT-B/16: sigmoid loss, a decoder of captions and boxes, self-distillation and masked prediction at the end.

Tschannen et al. 2025, arXiv 2502.14786, section 2: batch, examples, learning rate, decay, clipping, warm-up, 64 tokens
of Gemma's lower-cased vocabulary of 256k; a decoder half as deep as the text tower; the last fifth of the run with
weights of 1/4 and 1/16. `vlm_jax.tasks.siglip2` says what the paper leaves open, and what was chosen. The text tower is
that of the published weights, which pool its last token. Boxes come from a column of lists of {text, box}
(`--config.data.source.source.objects_column=NAME`); without, the decoder has captions alone.
"""

import math

from vlm_jax.configs import siglip_b16
from vlm_jax.configs._shared import VARIANTS as VARIANTS
from vlm_jax.configs._shared import smoke

from vlm_jax.config import bind, late

VOCAB = 256_000


def prompted(length: int, canonicalise: str):
    """How the decoder's texts are read, by the pipeline and by the task."""
    options = dict(length=length, canonicalise=canonicalise, bos=True, eos="sticky", pad="pad")
    return bind("data.prompted.Prompted", text=bind("data.text.Text", tokenizer=late("tokenizer"), **options))


def get_config(variant: str = ""):
    config = siglip_b16.get_config()
    config.text.update(canonicalise="siglip2", pad="pad")
    config.data.source = bind("data.sources.located.Located", source=config.data.source)
    config.data.prompted = prompted(64, "siglip2")
    config.ema = 0.9999

    tower = dict(size="B", remat="mlp", activation="gelu_tanh", norm_eps=1e-6)
    ids = dict(pad_id=late("pad_id"), eos_id=late("eos_id"))
    config.task = bind(
        "tasks.siglip2.SigLIP2Pretraining",
        objective="sigmoid",
        prompted=prompted(64, "siglip2"),
        decoder_weight=1.0,
        distill_weight=0.25,
        masked_weight=0.0625,
        model=bind(
            "models.siglip2.SigLIP2",
            image=bind("models.vit.ViT", **tower, pool="map", patch_size=16, image_size=224),
            text=bind(
                "models.text.TextTransformer", **tower, pool="last", vocab_size=VOCAB, length=64, out_dim=768, **ids
            ),
            decoder=bind(
                "models.captioner.TextDecoder", **tower, depth=6, vocab_size=VOCAB, length=64, mask_token=True, **ids
            ),
            logit_scale_init=math.log(10),
            logit_bias_init=-10.0,
        ),
    )
    if variant == "smoke":
        source = config.data.source
        smoke(config, image_size=224, batch_size=4)
        source.source = config.data.source
        config.data.source = source
        config.task.update(crops=2, begin=0.5)
        for part in (config.task.model.text, config.task.model.decoder):
            part.vocab_size = late("vocab_size")
    return config
