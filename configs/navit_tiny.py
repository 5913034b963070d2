"""NaViT in miniature on drawn shapes: images of two resolutions, packed five to a row with their captions, on a CPU.

`siglip_tiny` with packing: rows of 64 patches hold images of 16 and 9 patches, of which a tenth and none are dropped,
factorised positions, and per-image pooling (Dehghani et al. 2023, arXiv:2307.06304); the loss is SigLIP's over all
pairs of the batch. Evaluation is dense, on square images, with the same parameters. `siglip_tiny` says why the scale
learns faster, and why patches without convolutions, as packing needs them, learn colours long before shapes.
"""

from vlm_jax.configs import siglip_tiny

from vlm_jax.config import bind, late

VARIANTS = siglip_tiny.SHORT


def get_config(variant: str = ""):
    config = siglip_tiny.get_config(variant)
    config.batch_size = 12
    config.packing = bind(
        "data.packing.Packing",
        patch_size=8,
        tokens=64,
        images=8,
        text_tokens=64,
        examples=20,
        rows=4,
        budgets=(9, 16),
        drop=(0.0, 0.1),
        smallest=9,
        longest=4,
    )
    config.data.packing = late("packing")
    config.task.packing = late("packing")
    config.task.model.image.update(stem_channels=(), posemb="factorised", pool="map")
    config.task.model.text.eos_id = late("eos_id")
    config.evals.zero_shot_seen.source.size = 800
    del config.evals.zero_shot_held_out, config.evals.retrieval
    if variant == "short":
        config.total_examples = 60 * 60
    return config
