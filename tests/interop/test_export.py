"""A trained run as folders that transformers, open_clip and this package load as they are: the same embeddings."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from vlm_jax import config as configs
from vlm_jax import interop, tree
from vlm_jax.checkpoint import load_params
from vlm_jax.export import main
from vlm_jax.interop import ours

from ..parity import peers
from . import runs
from .peer_models import assert_close

CAPTIONS = ["a red circle", "A  BLUE_square!", "two green triangles, left of a star", "", "a naïve circle"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return runs.train(tmp_path_factory.mktemp("run") / "siglip", ema="0.5")


def pictures(size):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (size, size, 3)).astype(np.uint8)) for _ in range(4)]


def our_embeddings(workdir, weights):
    """Of the pictures, and of the captions, by the run's own model and preprocessing."""
    run = ours.open_run(workdir)
    model, image = configs.build(run.model), configs.build(run.image)
    variables = {"params": load_params(workdir, weights)[0]}
    pixels = np.stack([image(picture) for picture in pictures(32)])
    tokens = run.text(CAPTIONS)
    z_image, _ = jax.jit(model.encode_image)(variables, pixels)
    z_text, _ = jax.jit(model.encode_text)(variables, tokens)
    scale, bias = model.scale(variables), model.bias(variables)
    return np.asarray(z_image), np.asarray(z_text), np.asarray(z_text @ z_image.T * scale + bias), tokens


@pytest.mark.parametrize("weights", ["ema", "params"])
def test_transformers_loads_it(workdir, weights, tmp_path):
    transformers, torch = peers.transformers(), peers.torch()
    assert main([str(workdir), str(tmp_path / "out"), "--to=hf", f"--weights={weights}"]) == 0
    model, report = transformers.AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    inputs = processor(text=CAPTIONS, images=pictures(32), padding="max_length", truncation=True, return_tensors="pt")
    z_image, z_text, logits, tokens = our_embeddings(workdir, weights)
    np.testing.assert_array_equal(inputs["input_ids"], tokens)
    with torch.no_grad():
        out = model.eval()(**inputs)
    assert_close(z_image, out.image_embeds, "images")
    assert_close(z_text, out.text_embeds, "texts")
    assert_close(logits, out.logits_per_text, "logits")


def test_a_folder_that_is_read_back_is_the_same(workdir, tmp_path):
    """Through Hugging Face's names and through our own."""
    before = tree.flatten(load_params(workdir, "ema")[0])
    for to in ("hf", "safetensors"):
        assert main([str(workdir), str(tmp_path / to), f"--to={to}"]) == 0
        found = interop.read(tmp_path / to)
        after = tree.flatten(found.params)
        assert before.keys() == after.keys()
        assert all((before[name] == after[name]).all() for name in before)
        text = configs.build(found.text)
        np.testing.assert_array_equal(text(CAPTIONS), ours.open_run(workdir).text(CAPTIONS))
        assert configs.build(found.image).size == 32


def test_the_card_has_the_last_evaluation_and_the_config(workdir, tmp_path):
    assert main([str(workdir), str(tmp_path / "out"), "--to=hf"]) == 0
    card = (tmp_path / "out/README.md").read_text()
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    step, value = next(
        (x["step"], x["eval/zero_shot_seen/top1"]) for x in lines[::-1] if "eval/zero_shot_seen/top1" in x
    )
    assert f"| zero_shot_seen/top1 | {step} | {value:.4f} |" in card
    config = json.loads(card.split("```json\n")[1].split("```")[0])
    assert config["task"]["model"]["image"]["width"] == 16
    assert "moving average of the parameters of step 4" in card


def test_nothing_is_overwritten(workdir, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious").write_text("")
    assert main([str(workdir), str(tmp_path / "out"), "--to=hf"]) == 2
    assert capsys.readouterr().err == f"{tmp_path}/out is there already; give a folder that is not.\n"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.full
def test_what_another_library_has_not_is_said_in_a_line(tmp_path, workdir, capsys):
    assert main([str(workdir), str(tmp_path / "out"), "--to=open_clip"]) == 2
    error = capsys.readouterr().err
    assert "open_clip knows SigLIP's image towers by timm's names" in error and error.count("\n") == 1
    stem = tmp_path / "stem"
    runs.train(stem, "siglip_tiny:short", task__model__image__stem_channels="(4,8,16)",
               task__model__image__out_dim="16", task__model__text__out_dim="16")  # fmt: skip
    capsys.readouterr()
    assert main([str(stem), str(tmp_path / "out"), "--to=hf"]) == 2
    assert capsys.readouterr().err == "SiglipModel cannot express image.stem_channels=(4, 8, 16); it has ().\n"
    assert main([str(tmp_path), str(tmp_path / "out"), "--to=hf"]) == 2
    assert "is no workdir" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


CLIP = {
    "task__model__image__pool": "cls",
    "task__model__image__pre_norm": "True",
    "task__model__image__patch_bias": "False",
    "task__model__image__head_bias": "False",
    "task__model__image__out_dim": "8",
    "task__model__image__posemb": "learn",
    "task__model__text__pool": "eos",
    "task__model__text__causal": "True",
    "task__model__text__head_bias": "False",
    "task__model__text__mask_padding": "False",
    "task__model__text__out_dim": "8",
    "text__bos": "True",
    "text__canonicalise": "lower",
    "tokenizer": "bytes",
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    changes = CLIP | {"task__model__text__eos_id": "1"}
    return runs.train(tmp_path_factory.mktemp("run") / "clip", "clip_tiny", **changes)


@pytest.mark.full
def test_clip_in_transformers(clip, tmp_path):
    transformers, torch = peers.transformers(), peers.torch()
    assert main([str(clip), str(tmp_path / "out"), "--to=hf"]) == 0
    model = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    inputs = processor(text=CAPTIONS, images=pictures(32), padding="max_length", truncation=True, return_tensors="pt")
    z_image, z_text, logits, tokens = our_embeddings(clip, "params")
    np.testing.assert_array_equal(inputs["input_ids"], tokens)
    with torch.no_grad():
        out = model(**inputs)
    assert_close(z_image, out.image_embeds, "images")
    assert_close(z_text, out.text_embeds, "texts")
    assert_close(logits, out.logits_per_text, "logits")


@pytest.mark.full
def test_clip_in_open_clip(clip, tmp_path):
    torch = peers.torch()
    open_clip = peers.torchvision("open_clip")
    assert main([str(clip), str(tmp_path / "out"), "--to=open_clip"]) == 0
    name = f"local-dir:{tmp_path}/out"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    tokens = open_clip.get_tokenizer(name)(CAPTIONS)
    z_image, z_text, _, expected = our_embeddings(clip, "params")
    np.testing.assert_array_equal(tokens, expected)
    images = torch.stack([preprocess(picture) for picture in pictures(32)])
    with torch.no_grad():
        assert_close(z_image, model.eval().encode_image(images, normalize=True), "images")
        assert_close(z_text, model.encode_text(tokens, normalize=True), "texts")
