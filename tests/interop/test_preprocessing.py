"""What files say of pixels and texts comes through as they say it."""

import json

import pytest

from vlm_jax import config as configs
from vlm_jax.errors import UserError
from vlm_jax.interop import hub, processing, texts

SQUARE = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 384, "width": 384}, "resample": 2}
CROPPED = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, "crop_size": {"height": 224}}
CROPPED["crop_size"]["width"] = 224


def write(folder, name, content):
    (folder / name).write_text(json.dumps(content))
    return folder


def image_of(folder):
    pixels = processing.from_hugging_face(folder)
    return configs.build(pixels.image), pixels


def test_squashed(tmp_path):
    image, pixels = image_of(write(tmp_path, "preprocessor_config.json", SQUARE | {"image_mean": [0.1, 0.2, 0.3]}))
    assert (image.size, image.resize, image.interpolation, image.convention) == (
        384,
        "squash",
        "bilinear",
        "transformers",
    )
    assert (pixels.mean, pixels.std) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))


def test_cropped(tmp_path):
    image, pixels = image_of(write(tmp_path, "preprocessor_config.json", CROPPED))
    assert (image.size, image.resize, image.interpolation, image.size / image.crop_pct) == (224, "crop", "bicubic", 256)
    assert pixels.mean == (0.48145466, 0.4578275, 0.40821073)


def test_names_and_numbers_of_old_files(tmp_path):
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224, "resample": 3}
    image, _ = image_of(write(tmp_path, "preprocessor_config.json", old))
    assert (image.size, image.resize, image.crop_pct) == (224, "crop", 1.0)


def test_a_processor_that_holds_both(tmp_path):
    image, _ = image_of(write(tmp_path, "processor_config.json", {"image_processor": SQUARE}))
    assert image.size == 384


def test_naflex(tmp_path):
    named = {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 16, "max_num_patches": 400}
    image, _ = image_of(write(tmp_path, "preprocessor_config.json", named))
    assert (image.resize, image.patch_size, image.max_patches, image.size) == ("naflex", 16, 400, 320)


def test_pixels_that_are_not_normalised(tmp_path):
    _, pixels = image_of(write(tmp_path, "preprocessor_config.json", SQUARE | {"do_normalize": False}))
    assert (pixels.mean, pixels.std) == ((0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image_processor_type": "BeitImageProcessor"}, "image processor 'BeitImageProcessor' is not supported"),
        ({"rescale_factor": 1.0}, "rescale_factor=1.0 is not supported; only 1 / 255 is"),
        ({"do_resize": False}, "do_resize=False is not supported; only True is"),
        ({"resample": 9}, "resample=9 is no filter"),
        ({"size": {"height": 224, "width": 112}}, "gives no square image"),
        ({"image_mean": [0.5]}, "not three values"),
    ],
)
def test_what_cannot_be_done_is_refused(tmp_path, change, says):
    with pytest.raises(UserError, match=says):
        image_of(write(tmp_path, "preprocessor_config.json", SQUARE | change))


TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<bos>"}}, {"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "<eos>"}}],
}
ROBERTA = {"type": "RobertaProcessing", "sep": ["<eos>", 1], "cls": ["<bos>", 2]}
NOTHING = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}]}


def tokenizer_json(processor, pad=0):
    added = [{"id": pad, "content": "<pad>"}, {"id": 1, "content": "<eos>"}, {"id": 2, "content": "<bos>"}]
    return {"added_tokens": added, "post_processor": processor, "model": {"vocab": {}}}


def words_of(folder, config, processor=None, **tokenizer):
    specials = {"bos_token": "<bos>", "eos_token": {"content": "<eos>"}, "pad_token": "<pad>"}
    write(folder, "tokenizer_config.json", specials | config)
    if processor is not None:
        write(folder, "tokenizer.json", tokenizer_json(processor, **tokenizer))
    return texts.from_hugging_face(folder, 16).text


@pytest.mark.parametrize(
    ("processor", "bos", "eos"),
    [
        (TEMPLATE, True, "sticky"),
        (ROBERTA, True, "sticky"),
        (NOTHING, False, "none"),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, TEMPLATE]}, True, "sticky"),
    ],
)
def test_begin_and_end_tokens(tmp_path, processor, bos, eos):
    text = words_of(tmp_path, {"tokenizer_class": "PreTrainedTokenizerFast"}, processor)
    assert (text.bos, text.eos, text.length, text.canonicalise) == (bos, eos, 16, "none")


def test_what_the_config_says_counts_where_the_processor_is_silent(tmp_path):
    text = words_of(tmp_path, {"add_bos_token": False, "add_eos_token": True}, NOTHING)
    assert (text.bos, text.eos) == (False, "sticky")


def test_padding(tmp_path):
    assert words_of(tmp_path, {}, TEMPLATE).pad == "zero"
    assert words_of(tmp_path, {}, TEMPLATE, pad=3).pad == "pad"
    assert words_of(tmp_path, {"pad_token": "<eos>"}, TEMPLATE).pad == "eos"
    assert words_of(tmp_path, {"padding_side": "left"}, TEMPLATE).pad_side == "left"


@pytest.mark.parametrize(
    ("config", "canonical"),
    [
        ({"tokenizer_class": "GemmaTokenizer", "do_lower_case": True}, "siglip2"),
        ({"tokenizer_class": "GemmaTokenizerFast"}, "none"),
        ({"tokenizer_class": "Siglip2Tokenizer"}, "siglip2"),
        ({"tokenizer_class": "CLIPTokenizerFast"}, "clip_transformers"),
    ],
)
def test_canonicalisation(tmp_path, config, canonical):
    assert words_of(tmp_path, config, TEMPLATE).canonicalise == canonical


def test_siglip_reads_its_sentencepiece_model(tmp_path):
    (tmp_path / "spiece.model").write_bytes(b"")
    text = words_of(
        tmp_path, {"tokenizer_class": "SiglipTokenizer", "pad_token": "</s>", "eos_token": "</s>"}, TEMPLATE
    )
    assert (text.tokenizer, text.canonicalise) == (str(tmp_path / "spiece.model"), "siglip_transformers")
    assert (text.bos, text.eos, text.pad) == (False, "sticky", "eos")


def test_without_a_tokenizer(tmp_path):
    with pytest.raises(UserError, match=r"has no tokenizer: wanted is tokenizer\.json, spiece\.model"):
        words_of(tmp_path, {})


def test_open_clip(tmp_path):
    built_in = texts.from_open_clip(tmp_path, {}, 77)
    text = built_in.text
    assert (text.canonicalise, text.bos, text.eos, text.pad, built_in.tokenizer) == (
        "clip",
        True,
        "sticky",
        "zero",
        None,
    )
    write(tmp_path, "tokenizer_config.json", {"eos_token": "<eos>", "pad_token": "<pad>"})
    write(tmp_path, "tokenizer.json", tokenizer_json(TEMPLATE))
    named = {"hf_tokenizer_name": "timm/x", "tokenizer_kwargs": {"clean": "canonicalize"}}
    assert texts.from_open_clip(tmp_path, named, 64).text.canonicalise == "siglip_open_clip"
    with pytest.raises(UserError, match=r"clean='strange' is not supported; known are canonicalize, lower, whitespace"):
        texts.from_open_clip(tmp_path, {"tokenizer_kwargs": {"clean": "strange"}}, 64)


def test_open_clip_pixels():
    pixels = processing.from_open_clip({"resize_mode": "longest", "fill_color": 7}, 256, "x")
    image = configs.build(pixels.image)
    assert (image.size, image.resize, image.fill, image.interpolation) == (256, "pad", (7, 7, 7), "bicubic")
    assert pixels.std == (0.26862954, 0.26130258, 0.27577711)
    with pytest.raises(UserError, match="resize_mode='stretch' is not supported"):
        processing.from_open_clip({"resize_mode": "stretch"}, 256, "x")


def test_a_name_on_the_hub_that_cannot_be_had(monkeypatch):
    import huggingface_hub

    def absent(name, allow_patterns):
        raise OSError(f"no {name} here\nand more lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", absent)
    with pytest.raises(UserError, match=r"^hf:org/name cannot be fetched: no org/name here$"):
        hub.fetch("hf:org/name")
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'vlm_jax\[hf\]'"):
        hub.fetch("hf:org/name")
