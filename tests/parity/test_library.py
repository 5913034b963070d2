"""`vlm_jax.load` of a folder that transformers or open_clip wrote gives, from pictures and strings, what they give."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import vlm_jax
from vlm_jax.errors import UserError
from vlm_jax.evaluate.command import main as evaluate

from ..interop import open_clip_models, peer_models
from . import peers
from .test_processors import in_mode, photograph, picture
from .test_tokenizers import CLIP, clip_files, openai_file, sentencepiece_file, sentences, strings  # noqa: F401

# Resized pixels differ by 1 in 255 here and there (tests/parity/test_processors.py); random towers make more of it.
FROM_PICTURES = 0.02


def pictures() -> list:
    return [
        photograph(),
        picture(48, 64),
        picture(200, 30),
        in_mode("RGBA"),
        in_mode("L"),
        in_mode("P"),
        in_mode("exif"),
    ]


def texts() -> list[str]:
    return list(strings()[40:60]) + ["a photo of the cat", "word " * 90, ""]


def saved(folder: Path, model, *processors) -> Path:
    for part in (model, *processors):
        part.save_pretrained(folder)
    return folder


def compare(folder: Path, theirs, image_processor, tokenizer, length: int, **options):
    """Embeddings and logits, from their pixels and from our own; returns our model."""
    torch = peers.torch()
    model = vlm_jax.load(folder, **options)
    pixels = dict(image_processor(pictures(), return_tensors="pt"))
    ids = tokenizer(texts(), padding="max_length", truncation=True, max_length=length, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        out = theirs(**pixels, input_ids=ids)
    np.testing.assert_array_equal(model.tokens(texts()), ids)
    np.testing.assert_allclose(model.encode_text(texts()), out.text_embeds, atol=1e-5)
    np.testing.assert_allclose(model.encode_image(pictures()), out.image_embeds, atol=FROM_PICTURES)
    scale, bias = float(theirs.logit_scale.detach().exp()), float(theirs.state_dict().get("logit_bias", 0))
    embeds = out.image_embeds.numpy(), out.text_embeds.numpy()
    np.testing.assert_allclose(
        model.similarity(*embeds), out.logits_per_image, rtol=1e-5, atol=1e-5 * scale + 1e-5 * abs(bias)
    )
    if model.image.resize != "naflex":
        seen = pixels["pixel_values"].numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(model.encode_image(seen, preprocessed=True), out.image_embeds, atol=1e-5)
    return model, out


def test_clip(clip_files, tmp_path):  # noqa: F811
    transformers = peers.transformers()
    vocab = json.loads((clip_files / "vocab.json").read_text())
    merges = [tuple(line.split()) for line in (clip_files / "merges.txt").read_text().split("\n")[1:]]
    tokenizer = transformers.CLIPTokenizer(vocab=vocab, merges=merges)
    text = {"vocab_size": 49_408, "max_position_embeddings": 77, "hidden_act": "quick_gelu"}
    special = {"bos_token_id": 49_406, "eos_token_id": 49_407, "pad_token_id": 49_407}
    config = transformers.CLIPConfig(
        vision_config=peer_models.VISION, text_config={**peer_models.SIZES, **text, **special}, projection_dim=24
    )
    theirs = peer_models.randomise(transformers.CLIPModel(config))
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    model, out = compare(saved(tmp_path, theirs, processor, tokenizer), theirs, processor, tokenizer, 77)
    found = model.similarity(out.image_embeds.numpy(), texts(), probabilities=True)
    np.testing.assert_allclose(found, out.logits_per_image.softmax(-1), atol=1e-4)
    card, warnings = model.protocol()
    assert card.name == "openai_clip" and warnings == []


@pytest.mark.parametrize("resample", [3, 2])
def test_siglip(sentencepiece_file, tmp_path, resample):  # noqa: F811
    transformers = peers.transformers()
    tokenizer = transformers.SiglipTokenizer(str(sentencepiece_file))
    text = {**peer_models.SIZES, "vocab_size": 600, "max_position_embeddings": 64, "projection_size": 32}
    special = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1}
    config = transformers.SiglipConfig(vision_config=peer_models.VISION, text_config=text | special)
    theirs = peer_models.randomise(transformers.SiglipModel(config))
    processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32}, resample=resample)
    model, out = compare(saved(tmp_path, theirs, processor, tokenizer), theirs, processor, tokenizer, 64)
    found = model.similarity(out.image_embeds.numpy(), texts(), probabilities=True)
    np.testing.assert_allclose(found, out.logits_per_image.sigmoid(), atol=1e-4)
    card, warnings = model.protocol()
    wrong = ["image.interpolation is 'bilinear', siglip expects 'bicubic'"] if resample == 2 else []
    assert card.name == "siglip" and warnings == wrong


def test_naflex(tmp_path):
    transformers, tokenizers = peers.transformers(), pytest.importorskip("tokenizers")
    tokenizer = transformers.Siglip2Tokenizer(
        vocab={name: i for i, name in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *"abcdefghijklmnop ▁"])},
        padding_side="right",
    )
    tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    vision = {**peer_models.SIZES, "patch_size": 8, "num_patches": 16}
    text = {**peer_models.SIZES, "vocab_size": 50, "max_position_embeddings": 64}
    special = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    config = transformers.Siglip2Config(vision_config=vision, text_config=text | special)
    theirs = peer_models.randomise(transformers.Siglip2Model(config))
    processor = transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=20, do_convert_rgb=True)
    model, _ = compare(saved(tmp_path, theirs, processor, tokenizer), theirs, processor, tokenizer, 64)
    assert model.image.resize == "naflex" and model.image.max_patches == 20
    card, warnings = model.protocol()
    assert card.name == "siglip2_naflex" and warnings == []
    argv = ["--only=zero_shot", "--config.evals.zero_shot.source.size=40", f"--output={tmp_path / 'results'}"]
    assert evaluate(["run", str(tmp_path), *argv]) == 0
    assert "siglip2_naflex" in (tmp_path / "results/results.json").read_text()


def test_dinov2(tmp_path):
    transformers, torch = peers.transformers(), peers.torch()
    theirs = peer_models.randomise(peer_models.dinov2())
    pixels = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    processor = transformers.BitImageProcessor(size={"shortest_edge": 40}, crop_size=32, **pixels)
    model = vlm_jax.load(saved(tmp_path, theirs, processor))
    with torch.no_grad():
        out = theirs(**processor(pictures(), return_tensors="pt")).last_hidden_state[:, 0].numpy()
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    np.testing.assert_allclose(model.encode_image(pictures()), out, atol=FROM_PICTURES)
    with pytest.raises(UserError, match="embeds images alone"):
        model.classify(pictures(), ["cat"])
    card, warnings = model.protocol()
    assert card.name == "dinov2" and [line.split()[0] for line in warnings] == ["image.crop_pct"]


def test_open_clip(tmp_path):
    torch, open_clip = peers.torch(), open_clip_models.library()
    config = json.loads(json.dumps(open_clip_models.CLIP))
    config["text_cfg"] |= {"vocab_size": 49_408, "context_length": 77}
    theirs = peer_models.randomise(open_clip_models.build(config))
    folder = open_clip_models.save(theirs, config, tmp_path / "model")
    options = {"resize_mode": "squash", "mean": (0.5,) * 3, "std": (0.5,) * 3}
    preprocess = open_clip.transform.image_transform(32, is_train=False, **options)
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    with torch.no_grad():
        out = theirs(torch.stack([preprocess(image) for image in pictures()]), tokenizer(texts()))
    with pytest.raises(UserError, match="came without its tokenizer"):
        vlm_jax.load(folder).encode_text(texts())
    model = vlm_jax.load(folder, tokenizer=str(openai_file()))
    np.testing.assert_array_equal(model.tokens(texts()), tokenizer(texts()))
    np.testing.assert_allclose(model.encode_image(pictures()), out["image_features"], atol=1e-5)
    np.testing.assert_allclose(model.encode_text(texts()), out["text_features"], atol=1e-5)
    card, warnings = model.protocol()
    assert card.name == "open_clip_laion" and warnings == ["image.resize is 'squash', open_clip_laion expects 'crop'"]
