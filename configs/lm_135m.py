"""A language model of SmolLM2-135M's sizes (Ben Allal et al. 2025, arXiv 2502.02737), 30 layers, on packed documents.

A document is a conversation with one answer and nothing before it: `{"messages": [{"role": "assistant", "content":
TEXT}]}`, and one of more than 2048 tokens is cut. 64 rows are filled with 128 documents, which suits a mean of 800
tokens; set `--config.conversations.examples` to your mean. Sizes are those of the published `HuggingFaceTB/
SmolLM2-135M`. Recalled, and not read again: 2 million steps of 2^20 tokens, a peak of 3e-3 after 2000 steps, constant
up to the last fifth and linear from there, AdamW with b2 0.95 and a decay of 0.01, and clipping at 1.
"""

from vlm_jax.configs._decoders import ANSWER, conversations, smoke, task
from vlm_jax.configs._decoders import VARIANTS as VARIANTS

from vlm_jax.config import bind

LENGTH = 2048


def language_model(
    size: str, *, vocab_size: int, tied: bool, rope_theta: float, batch_size: int, steps: int, length: int, **optimizer
):
    """The recipe of a size of `models.decoder.SIZES`."""
    config = conversations(length=length, examples=128, rows=64, per_row=16)
    config.total_steps = steps
    config.batch_size = batch_size
    decoder = bind(
        "models.decoder.LanguageModel",
        size=size,
        vocab_size=vocab_size,
        length=length + ANSWER,
        tied=tied,
        rope_theta=rope_theta,
    )
    config.task = task(bind("models.multimodal.TextDecoder", decoder=decoder), length=length)
    config.optimizer = bind("optim.Optimizer", name="adamw", b2=0.95, clip_norm=1.0, **optimizer)
    return config


def get_config(variant: str = ""):
    config = language_model(
        "135M",
        vocab_size=49_152,
        tied=True,
        rope_theta=100_000.0,
        batch_size=512,
        steps=2_000_000,
        length=LENGTH,
        learning_rate=3e-3,
        weight_decay=0.01,
        schedule=bind("optim.schedules.Constant", warmup_steps=2000, cooldown_percent=20),
    )
    if variant == "smoke":
        smoke(config, rows=4)
    return config
