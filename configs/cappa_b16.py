"""CapPa ViT-B/16: captioning with parallel prediction (Tschannen et al. 2023, arXiv 2306.07915).

Sizes, 6 layers of decoder, three quarters of the captions predicted in parallel, batch, steps (3 billion examples),
optimizer, 64 tokens of a vocabulary of 32k: those of the authors' code, big_vision's `configs/proj/cappa/pretrain.py`.
Three things differ: here the decoder has biases, captions begin with a token of their own instead of a zero, which is
one more, and the head starts from small random numbers. The paper trains for up to 9 billion examples (recalled).
"""

from vlm_jax.configs._shared import VARIANTS as VARIANTS
from vlm_jax.configs._shared import captions_shapes, pairs, smoke

from vlm_jax.config import bind, late

LENGTH = 65


def get_config(variant: str = ""):
    config = bind("experiment.Experiment")
    config.total_steps = 366_500
    config.batch_size = 8192
    config.tokenizer = None
    config.log_steps = 50
    config.checkpoint_steps = 1000
    config.evaluate_steps = 5000

    config.image = bind("data.image.ImageTransform", size=224, resize="squash", interpolation="bilinear")
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

    block = dict(size="B", remat="mlp", activation="gelu_tanh", norm_eps=1e-6)
    config.task = bind(
        "tasks.image_to_text.ImageToText",
        parallel=0.75,
        bos_id=late("bos_id"),
        model=bind(
            "models.captioner.Captioner",
            image=bind("models.vit.ViT", **block, patch_size=16, image_size=224, pool="gap"),
            decoder=bind(
                "models.captioner.TextDecoder",
                **block,
                depth=6,
                vocab_size=32_000,
                length=LENGTH,
                mask_token=True,
                pad_id=late("pad_id"),
                eos_id=late("eos_id"),
            ),
        ),
    )
    config.optimizer = bind(
        "optim.Optimizer",
        name="adafactor",
        learning_rate=1e-3,
        b2=0.999,
        weight_decay=0.1,  # 1e-4 a step where decay is not multiplied by the learning rate, as theirs is not
        clip_norm=1.0,
        mu_dtype="bfloat16",
        schedule=bind("optim.schedules.Cosine", warmup_steps=10_000),
    )

    config.evals = dict(captions=captions_shapes(224))
    if variant == "smoke":
        config.total_steps = None
        smoke(config, image_size=224, batch_size=8)
    return config
