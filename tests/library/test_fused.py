"""`vlm_jax.load` of a decoder of texts and image tokens: texts about pictures, and pictures of captions."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

import vlm_jax
from tests.helpers import small_config
from vlm_jax import config as configs
from vlm_jax import interop, tree
from vlm_jax.checkpoint import Store
from vlm_jax.errors import UserError
from vlm_jax.evaluate.captions import Captions
from vlm_jax.evaluate.drawn import Drawn
from vlm_jax.experiment import fused
from vlm_jax.export import export
from vlm_jax.interop import ours

RNG = np.random.default_rng(0)
PICTURES = [Image.fromarray(RNG.integers(0, 256, (40, 50, 3)).astype(np.uint8)) for _ in range(3)]


def workdir(folder, config):
    """A run of random numbers."""
    config.tokenizer = "bytes"
    (folder / "assets").mkdir(parents=True)
    (folder / "config.json").write_text(configs.to_json(config))
    network = configs.build(ours.open_run(folder).model)
    draw = lambda leaf: np.asarray(0.5 * RNG.standard_normal(leaf.shape), leaf.dtype)
    variables = jax.tree.map(draw, jax.eval_shape(network.init, jax.random.key(0)))
    items = {name: value for name, value in variables.items() if jax.tree.leaves(value)}
    with Store(folder, stacks=network.stacks) as store:
        store.save(3, {**items, "params": tree.unstack(items["params"], network.stacks)}, {"data": None})
    return folder


def small():
    """A very small `chameleon_tiny`, with a codebook."""
    config = configs.load("chameleon_tiny:short")
    config.text.length = config.task.length = 128
    model = config.task.model
    model.decoder.update(width=16, depth=1, mlp_dim=24, num_heads=2, num_kv_heads=2, length=140)
    for part in (model.tokenizer.encoder, model.tokenizer.decoder):
        part.update(width=8, blocks=1)
    model.tokenizer.bottleneck = configs.bind("models.bottlenecks.vq.VectorQuantiser", size=1000, dim=4)
    return config


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return workdir(tmp_path_factory.mktemp("run") / "chameleon", small())


@pytest.fixture(scope="module")
def model(path):
    return vlm_jax.load(path, devices=jax.devices()[:1], batch_size=2)


def test_codes_stand_for_pictures(model):
    codes = model.encode_tokens(PICTURES)
    assert codes.shape == (3, 4, 4) and len(np.unique(codes)) > 1 and model.step == 3
    assert model.decode_tokens(codes).shape == (3, 32, 32, 3)
    assert f"{model}".endswith("texts and images of 4 x 4 codes of 1000>")


def test_texts_about_pictures(model):
    written = model.generate(PICTURES, max_tokens=4)
    assert len(written) == 3 and written == model.describe(model.encode_tokens(PICTURES), max_tokens=4)
    assert model.generate(PICTURES[1], max_tokens=4) == written[1]
    with pytest.raises(UserError, match="generate has no option 'tokens'; did you mean 'max_tokens'"):
        model.generate(PICTURES, tokens=4)


def test_pictures_of_captions(model):
    """What is drawn depends on the seed and the place in the list, and not on batches."""
    images = model.draw(["red", "green", "blue"], seed=1)
    assert images.shape == (3, 32, 32, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(model.draw(["red", "green"], seed=1), images[:2])
    assert (model.draw("red", seed=2) != images[:1]).any()
    codes = model.draw_tokens(["red", "green", "blue"], seed=1, guidance=3)
    np.testing.assert_array_equal(model.decode_tokens(codes), images)


def test_what_cannot_be_drawn_or_read(model):
    with pytest.raises(UserError, match="draw has no option 'max_tokens'"):
        model.draw("red", max_tokens=3)
    with pytest.raises(UserError, match="no captions were given"):
        model.draw([])
    with pytest.raises(UserError, match="codes 0 to 1000: the model has 0 to 999"):
        model.decode_tokens(np.arange(16).reshape(1, 4, 4) * 1000 // 15)
    with pytest.raises(UserError, match=r"whole numbers \[n, 16\], not int64 \[1, 15\]"):
        model.describe(np.zeros((1, 15), int))
    with pytest.raises(UserError, match="beside an image there is room for 111"):
        model.draw("x" * 120)


def test_codes_that_are_none(model):
    with pytest.raises(UserError, match="no codes were given"):
        model.decode_tokens(np.zeros((0, 16), int))
    with pytest.raises(UserError, match=r"whole numbers \[n, 16\], not lists of unequal length"):
        model.describe([[1] * 16, [1]])
    with pytest.raises(UserError, match=r"whole numbers \[n, 16\], not int64 \[\]"):
        model.describe(np.int64(3))


def test_without_a_tokenizer_nothing_is_drawn(model, monkeypatch):
    parts = {"model": dataclasses.replace(model.network, tokenizer=None)}
    parts |= {"fusion": dataclasses.replace(model.fusion, pictures=False)}
    alone = dataclasses.replace(model, task=dataclasses.replace(model.task, **parts))
    monkeypatch.setattr(type(model), "draw_tokens", lambda *args, **options: pytest.fail("it draws"))
    with pytest.raises(UserError, match="was trained on image codes and has no tokenizer of images"):
        alone.draw("red")


def test_evaluators(model, path, tmp_path):
    config = configs.load(str(path))
    late = {"image": model.image, "text": model.text, "pad_id": model.text.pad_id, "vocab_size": model.text.vocab_size}
    late |= fused(config, late)
    evals = {name: configs.build(node, **late) for name, node in config.evals.items()}
    assert isinstance(evals["captions"], Captions) and isinstance(evals["drawn_held_out"], Drawn)
    result = evals["drawn_held_out"](model.predict, model.mesh)
    assert result["examples"] == 8 and "right" not in result and len(result.rows["images"]["truth"]) == 8
    assert sum(len(pictures) for _, pictures in result.artifacts["drawn"].rows) == 8
    classifier = str(workdir(tmp_path / "siglip", small_config("siglip_tiny")))
    judged = dataclasses.replace(evals["drawn_held_out"], classifier=classifier)(model.predict, model.mesh)
    rows = judged.rows["images"]
    np.testing.assert_array_equal(rows["right"], rows["answer"] == rows["truth"])
    assert all(judged[name] == rows[name].mean() for name in ("right", "right_of_tokens", "right_of_images"))


@pytest.mark.full
def test_drawings_do_not_depend_on_batches_or_devices(path):
    config = configs.load(str(path))
    one, other = vlm_jax.load(path, devices=jax.devices()[:1]), vlm_jax.load(path)
    late = {"image": one.image, "text": one.text, "fusion": one.fusion}
    drawn = configs.build(config.evals.drawn_held_out, **late)
    pictures = lambda model, evaluator: evaluator(model.predict, model.mesh).artifacts["drawn"].rows
    few = dataclasses.replace(drawn, batch_size=3)
    for (_, a), (_, b) in zip(pictures(one, drawn), pictures(other, few)):
        np.testing.assert_array_equal([image for image, *_ in a], [image for image, *_ in b])


def test_an_export_is_refused(path, tmp_path):
    export(path, "safetensors", tmp_path / "out")
    with pytest.raises(UserError, match="give the workdir of the run"):
        vlm_jax.load(tmp_path / "out")


def test_exported_for_transformers(path, tmp_path):
    notes = export(path, "hf", tmp_path / "out")
    assert any("tokenizer of images is not written" in note for note in notes)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "chameleon"
    found = interop.read(tmp_path / "out")
    mine = tree.flatten(vlm_jax.load(path).params["decoder"])
    theirs = tree.flatten(found.params)
    assert mine.keys() == theirs.keys() and all((mine[name] == theirs[name]).all() for name in mine)
