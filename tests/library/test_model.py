"""`vlm_jax.load`: what a workdir's model gives, for lists of any length, on any number of devices."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import vlm_jax
from tests.helpers import small_config
from vlm_jax import config as configs
from vlm_jax import interop, tree
from vlm_jax.checkpoint import Store, load_params
from vlm_jax.data.pipeline import Pipeline
from vlm_jax.data.sources.shapes import Shapes
from vlm_jax.data.tools import chunks, scoring
from vlm_jax.data.tools.command import main as tools
from vlm_jax.errors import UserError
from vlm_jax.evaluate.base import embed_source
from vlm_jax.experiment import open_experiment
from vlm_jax.mesh import Layout
from vlm_jax.models.two_tower import normalize
from vlm_jax.models.vit import ViT
from vlm_jax.tasks import contrastive

SOURCE = Shapes(size=21, split="val")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    """What a run leaves, with the parameters that it begins with, and others as their average."""
    folder = tmp_path_factory.mktemp("run") / "run"
    config = small_config(tokenizer="train:100")
    experiment = open_experiment(config, folder / "assets")
    (folder / "config.json").write_text(configs.to_json(config))
    params, ema = (jax.jit(experiment.task.init)(jax.random.key(seed))["params"] for seed in (0, 1))
    with Store(folder, stacks=experiment.task.stacks) as store:
        store.save(2, {"params": params, "ema": ema}, {"config": configs.plain(config)})
        store.wait()
    return folder


@pytest.fixture(scope="module")
def model(workdir):
    return vlm_jax.load(workdir, batch_size=16)


def records() -> tuple[list[bytes], list[list[str]]]:
    found = [SOURCE[k] for k in range(len(SOURCE))]
    return [r["image"] for r in found], [[r["text"]] if isinstance(r["text"], str) else list(r["text"]) for r in found]


@pytest.fixture(scope="module")
def expected(workdir) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Embeddings of all images and of all first captions, as the task's own functions give them at once."""
    experiment = open_experiment(configs.load(str(workdir)), workdir / "assets")
    params = tree.stack(load_params(workdir)[0], experiment.task.stacks)
    predict = experiment.task.predict({"params": params, "state": {}})
    images, captions = records()
    texts = [own[0] for own in captions]
    pictures = predict["image_embedding"](np.stack([experiment.image(image) for image in images]))
    return np.asarray(pictures), np.asarray(predict["text_embedding"](experiment.text(texts))), texts


def test_embeddings_are_those_of_the_task(model, expected):
    pictures, sentences, texts = expected
    np.testing.assert_allclose(model.encode_image(records()[0]), pictures, atol=1e-5)
    np.testing.assert_allclose(model.encode_text(texts), sentences, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(pictures, axis=1), 1, atol=1e-5)
    assert repr(model).startswith("<vlm_jax model of ") and repr(model).endswith("images and texts to 8 dimensions>")
    assert (model.step, model.family, model.dim) == (2, "vlm_jax", 8) and jax.device_count() == 8


def test_lists_of_any_length_are_compiled_a_few_times(model, expected):
    images, before = records()[0], contrastive._image_embedding._cache_size()
    for count in (0, 1, 2, 5, 7, 8, 9, 13, 16, 17, 21):
        found = model.encode_image(images[:count])
        assert found.shape == (count, 8)
        np.testing.assert_allclose(found, expected[0][:count], atol=1e-5)
    assert contrastive._image_embedding._cache_size() - before <= 2  # of 8 and of 16


@pytest.mark.parametrize("options", [dict(devices=1), dict(layout=Layout(data=2, fsdp=4, min_size=1)), {}])
def test_devices_do_not_matter(workdir, expected, options):
    devices = jax.devices()[: options.pop("devices", 8)]
    model = vlm_jax.load(workdir, devices=devices, batch_size=5, **options)
    np.testing.assert_allclose(model.encode_image(records()[0]), expected[0], atol=1e-5)
    np.testing.assert_allclose(model.encode_text(expected[2]), expected[1], atol=1e-5)
    kept = tree.flatten(model.params)
    for name, leaf in tree.flatten(load_params(workdir)[0]).items():
        np.testing.assert_array_equal(kept[name], leaf)


def test_pictures_of_all_kinds_and_sizes(model, tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    picture, file = Image.fromarray(array), io.BytesIO()
    picture.save(file, "PNG")
    path = tmp_path / "picture.png"
    path.write_bytes(file.getvalue())
    small = np.zeros((9, 11, 3), np.uint8)
    found = model.encode_image([array, small, picture, path, str(path), file.getvalue(), jax.numpy.asarray(array)])
    np.testing.assert_allclose(found[2:], found[[0] * 5], atol=1e-6)
    twice = model.encode_image([Image.open(path)] * 16)  # decoded once, though threads share it
    np.testing.assert_allclose(twice, found[[0] * 16], atol=1e-6)
    assert np.abs(found[0] - found[1]).max() > 1e-3
    for one in (array, array[None], picture, path, str(path), file.getvalue(), (picture,), iter([picture])):
        np.testing.assert_allclose(model.encode_image(one), found[:1], atol=1e-6)
    seen = normalize(model.image(array)[None], model.image_mean, model.image_std)
    np.testing.assert_allclose(model.encode_image(seen, preprocessed=True), found[:1], atol=1e-5)


def test_token_ids_are_taken_as_they_are(model, expected):
    _, sentences, texts = expected
    rows = model.tokens(texts)
    assert rows.shape == (21, 24)
    np.testing.assert_allclose(model.encode_text(rows), sentences, atol=1e-5)
    np.testing.assert_allclose(model.encode_text(rows.tolist()), sentences, atol=1e-5)
    np.testing.assert_allclose(model.encode_text(texts[0]), sentences[:1], atol=1e-5)
    assert model.encode_text([]).shape == (0, 8)


def test_similarity_has_the_scale_and_bias_of_the_model(model, expected):
    pictures, sentences, texts = expected
    params = load_params(model.source)[0]
    logits = np.exp(params["logit_scale"]) * pictures @ sentences.T + params["logit_bias"]
    images = records()[0]
    np.testing.assert_allclose(model.similarity(images, texts), logits, atol=1e-3)
    np.testing.assert_allclose(model.similarity(pictures, sentences), logits, atol=1e-3)
    found = model.similarity(pictures, texts, probabilities=True)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-logits)), atol=1e-4)


def test_a_model_without_bias_gives_the_softmax_over_texts(tmp_path):
    config = small_config("clip_tiny")
    experiment = open_experiment(config, tmp_path / "assets")
    (tmp_path / "config.json").write_text(configs.to_json(config))
    with Store(tmp_path, stacks=experiment.task.stacks) as store:
        store.save(1, {"params": jax.jit(experiment.task.init)(jax.random.key(0))["params"]}, {"config": {}})
        store.wait()
    model = vlm_jax.load(tmp_path)
    images, texts = records()[0][:3], ["a red circle", "a blue square"]
    logits = model.similarity(images, texts)
    found = model.similarity(images, texts, probabilities=True)
    np.testing.assert_allclose(found, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), atol=1e-5)


def test_classify_averages_templates(model, expected):
    names, templates = ["red circle", "blue square", "green star"], ("a picture of a {}", "{}")
    classes = []
    for name in names:
        mean = model.encode_text([template.format(name) for template in templates]).mean(0)
        classes.append(mean / np.linalg.norm(mean))
    scores = np.exp(load_params(model.source)[0]["logit_scale"]) * expected[0] @ np.stack(classes).T
    found = model.classify(records()[0], names, templates)
    weights = np.exp(scores)
    np.testing.assert_allclose(found.probabilities, weights / weights.sum(1, keepdims=True), atol=1e-4)
    assert found.names == [names[i] for i in scores.argmax(1)]
    assert model.classify(expected[0], names, templates).names == found.names


def test_weights_and_steps(workdir, model):
    images = records()[0][:2]
    ema = vlm_jax.load(workdir, "ema", step=2)
    assert np.abs(ema.encode_image(images) - model.encode_image(images)).max() > 1e-3
    np.testing.assert_array_equal(
        tree.flatten(ema.params)["logit_scale"], load_params(workdir, "ema")[0]["logit_scale"]
    )
    with pytest.raises(UserError, match="has no checkpoint of step 3"):
        vlm_jax.load(workdir, step=3)


@pytest.mark.parametrize(
    "use, why",
    [
        (lambda m: m.encode_image([b"no image"]), "bytes: not an image"),
        (lambda m: m.encode_image(["missing.jpg"]), "missing.jpg cannot be read"),
        (lambda m: m.encode_image(np.zeros((2, 8, 8, 3), np.float32)), "wanted is uint8"),
        (lambda m: m.encode_image(np.zeros((2, 32, 32, 3), np.uint8), preprocessed=True), "takes floats"),
        (lambda m: m.encode_text([1.5]), "strings, or whole numbers"),
        (lambda m: m.encode_text(np.zeros((2, 7), np.int32)), r"are \[n, 24\]"),
        (lambda m: m.encode_text(np.full((1, 24), 10**6)), "the model knows 0 to"),
        (lambda m: m.classify([], ["a"], ["a photo"]), r"one \{\} each"),
        (lambda m: m.classify([], []), "none given"),
    ],
)
def test_mistakes_are_one_line(model, use, why):
    with pytest.raises(UserError, match=why) as error:
        use(model)
    assert "\n" not in str(error.value)


def test_the_data_of_the_run_need_not_be_there(workdir, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(workdir, moved)
    config = json.loads((moved / "config.json").read_text())
    config["data"]["source"] = {"_target": "data.sources.webdataset.WebDataset", "path": "gone/*.tar"}
    (moved / "config.json").write_text(json.dumps(config))
    vlm_jax.load(moved)
    shutil.rmtree(moved / "assets")
    with pytest.raises(UserError, match="lost the tokenizer"):
        vlm_jax.load(moved)
    with pytest.raises(UserError, match="is no workdir"):
        vlm_jax.load(tmp_path)
    with pytest.raises(UserError, match="batch_size=0"):
        vlm_jax.load(workdir, batch_size=0)


def imported(text: bool, monkeypatch, **transform):
    """A stand-in for weights of another library: an image tower, or towers that came without their tokenizer."""
    vit = dict(width=16, depth=1, num_heads=2, mlp_dim=32, patch_size=8, image_size=16, dtype="float32")
    node = configs.bind("models.vit.ViT", **vit)
    params = ViT(**vit).init(jax.random.key(0))
    words = None
    if text:
        tower = dict(width=16, depth=1, num_heads=2, mlp_dim=32, vocab_size=300, length=8, out_dim=16, dtype="float32")
        node = configs.bind(
            "models.two_tower.TwoTower", image=node, text=configs.bind("models.text.TextTransformer", **tower)
        )
        params = configs.build(node).init(jax.random.key(0))["params"]
        words = configs.bind("data.text.Text", length=8)
    image = configs.bind("data.image.ImageTransform", size=16, **transform)
    found = interop.Imported("mine", node, jax.tree.map(np.asarray, params), image, words, None, "there")
    monkeypatch.setattr(interop, "is_foreign", lambda path: True)
    monkeypatch.setattr(interop, "read", lambda path: found)
    return vlm_jax.load("there")


def test_an_image_tower_alone(monkeypatch):
    model = imported(False, monkeypatch)
    array = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    out, _ = model.network.apply(model.variables["params"], normalize(array, (0.5,) * 3, (0.5,) * 3))
    wanted = out / np.linalg.norm(out, axis=1, keepdims=True)
    np.testing.assert_allclose(model.encode_image(array), wanted, atol=1e-5)
    for use in (model.encode_text, lambda x: model.similarity(array, x), lambda x: model.classify(array, [x])):
        with pytest.raises(UserError, match="there embeds images alone: 'mine' has no text tower"):
            use("a")


def test_towers_without_their_tokenizer(monkeypatch):
    model = imported(True, monkeypatch)
    with pytest.raises(UserError, match="came without its tokenizer"):
        model.encode_text("a")
    ids = np.arange(16).reshape(2, 8)
    assert model.encode_text(ids).shape == (2, 16)
    given = vlm_jax.load("there", tokenizer="bytes")
    np.testing.assert_array_equal(given.tokens("ab"), [[101, 102, *[1] * 6]])


@pytest.mark.full
def test_images_at_their_own_aspect_ratio(monkeypatch):
    model = imported(True, monkeypatch, resize="naflex", patch_size=8, max_patches=12)
    arrays = [np.random.default_rng(i).integers(0, 256, (h, 64, 3), np.uint8) for i, h in enumerate((16, 64, 200))]
    found = model.encode_image(arrays)
    for array, vector in zip(arrays, found):
        seen = normalize(model.image(array)[None], model.image_mean, model.image_std)  # dense, alone, of its own size
        np.testing.assert_allclose(model.network.encode_image(model.variables, seen)[0][0], vector, atol=1e-5)
    assert {model.image(array).shape for array in arrays} == {(16, 48, 3), (24, 24, 3), (48, 16, 3)}
    source = Shapes(size=70, split="val")  # more than a thread prepares at a time
    embedded = embed_source(model.predict["image_embedding"], source, model.image, 64, model.mesh)
    wanted = model.encode_image([source[i]["image"] for i in range(70)])
    np.testing.assert_allclose(embedded.vectors, wanted, atol=1e-5)
    with pytest.raises(UserError, match="many sizes"):
        Pipeline(SOURCE, image=model.image)


def test_the_package_stays_light():
    code = "import sys, vlm_jax; print('jax' in sys.modules); vlm_jax.load; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"], done.stderr
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        vlm_jax.lod  # noqa: B018


def test_the_scoring_tool_goes_on_and_curate_takes_what_it_wrote(workdir, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(chunks, "CHUNK", 8)
    source = ["shapes", "--source.size=21", "--source.split=val"]
    argv = ["score", *source, f"--workdir={workdir}", "--output=r", "--batch_size=8"]
    score, calls = scoring.best_cosines, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(*args)

    monkeypatch.setattr(scoring, "best_cosines", interrupted)
    assert tools(argv) == 130 and not (tmp_path / "r/scores.jsonl").exists()
    assert tools(argv) == 0 and len(calls) == 4
    rows = [json.loads(line) for line in (tmp_path / "r/scores.jsonl").read_text().splitlines()]
    images, captions = records()
    pictures = model.encode_image(images)
    wanted = [max(model.encode_text(own) @ picture) for own, picture in zip(captions, pictures)]
    np.testing.assert_allclose([row["score"] for row in rows], wanted, atol=1e-5)
    assert [row["key"] for row in rows] == [str(SOURCE[k].get("key", k)) for k in range(21)]
    capsys.readouterr()
    assert tools(["curate", *source, "--output=r", "--scores=r/scores.jsonl", "--top_fraction=0.25"]) == 0
    assert json.loads((tmp_path / "r/curate.json").read_text())["kept"] == 5
    assert tools([*argv, "--weights=raw"]) == 2
    assert "invalid choice" in capsys.readouterr().err
