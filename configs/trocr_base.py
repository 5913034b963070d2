"""TrOCR base: lines of text read by a ViT-B/16 and a decoder of RoBERTa's kind (Li et al. 2021, arXiv 2109.10282).

Sizes are those of the published `microsoft/trocr-base-*`. Recalled, and not read again: 684 million printed lines, a
batch of 2048 and a learning rate of 5e-5 of the first stage; Adam, an inverse square root after 500 steps, decay of
1e-4, and ten beams of fine-tuning. Chosen here: 128 tokens at most, and no smoothing of labels. The paper starts from
BEiT and RoBERTa: `--config.init_from` takes an image tower, or transformers' folder of the whole with
`--config.text.length=512 --config.task.model.decoder.length=512`.
"""

from vlm_jax.configs._shared import VARIANTS as VARIANTS
from vlm_jax.configs._shared import captions_shapes, pairs, smoke

from vlm_jax.config import bind, late

LENGTH = 128


def get_config(variant: str = ""):
    config = bind("experiment.Experiment")
    config.total_examples = 684_000_000
    config.batch_size = 2048
    config.tokenizer = None
    config.log_steps = 50
    config.checkpoint_steps = 1000
    config.evaluate_steps = 5000

    config.image = bind("data.image.ImageTransform", size=384, resize="squash", interpolation="bilinear")
    config.text = bind(
        "data.text.Text",
        tokenizer=late("tokenizer"),
        length=LENGTH,
        bos=True,
        canonicalise="none",
        eos="sticky",
        pad="pad",
    )
    config.data = pairs()

    config.task = bind(
        "tasks.image_to_text.ImageToText",
        bos_id=late("bos_id"),
        sampling=bind("generate.Sampling", beams=10),
        model=bind(
            "models.captioner.Captioner",
            image=bind(
                "models.vit.ViT",
                size="B",
                patch_size=16,
                image_size=384,
                pool="cls",
                qkv_bias=False,
                activation="gelu",
                norm_eps=1e-12,
                posemb_resize="cubic",
                remat="mlp",
            ),
            decoder=bind(
                "models.captioner.TextDecoder",
                size="L",
                depth=12,
                vocab_size=50_265,
                length=LENGTH,
                context_width=768,
                norm="post",
                embed_norm=True,
                tied=True,
                activation="gelu",
                norm_eps=1e-5,
                init_style="gpt",
                remat="mlp",
                pad_id=late("pad_id"),
                eos_id=late("eos_id"),
            ),
        ),
    )
    config.optimizer = bind(
        "optim.Optimizer",
        name="adamw",
        learning_rate=5e-5,
        weight_decay=1e-4,
        schedule=bind("optim.schedules.Rsqrt", warmup_steps=500),
    )

    config.evals = dict(captions=captions_shapes(384))
    if variant == "smoke":
        config.task.sampling.beams = 1
        smoke(config, image_size=384, batch_size=2)
    return config
