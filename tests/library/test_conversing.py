"""`vlm_jax.load` of models that answer: what they write, uncached and alone; scores; lists; what does not fit."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vlm_jax
from vlm_jax.data.sources.shapes import Shapes
from vlm_jax.errors import UserError
from vlm_jax.evaluate.command import main as evaluate
from vlm_jax.library.conversing import ConversationModel
from vlm_jax.tasks import language_model

from . import writers

KINDS = ("llava", "fuyu", "eve", "chat", "documents")
SEEING = ("llava", "fuyu", "eve")
SOME = [kind if kind in ("llava", "chat") else pytest.param(kind, marks=pytest.mark.full) for kind in KINDS]
PICTURES = [Shapes(size=4, split="val")[k]["image"] for k in range(4)]
PROMPTS = ["how many?", "what colour is the circle?", "is it red?"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    found = {}

    def model(kind) -> ConversationModel:
        if kind not in found:
            path = writers.conversing(tmp_path_factory.mktemp("run") / kind, kind)
            found[kind] = vlm_jax.load(path, batch_size=8, devices=jax.devices()[:1])
        return found[kind]

    return model


def hidden_of(model, record, make):
    """The row of one record, and logits [time, vocab] of what comes after each token, without a cache."""
    text = dataclasses.replace(model.text, length=104)
    row = getattr(model.conversations, make)([record], image=model.image, text=text)
    return row, np.asarray(uncached(model.network, model.variables, row))


@functools.partial(jax.jit, static_argnums=0)
def uncached(network, variables, row):
    """Logits [time, vocab] of a batch of one row."""
    return network.hidden(variables, row)[0][0] @ network.head(variables).T


def greedy(model, record, count):
    """Tokens of the answer, each by the whole of what is before it."""
    row, _ = hidden_of(model, record, "prompts")
    taken, out = int(row["text_segment_ids"].sum()), []
    for _ in range(count):
        token = int(np.argmax(uncached(model.network, model.variables, row)[taken - 1]))
        if token == model.conversations.chat(model.text).end_id:
            break
        out.append(token)
        row["text"][0, taken], row["text_segment_ids"][0, taken] = token, 1
        taken += 1
    return model.text.model.decode(out).strip()


def record(prompt, *images):
    parts = [*({"type": "image"} for _ in images), {"type": "text", "text": prompt}]
    return {"messages": [{"role": "user", "content": parts}], "images": images}


@pytest.mark.parametrize("kind", SOME)
def test_a_batch_is_what_each_prompt_gets_alone_without_a_cache(models, kind):
    model = models(kind)
    images = PICTURES[:3] if kind in SEEING else None
    shown = [[picture] for picture in PICTURES[:3]] if kind in SEEING else [[]] * 3
    found = model.generate(images, PROMPTS, max_tokens=5)
    assert found == [greedy(model, record(prompt, *own), 5) for prompt, own in zip(PROMPTS, shown)]
    assert len(set(found)) > 1 and model.step == 3 and "answers texts" in repr(model)
    one = model.generate(images and images[1], PROMPTS[1], max_tokens=5)
    assert isinstance(one, str) and one == found[1]


@pytest.mark.parametrize("kind", SOME)
def test_scores_are_sums_of_log_probabilities(models, kind):
    model = models(kind)
    images = PICTURES[:1] if kind in SEEING else []
    found = model.score(images[0] if images else None, PROMPTS[0], ["red", "a blue star"])
    for answer, score in zip(["red", "a blue star"], found):
        whole = record(PROMPTS[0], *images)
        whole["messages"] = [*whole["messages"], {"role": "assistant", "content": answer}]
        row, logits = hidden_of(model, whole, "scored")
        targets = np.flatnonzero(row["target_mask"][0])
        assert len(targets) == len(answer) + 1  # bytes, and the token that ends it
        log_p = jax.nn.log_softmax(jnp.asarray(logits))[targets - 1, row["text"][0, targets]]
        np.testing.assert_allclose(score, log_p.sum(), rtol=1e-4)
    assert isinstance(model.score(images[0] if images else None, PROMPTS[0], "red"), float)


@pytest.mark.full
def test_images_in_tiles(models):
    """Of any aspect ratio, several to a prompt; each counts, and the same picture squashed is another one."""
    model = models("tiles")
    wide = np.random.default_rng(0).integers(0, 256, (40, 130, 3)).astype(np.uint8)
    pictures = [wide, wide.swapaxes(0, 1), PICTURES[0]]
    listed = model.generate(pictures, PROMPTS[0], max_tokens=3)
    assert listed == [model.generate(picture, PROMPTS[0], max_tokens=3) for picture in pictures]
    both = model.score(pictures[:2], "<image><image>same?", "yes")
    assert both != model.score(pictures[1::-1], "<image><image>same?", "yes")
    squashed = np.asarray(Image.fromarray(wide).resize((64, 64)))
    assert model.score(wide, PROMPTS[0], "red") != model.score(squashed, PROMPTS[0], "red")


@pytest.mark.parametrize("kind", ["llava", "fuyu"])
def test_several_images_in_one_prompt(models, kind):
    """More than a row had in training."""
    model = models(kind)
    prompt = "<image><image>same?"
    if kind == "fuyu":  # two pictures of 64 patches leave no room
        with pytest.raises(UserError, match=r"prompt 0: it takes .* tokens"):
            model.generate(PICTURES[:2], prompt, max_tokens=3)
        return
    found = model.generate(PICTURES[:2], prompt, max_tokens=3)
    assert isinstance(found, str)
    listed = model.generate([PICTURES[:2], PICTURES[1::-1]], prompt, max_tokens=3)
    assert len(listed) == 2 and listed[0] == found
    one = model.score(PICTURES[:2], prompt, "yes")
    assert one != model.score(PICTURES[1::-1], prompt, "yes") != model.score(PICTURES[0], PROMPTS[0], "yes")


def test_messages_and_places(models):
    model = models("llava")
    written = model.score(PICTURES[0], f"<image>{PROMPTS[0]}", "red")
    asked = {"role": "user", "content": f"<image>{PROMPTS[0]}"}
    answered = {"role": "assistant", "content": "blue"}
    np.testing.assert_allclose(model.score(PICTURES[0], PROMPTS[0], "red"), written, rtol=1e-6)
    np.testing.assert_allclose(model.score(PICTURES[0], [asked], "red"), written, rtol=1e-6)
    np.testing.assert_allclose(model.score(PICTURES[0], [asked, answered], "red"), written, rtol=1e-6)
    both = model.score(PICTURES[0], [[asked], [asked, answered, {"role": "user", "content": "sure?"}]], "red")
    np.testing.assert_allclose(both[0], written, rtol=1e-6)
    assert both[1] != both[0]
    assert isinstance(model.generate(None, "how many?", max_tokens=2), str)  # text alone
    assert model.generate([], "how many?") == [] == model.generate(None, [])


def test_few_shapes_are_compiled(models):
    model = models("chat")
    model.generate(None, ["a"] * 8, max_tokens=3)
    before = language_model._answer._cache_size()
    for length in (2, 5, 9, 14, 17, 20, 31):
        for count in (5, 7, 8, 11):
            model.generate(None, ["a" * length] * count, max_tokens=3)
    assert language_model._answer._cache_size() - before <= 3  # rows of 32; batches of 4 (of 11), of 8


def test_options(models):
    model = models("chat")
    greedy, beams = model.generate(None, PROMPTS, max_tokens=6), model.generate(None, PROMPTS, max_tokens=6, beams=3)
    drawn = [model.generate(None, PROMPTS * 4, max_tokens=6, temperature=2.0, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and len(set(drawn[0][::3])) > 1
    assert model.generate(None, PROMPTS, max_tokens=6, temperature=2.0, top_k=1) == greedy
    assert model.generate(None, PROMPTS, max_tokens=6, temperature=2.0, top_p=1e-6) == greedy
    assert len(beams) == 3 and len(model.generate(None, PROMPTS[0]).encode()) <= 3 * model.sampling.max_tokens


def test_a_template_in_place_of_the_runs(models):
    model = models("chat")
    other = vlm_jax.load(model.source, template="llama2", devices=jax.devices()[:1])
    assert other.conversations.template == "llama2"
    assert other.score(None, "a", "b") != model.score(None, "a", "b")
    with pytest.raises(UserError, match=r"no token '<.im_start.>'"):
        vlm_jax.load(model.source, template="chatml")


@pytest.mark.parametrize("options", [{}, dict(layout=dict(data=2, fsdp=2, tensor=2, min_size=1))])
def test_devices_do_not_matter(models, options):
    from vlm_jax.mesh import Layout

    model = models("llava")
    layout = Layout(**options["layout"]) if options else None
    spread = vlm_jax.load(model.source, layout=layout, batch_size=4)
    np.testing.assert_allclose(
        spread.score(PICTURES[:3], PROMPTS, "red"), model.score(PICTURES[:3], PROMPTS, "red"), rtol=1e-4
    )
    assert spread.generate(PICTURES[:3], PROMPTS, max_tokens=3) == model.generate(PICTURES[:3], PROMPTS, max_tokens=3)


def test_its_evaluators_run_on_it(tmp_path, capsys):
    few = {"evals.questions.source.shapes.size": "2", "evals.questions.batch_size": "16"}
    path = writers.workdir(tmp_path / "run", "llava_tiny", writers.CONVERSING, writers.LLAVA, few)
    assert evaluate(["run", str(path)]) == 0
    assert "over_majority" in capsys.readouterr().out
    assert (path / "evaluations/3/results.json").is_file()
    assert evaluate(["run", str(path), "--suite", "--only=zero_shot", f"--output={tmp_path}/out"]) == 2
    assert "the model gives no 'image_embedding', which this evaluator needs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "use", "why"),
    [
        ("llava", lambda m: m.generate(PICTURES[0], "<image> and <image>?"), "prompt 0: it has 1 images and 2 places"),
        ("llava", lambda m: m.generate(None, "<image>?"), "prompt 0: it has 0 images and 1 places"),
        ("llava", lambda m: m.generate(PICTURES[0], [{"role": "user", "content": "a"}]), "1 images and 0 places"),
        ("llava", lambda m: m.generate(b"no image", "a"), "prompt 0: not an image"),
        ("llava", lambda m: m.generate("missing.jpg", "a"), "missing.jpg cannot be read"),
        ("chat", lambda m: m.generate(PICTURES[0], "a"), "images is None"),
        ("chat", lambda m: m.generate(None, ["a", "a" * 200]), "prompt 1: it takes .* a row has room for"),
        ("chat", lambda m: m.generate(None, "a", max_tokens=128), "max_tokens=128 leaves no room"),
        ("chat", lambda m: m.generate(None, "a", maxtokens=9), "no option 'maxtokens'.*max_tokens"),
        ("chat", lambda m: m.generate(None, "a", beams=2, temperature=1.0), "beams=2"),
        ("chat", lambda m: m.generate(None, [{"role": "robot", "content": "a"}]), "the role 'robot'"),
        ("chat", lambda m: m.generate(None, 3), "a text or a list of messages"),
        ("chat", lambda m: m.score(None, ["a", "b"], ["c"] * 3), "2 prompts and 3 answers"),
        ("chat", lambda m: m.score(None, "a"), "which answer"),
        ("chat", lambda m: m.score(None, "a", " "), "empty answer"),
        ("documents", lambda m: m.generate(None, ["a", ""]), "prompt 1 is empty"),
    ],
)
def test_mistakes_are_one_line(models, kind, use, why):
    with pytest.raises(UserError, match=why) as error:
        use(models(kind))
    assert "\n" not in str(error.value)
