"""A model of transformers that is imported and written again is the same model there, bit by bit."""

import pytest

from vlm_jax import config as configs
from vlm_jax import interop
from vlm_jax.data.image import ImageTransform
from vlm_jax.interop import writing

from ..parity import peers
from . import peer_models as small
from .peer_models import IMAGE, PATCH

HALVES = (0.5, 0.5, 0.5)
SQUASHED = ImageTransform(size=IMAGE)
MODELS = {
    "siglip": (small.siglip, SQUASHED),
    "siglip2": (small.siglip2, ImageTransform(resize="naflex", patch_size=PATCH, max_patches=16, size=IMAGE)),
    "clip": (small.clip, ImageTransform(size=IMAGE, resize="crop")),
    "clip, old": (lambda: small.clip(eos=2), ImageTransform(size=IMAGE, resize="crop")),
    "vit": (small.vit, SQUASHED),
    "vit that classifies": (lambda: small.vit(labels=7), SQUASHED),
    "dinov2": (small.dinov2, ImageTransform(size=IMAGE, resize="crop", crop_pct=0.875)),
    "dinov2, swiglu": (lambda: small.dinov2(swiglu=True), ImageTransform(size=IMAGE, resize="crop", crop_pct=0.875)),
    "dinov2, registers": (lambda: small.dinov2(registers=4), ImageTransform(size=IMAGE, resize="crop")),
}


@pytest.mark.parametrize("name", MODELS)
def test_import_and_export(name, tmp_path):
    torch, transformers = peers.torch(), peers.transformers()
    build, image = MODELS[name]
    theirs = small.randomise(build())
    found = interop.source(small.save(theirs, tmp_path / "theirs"))
    folder = writing.to_hugging_face(configs.build(found.model), found.params(), image, None, HALVES, HALVES)
    writing.save(folder, tmp_path / "ours")
    again, report = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    assert all("pooler" in key for key in report["missing_keys"])  # ViTModel's, which nothing is trained with here
    before, after = theirs.state_dict(), again.state_dict()
    unused = ("pooler", "mask_token")
    assert before.keys() - after.keys() <= {key for key in before if any(part in key for part in unused)}
    for key in before.keys() & after.keys():
        if not any(part in key for part in unused):
            assert torch.equal(before[key], after[key]), key
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "ours")
    assert tuple(processor.image_mean) == HALVES
    for part in ("hidden_act", "layer_norm_eps", "num_attention_heads"):
        assert getattr(theirs.config, part, None) == getattr(again.config, part, None)
