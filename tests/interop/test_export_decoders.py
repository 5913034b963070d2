"""Trained decoders as folders that transformers loads: the same logits, and the same parameters when read back."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import vlm_jax
from tests.library import writers
from vlm_jax import config as configs
from vlm_jax import interop, tree
from vlm_jax.checkpoint import load_params
from vlm_jax.export import main
from vlm_jax.interop import ours

from ..parity import peers
from . import peer_models as small
from .peer_models import assert_close

TEXT = np.random.default_rng(0).integers(4, 260, (2, 40)).astype(np.int32)
KINDS = {
    "llama": {},
    "llama, tied": {"tied": "True", "num_kv_heads": "4"},
    "qwen2": {"qkv_bias": "True"},
    "qwen3": {"qk_norm": "rms", "head_dim": "12"},
}
CLIP = {"pool": "cls", "pre_norm": "True", "patch_bias": "False", "posemb": "learn", "depth": "2", "out_dim": "None"}
LLAVA = {f"task.model.image.{name}": value for name, value in CLIP.items()}
LLAVA |= {"task.model.layer": "-2", "task.model.projector": "mlp", "text.canonicalise": "none"}
PERSIMMON = {"norm": "layer", "qk_norm": "layer", "activation": "squared_relu", "bias": "True", "qkv_bias": "True"}
PERSIMMON |= {"num_kv_heads": "4", "rotary": "0.5"}
FUYU = {f"task.model.decoder.{name}": value for name, value in PERSIMMON.items()} | {"task.model.newline_id": "259"}


def language_model(folder, **changes):
    recipe = configs.load("llava_tiny")
    model = configs.bind("models.multimodal.TextDecoder", decoder=recipe.task.model.decoder)
    talk = configs.bind("data.conversations.Conversations", images=None)
    sizes = {f"task.model.decoder.{name}": value for name, value in changes.items()}
    changes = (writers.CONVERSING, {"text.canonicalise": "none"}, sizes)
    return writers.workdir(folder, "llava_tiny", *changes, model=model, conversations=talk)


def exported(workdir, output, capsys):
    """Our model and its parameters, and the folder, which reads back as it was."""
    assert main([str(workdir), str(output), "--to=hf"]) == 0, capsys.readouterr().err
    model, params = configs.build(ours.open_run(workdir).model), load_params(workdir)[0]
    again = tree.flatten(interop.source(output).params())
    before = {name: value for name, value in tree.flatten(params).items()}
    if not any(name.startswith("decoder/") for name in again):
        before = {name.removeprefix("decoder/"): value for name, value in before.items()}
    assert before.keys() == again.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)
    return model, {"params": params}


def loaded(kind, folder):
    model, report = getattr(peers.transformers(), kind).from_pretrained(folder, output_loading_info=True)
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def logits(model, variables, batch):
    hidden, _ = model.hidden(variables, batch | {"text_segment_ids": np.ones_like(batch["text"])})
    return model.decoder.logits(variables["params"]["decoder"], hidden)


@pytest.mark.parametrize("kind", [k if k == "qwen2" else pytest.param(k, marks=pytest.mark.full) for k in KINDS])
def test_language_models(kind, tmp_path, capsys):
    torch = peers.torch()
    workdir = language_model(tmp_path / "run", **KINDS[kind])
    model, variables = exported(workdir, tmp_path / "out", capsys)
    peer = loaded("AutoModelForCausalLM", tmp_path / "out")
    assert peer.config.model_type == kind.split(",")[0]
    with torch.no_grad():
        theirs = peer(torch.tensor(TEXT).long()).logits
    assert_close(logits(model, variables, {"text": TEXT}), theirs, "logits")
    if kind != "llama":
        return
    tokenizer = peers.transformers().AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("A café?")["input_ids"] == ours.open_run(workdir).text.model.encode("A café?")
    own, other = vlm_jax.load(workdir), vlm_jax.load(tmp_path / "out", template="plain")
    prompts = ["how many?", "what colour is it?"]
    assert own.generate(None, prompts, max_tokens=5) == other.generate(None, prompts, max_tokens=5)
    ids = torch.tensor([tokenizer("how many?\n")["input_ids"]])
    written = peer.generate(ids, max_new_tokens=5, do_sample=False)[0, ids.shape[1] :]
    assert tokenizer.decode(written, skip_special_tokens=True).strip() == own.generate(None, prompts[0], max_tokens=5)
    card = (tmp_path / "out/README.md").read_text()
    assert 'AutoModelForCausalLM.from_pretrained("FOLDER")' in card and "chat template 'plain' is not written" in card


@pytest.mark.full
def test_llava(tmp_path, capsys):
    torch = peers.torch()
    workdir = writers.workdir(tmp_path / "run", "llava_tiny", writers.CONVERSING, writers.LLAVA, LLAVA)
    model, variables = exported(workdir, tmp_path / "out", capsys)
    peer = loaded("AutoModelForImageTextToText", tmp_path / "out")
    text = np.where(TEXT == 2, 5, TEXT)
    ids = np.zeros_like(text)
    ids[0, 3:19], ids[1, 6:22] = 1, 1
    pixels = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    processor = peers.transformers().AutoImageProcessor.from_pretrained(tmp_path / "out")
    shown = processor(list(pixels), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        theirs = peer(torch.tensor(np.where(ids, 2, text)).long(), pixel_values=shown).logits
    batch = {"text": text, "text_image_ids": ids, "image": pixels[:, None]}
    assert_close(logits(model, variables, batch), theirs, "logits")
    own, other = vlm_jax.load(workdir), vlm_jax.load(tmp_path / "out", template="plain")
    pictures = list(pixels)
    assert own.generate(pictures, "how many?", max_tokens=4) == other.generate(pictures, "how many?", max_tokens=4)
    score = other.score(pictures, "how many?", ["one", "two"])
    np.testing.assert_allclose(own.score(pictures, "how many?", ["one", "two"]), score, rtol=1e-4)


@pytest.mark.full
def test_llava_in_tiles(tmp_path, capsys):
    """At two aspect ratios: their processor's pixels give the same logits, and are ours but for the rounding."""
    torch = peers.torch()
    workdir = writers.conversing(tmp_path / "run", "tiles", LLAVA | {"image.fill": "(0, 0, 0)"})
    model, variables = exported(workdir, tmp_path / "out", capsys)
    peer = loaded("AutoModelForImageTextToText", tmp_path / "out")
    rng = np.random.default_rng(1)
    pictures = [rng.integers(100, 150, (*size, 3)).astype(np.uint8) for size in ((64, 40), (33, 90))]
    asked = {"messages": [{"role": "user", "content": "a<image>b"}]}
    own, other = vlm_jax.load(workdir), vlm_jax.load(tmp_path / "out", template="plain")
    assert other.conversations.images == own.conversations.images
    processor = peers.transformers().AutoImageProcessor.from_pretrained(tmp_path / "out")
    for picture in pictures:
        rows = other.conversations.prompts([asked | {"images": [picture]}], image=other.image, text=other.text)
        length = rows["text_segment_ids"].sum()
        rows |= {name: rows[name][:, :length] for name in ("text", "text_image_ids")}
        shown = processor([picture], return_tensors="pt")
        with torch.no_grad():
            theirs = peer(torch.tensor(np.where(rows["text_image_ids"], 2, rows["text"])).long(), **shown).logits
        pixels, there = shown["pixel_values"].numpy().transpose(0, 1, 3, 4, 2), rows["image_mask"]
        restored = (pixels * other.image_std + other.image_mean) * 255
        assert np.abs(restored[0] - rows["image"][there]).max() < 1.01
        rows["image"] = np.zeros(rows["image"].shape, np.float32)
        rows["image"][there] = pixels[0]
        assert_close(logits(model, variables, rows), theirs, "logits")
    assert own.generate(pictures, "how many?", max_tokens=4) == other.generate(pictures, "how many?", max_tokens=4)


def test_fuyu(tmp_path, capsys):
    torch = peers.torch()
    workdir = writers.workdir(tmp_path / "run", "fuyu_tiny", writers.CONVERSING, FUYU)
    model, variables = exported(workdir, tmp_path / "out", capsys)
    peer = loaded("AutoModelForCausalLM", tmp_path / "out")
    batch = {"text": TEXT, "text_image_ids": np.zeros_like(TEXT), "image_grids": np.zeros((2, 1, 2), np.int32)}
    batch["patches"] = jnp.zeros((2, 64, 48), jnp.uint8)
    with torch.no_grad():
        theirs = peer(torch.tensor(TEXT).long()).logits
    assert_close(logits(model, variables, batch), theirs, "logits")


@pytest.mark.parametrize(
    ("recipe", "changes", "why"),
    [
        ("eve_tiny", [writers.EVE], "transformers has no class that is Eve; --to=safetensors writes it."),
        ("fuyu_tiny", [], "FuyuForCausalLM cannot express decoder.norm='rms'; it has 'layer'."),
        ("llava_tiny", [writers.LLAVA], "LlavaForConditionalGeneration cannot express projector='linear'"),
        ("llava_tiny", [writers.LLAVA, LLAVA, {"task.model.layer": "None"}], "cannot express layer=None"),
        ("llava_tiny", [writers.LLAVA, LLAVA, {"task.model.image.pre_norm": "False"}], "image.pre_norm=False"),
    ],
)
def test_what_transformers_has_not(recipe, changes, why, tmp_path, capsys):
    workdir = writers.workdir(tmp_path / "run", recipe, writers.CONVERSING, *changes)
    assert main([str(workdir), str(tmp_path / "out"), "--to=hf"]) == 2
    error = capsys.readouterr().err
    assert why in error and error.count("\n") == 1 and not (tmp_path / "out").exists()
    assert main([str(workdir), str(tmp_path / "out"), "--to=open_clip"]) == 2
    assert "open_clip has no" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["eve", "chat"])
def test_our_own_folder_answers_as_the_run_does(kind, tmp_path):
    workdir = writers.conversing(tmp_path / "run", kind)
    assert main([str(workdir), str(tmp_path / "out"), "--to=safetensors"]) == 0
    own, other = vlm_jax.load(workdir), vlm_jax.load(tmp_path / "out")
    image = np.random.default_rng(1).integers(0, 256, (32, 32, 3)).astype(np.uint8) if kind == "eve" else None
    prompts = ["how many?", "what colour is it?"]
    assert own.generate(image, prompts) == other.generate(image, prompts)
    assert own.score(image, "how many?", "one") == other.score(image, "how many?", "one")


def folder(tmp_path, model, **files):
    small.save(model, tmp_path / "theirs")
    workdir = language_model(tmp_path / "run")
    assert main([str(workdir), str(tmp_path / "words"), "--to=hf"]) == 0
    config = json.loads((tmp_path / "words/tokenizer_config.json").read_text())
    (tmp_path / "theirs/tokenizer_config.json").write_text(json.dumps(config | files))
    (tmp_path / "theirs/tokenizer.json").write_bytes((tmp_path / "words/tokenizer.json").read_bytes())
    return tmp_path / "theirs"


@pytest.mark.parametrize(
    ("chat", "template", "system"),
    [
        (None, None, None),
        ("{{ bos_token }}[INST] {{ message }} [/INST]", "llama2", None),
        ("USER: {{ message }} ASSISTANT:", "vicuna", None),
        ("{{ '<|im_start|>system\\nYou are Q.<|im_end|>\\n' }}{{ '<|im_start|>' + role }}", "chatml", "You are Q."),
        ("{{ '<|im_start|>' + role + '\\n' }}", "chatml", ""),
    ],
)
def test_the_template_is_guessed(chat, template, system, tmp_path):
    t = peers.transformers()
    config = t.LlamaConfig(**small.SIZES, vocab_size=260, max_position_embeddings=32, eos_token_id=[1, 7])
    found = interop.read(folder(tmp_path, t.LlamaForCausalLM(config), chat_template=chat, padding_side="left"))
    assert found.family == "llama" and found.image is None and found.sampling.stop == (1, 7)
    if template is None:
        assert found.conversations is None
        return
    assert (found.conversations.template, found.conversations.get("system")) == (template, system)
    assert configs.build(found.text).pad_side == "right"
