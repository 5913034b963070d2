"""`vlm_jax.load` of CoCa and captioners: what they write and score, uncached and alone, beside embeddings."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vlm_jax
from vlm_jax import config as configs
from vlm_jax.data.sources.shapes import Shapes
from vlm_jax.errors import UserError
from vlm_jax.library.captions import CaptionModel
from vlm_jax.models.coca import CoCa

from . import writers

PICTURES = [Shapes(size=3, split="val")[k]["image"] for k in range(3)]
SMALL = {"width": "16", "depth": "1", "mlp_dim": "32", "num_heads": "2"}
TOWERS = {f"task.model.{part}.{k}": v for part in ("image", "text", "decoder") for k, v in SMALL.items()}
COCA = TOWERS | {"tokenizer": "bytes", "task.model.image.stem_channels": "()", "task.model.image.posemb": "learn"}
COCA["task.model.decoder.context_width"] = SMALL["width"]


def captioner():
    image = configs.bind("models.vit.ViT", width=16, depth=1, mlp_dim=32, num_heads=2, image_size=32, patch_size=8,
                         pool="gap", dtype="float32")  # fmt: skip
    sizes = dict(width=16, depth=1, mlp_dim=32, num_heads=2, length=25, vocab_size=260, dtype="float32")
    ids = dict(pad_id=configs.late("pad_id"), eos_id=configs.late("eos_id"))
    decoder = configs.bind("models.captioner.TextDecoder", **sizes, **ids)
    return configs.bind("models.captioner.Captioner", image=image, decoder=decoder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    found = {}

    def model(kind) -> CaptionModel:
        if kind not in found:
            folder = tmp_path_factory.mktemp("run") / kind
            if kind == "coca":
                writers.workdir(folder, "coca_tiny", COCA, {"text.pad": "pad"})
            else:
                config = configs.load("coca_tiny")
                config.task = configs.bind("tasks.image_to_text.ImageToText", model=captioner())
                pad = "eos" if kind == "captioner, padded with ends" else "pad"
                writers.written(folder, config, {"text.pad": pad, "tokenizer": "bytes"})
            found[kind] = vlm_jax.load(folder, batch_size=4, devices=jax.devices()[:1])
        return found[kind]

    return model


def logits(model, image, tokens):
    """Of what comes after each token, without a cache."""
    text = np.full((1, 25), model._text.pad_id, np.int32)
    text[0, : len(tokens)] = tokens
    return np.asarray(_logits(model.network, model.variables, np.stack([model.image(image)]), text))


@functools.partial(jax.jit, static_argnums=0)
def _logits(network, variables, image, text):
    context = network.encode_image(variables, image)[1]["tokens"]
    read = network.encode_text(variables, text)[1]["tokens"] if isinstance(network, CoCa) else text
    return network.decode(variables, context, read[:, :-1])[0] @ network.head(variables).T


def greedy(model, image, prompt, count):
    tokens = [model.text.bos_id, *model.text.model.encode(prompt)]
    begin = len(tokens)
    for _ in range(count):
        tokens.append(int(logits(model, image, tokens)[len(tokens) - 1].argmax()))
        if tokens[-1] == model.text.eos_id:
            tokens.pop()
            break
    return model.text.model.decode(tokens[begin:]).strip()


KINDS = (pytest.param("coca", marks=pytest.mark.full), "captioner", "captioner, padded with ends")


@pytest.mark.parametrize("kind", KINDS)
def test_captions_are_what_each_image_gets_alone_without_a_cache(models, kind):
    model = models(kind)
    assert model.generate(PICTURES, max_tokens=4) == [greedy(model, image, "", 4) for image in PICTURES]
    begins = ["a", "a red", "two of"]
    wanted = [greedy(model, image, begin, 4) for image, begin in zip(PICTURES, begins)]
    assert model.generate(PICTURES, begins, max_tokens=4) == wanted
    assert model.generate(PICTURES[0], "a", max_tokens=4) == wanted[0]
    assert model.encode_image(PICTURES).shape == (3, model.dim)


@pytest.mark.parametrize("kind", KINDS)
def test_scores(models, kind):
    model = models(kind)
    for prompt, answer in (("", "a red star"), ("a", "blue square")):
        begin = [model.text.bos_id, *model.text.model.encode(prompt)]
        tokens = [*begin, *model.text.model.encode(answer), model.text.eos_id]
        log_p = jax.nn.log_softmax(jnp.asarray(logits(model, PICTURES[0], tokens)))
        places = np.arange(len(begin), len(tokens))
        score = model.score(PICTURES[0], prompt, answer)
        np.testing.assert_allclose(score, log_p[places - 1, np.array(tokens)[places]].sum(), rtol=1e-4)
        rows = np.full((1, 25), model._text.pad_id, np.int32)
        rows[0, : len(tokens)] = tokens
        if not prompt:
            whole = model.predict["log_likelihood"](np.stack([model.image(PICTURES[0])]), rows)
            np.testing.assert_allclose(score, float(whole[0]), rtol=1e-4)
    several = model.score(PICTURES[0], "a", ["blue square", "red"])
    np.testing.assert_allclose(several[0], score, rtol=1e-5)


def test_coca_still_compares(models):
    model = models("coca")
    assert model.similarity(PICTURES, ["a red star", "a blue one"]).shape == (3, 2)
    drawn = [model.generate(PICTURES, temperature=3.0, max_tokens=5, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("use", "why"),
    [
        (lambda m: m.generate(None), "one image at a time, not 0"),
        (lambda m: m.generate(PICTURES[0], [{"role": "user", "content": "a"}]), "no messages"),
        (lambda m: m.generate(PICTURES[0], "a" * 40), "leaves no room|the model has length=25"),
        (lambda m: m.score(PICTURES[0]), "which answer"),
        (lambda m: m.score(PICTURES[0], "a", "b" * 40), "a text of 43 tokens: the model has length=25"),
        (lambda m: m.encode_text("a"), "embeds images alone"),
    ],
)
def test_mistakes_are_one_line(models, use, why):
    with pytest.raises(UserError, match=why) as error:
        use(models("captioner"))
    assert "\n" not in str(error.value)
