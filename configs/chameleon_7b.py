"""Chameleon-7B (2024, arXiv:2405.09818): texts and images of 32 x 32 codes in rows of 4096 tokens, from scratch.

Images are codes already: `python -m vlm_jax.data tokenize` writes them, with an autoencoder of 8192 codes for 32 x 32
places. Theirs, recalled and not read again: the sizes of LLaMA-7B with 65,536 tokens in all, norms of queries and keys,
z-loss of 1e-5, AdamW with b1 0.9, b2 0.95, eps 1e-5, a decay of 0.1 and clipping at 1, a peak of 1e-4 after 4000 steps,
8 million tokens a step. Their 7B has dropout of 0.1, which this one has not; their rate decays exponentially, this one
by a cosine. An image and its caption are more than a quarter of a row, so that 64 rows take 192 of them; with other
documents set `--config.fusion.examples`. The number of steps is chosen.
"""

from vlm_jax.configs._fused import CODES, GRID, task, tokenizer

from vlm_jax.config import bind, late

VARIANTS = {
    "full": "the recipe; needs --config.tokenizer=PATH and codes: see --config.data.source.path",
    "smoke": "the same program with few, narrow layers on any machine: 4 steps, drawn shapes, byte tokenizer, images "
    "by a tokenizer that nobody trained; default on a CPU",
}
LENGTH, TOKENS, CODEBOOK = 4096, 65_536, 8192


def get_config(variant: str = ""):
    small = variant == "smoke"
    config = bind("experiment.Experiment")
    config.tokenizer = "bytes" if small else None
    config.total_steps = 4 if small else 600_000
    config.batch_size = 4 if small else 2048
    config.log_steps = 1 if small else 10
    config.checkpoint_steps = 1000
    length = 512 if small else LENGTH

    config.image = bind("data.image.ImageTransform", size=32 if small else 512)
    config.text = bind(
        "data.text.Text", tokenizer=late("tokenizer"), length=length, canonicalise="none", bos=True, pad="pad"
    )
    codes = CODES if small else CODEBOOK
    text = late("vocab_size") if small else TOKENS - 3 - CODEBOOK
    config.fusion = bind(
        "data.fusion.Fusion",
        vocabulary=bind("data.fused_vocabulary.Vocabulary", text=text, codes=codes),
        grid=GRID if small else 32,
        pictures=small,
        images=3,
        examples=12 if small else 192,
        rows=4 if small else 64,
        per_row=4 if small else 3,
    )
    shapes = bind("data.sources.shapes.Shapes", size=1000, image_size=32)
    config.data = bind(
        "data.pipeline.Pipeline",
        source=shapes if small else bind("data.sources.image_codes.ImageCodes", path="codes/*.parquet"),
        image=late("image"),
        text=late("text"),
        fusion=late("fusion"),
        threads=1 if small else 16,
    )
    narrow = dict(width=128, depth=2, mlp_dim=256, num_heads=4, num_kv_heads=2, vocab_size=late("fused_size"))
    decoder = bind(
        "models.decoder.LanguageModel",
        **(narrow if small else dict(size="7B", vocab_size=TOKENS)),
        length=length,
        qk_norm="layer_per_head",
    )
    config.task = task(decoder, length=length, tokenizer=tokenizer() if small else None, z_loss=1e-5, guidance=3.0)
    config.mesh = bind("mesh.Layout") if small else bind("mesh.Layout", fsdp=-1)
    warmup = dict(warmup_steps=1 if small else 4000)
    config.optimizer = bind(
        "optim.Optimizer",
        name="adamw",
        learning_rate=1e-4,
        b2=0.95,
        eps=1e-5,
        weight_decay=0.1,
        clip_norm=1.0,
        freeze=("tokenizer/.*",) if small else (),
        schedule=bind("optim.schedules.Cosine", **warmup),
    )
    return config
