"""Conversations: room, labels that are checked, prompts for evaluation, and how little of packed rows is padding."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from tests.data.numbered import PLAIN, png, same, take
from tests.data.pictures import PICTURE, RGB
from tests.data.talks import Talks, strip
from vlm_jax import config
from vlm_jax.config import bind, late
from vlm_jax.data.chat_template import Template, Turn
from vlm_jax.data.conversation_images import FixedImages, NativeImages
from vlm_jax.data.conversations import Conversations
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.packing import Packing
from vlm_jax.data.pipeline import Pipeline
from vlm_jax.data.text import Text
from vlm_jax.data.tokenizers import Bytes
from vlm_jax.errors import UserError
from vlm_jax.experiment import open_experiment

TEXT = Text(length=60, canonicalise="none", pad="pad")
TWO = Conversations(images=FixedImages(count=2, tokens=5))
NATIVE = Conversations(images=NativeImages(count=2, patch_size=4, patches=32, budget=16, merge=2, cls=True))


def user(content) -> dict:
    return {"role": "user", "content": content}


def assistant(content) -> dict:
    return {"role": "assistant", "content": content}


@dataclasses.dataclass(frozen=True)
class Given:
    """Records as they are given, over and over."""

    records: tuple[dict, ...]
    length: int = 8
    name: str = "given"
    fingerprint: str = "f"
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        return {**self.records[index % len(self.records)], "key": f"key{index}"}


def batch_of(*records, conversations=TWO, text=TEXT, image=PLAIN, count=1):
    source = Given(records, length=max(8, len(records)))
    pipeline = Pipeline(source, image, text, conversations=conversations, threads=0, shuffle=False)
    return take(pipeline, count, batch_size=len(records))


def words(batch, row: int, name: str = "text_segment_ids") -> str:
    kept = (batch[name][row] > 0) & (batch["text_image_ids"][row] == 0)
    return Bytes().decode(batch["text"][row][kept])


TALK = {
    "messages": [user("see <image> and <image>"), assistant("yes"), user("why"), assistant("so")],
    "images": [png(1), png(2)],
}
TEXT_ONLY = {"messages": [user("hm"), assistant("oh")]}


def test_a_row_written_out():
    batch, state = batch_of(TALK, TEXT_ONLY)
    end, pad = Bytes.eos_id, Bytes.pad_id
    spelt = lambda text: Bytes().encode(text)
    row = [*spelt("see "), *[pad] * 5, *spelt(" and "), *[pad] * 5, *spelt("\nyes"), end, *spelt("why\nso"), end]
    assert batch["text"][0].tolist() == row + [pad] * (60 - len(row)) and state["unreadable"] == 0
    ids = [0] * 4 + [1] * 5 + [0] * 5 + [2] * 5 + [0] * 12
    assert batch["text_image_ids"][0].tolist() == ids + [0] * (60 - len(ids))
    mask = [False] * 20 + [True] * 4 + [False] * 4 + [True] * 3
    assert batch["target_mask"][0].tolist() == mask + [False] * (60 - len(mask))
    assert batch["text_segment_ids"].sum(1).tolist() == [len(row), 6]
    assert batch["image_mask"].tolist() == [[True, True], [False, False]]
    assert batch["image"][0, :, 0, 0, 0].tolist() == [1, 2] and not batch["image"][1].any()


@pytest.mark.parametrize(
    "length, images, kept, count",
    [
        (31, 2, "see  and \nyes<>why\nso<>", 2),
        (30, 2, "see  and \nyes<>why\nso", 2),
        (28, 2, "see  and \nyes<>", 2),  # no answer in what follows
        (21, 2, "see  and \ny", 2),
    ],
)
def test_a_conversation_that_is_too_long_ends_with_its_row(length, images, kept, count):
    made = Conversations(images=FixedImages(count=images, tokens=5))
    batch, state = batch_of(TALK, conversations=made, text=dataclasses.replace(TEXT, length=length))
    tokens = batch["text"][0][(batch["text_segment_ids"][0] > 0) & (batch["text_image_ids"][0] == 0)]
    assert "".join("<>" if token == Bytes.eos_id else chr(token - 4) for token in tokens) == kept
    assert batch["image_mask"].sum() == count and state["unreadable"] == 0


MIXED = {"messages": [user("a <image>"), assistant("b"), user("c <image>"), assistant("d")], "images": [png(1), png(2)]}


@pytest.mark.parametrize(
    "record, conversations, length, why",
    [
        (TALK, TWO, 20, r"^no answer begins within a row of 20 tokens$"),
        (TALK, dataclasses.replace(TWO, images=FixedImages(count=1, tokens=5)), 60, "^no answer begins within a row"),
        (TALK, dataclasses.replace(TWO, overlong="leave_out"), 30, r"takes 31 tokens, 2 images, .* room for 30, 2$"),
        (
            MIXED,
            Conversations(images=FixedImages(count=1), overlong="leave_out"),
            60,
            r"^it takes 12 tokens, 2 images, and a row has room for 60, 1$",
        ),
        (TALK, Conversations(images=None), 60, r"^it has 2 images, and Conversations\.images is None$"),
        ({**TALK, "images": [png(1)]}, TWO, 60, r"^it has 1 images and 2 places \(<image>\) for them$"),
        ({**TEXT_ONLY, "images": [png(1)]}, TWO, 60, r"^it has 1 images and 0 places"),
        ({**TEXT_ONLY, "image": b"<html>"}, TWO, 60, r"^not an image: it starts with"),
        ({"messages": [user("a"), {"role": "gtp", "content": "b"}]}, TWO, 60, r"^turn 2 has the role 'gtp'"),
        ({"messages": [user("a"), assistant(" ")]}, TWO, 60, "^turn 2, of 'assistant', is an empty answer$"),
        ({"messages": [user("a")]}, TWO, 60, "^it has no answer, so that there is nothing to learn$"),
        ({"messages": []}, TWO, 60, "^it has no answer, so that there is nothing to learn$"),
        ({"image": png(1), "text": " "}, TWO, 60, "^it has no text$"),
    ],
)
def test_what_cannot_be_learnt_from_is_replaced_or_refused_by_its_name(record, conversations, length, why):
    text = dataclasses.replace(TEXT, length=length)
    batch, state = batch_of(TEXT_ONLY, record, TEXT_ONLY, conversations=conversations, text=text)
    assert [words(batch, row) for row in range(3)] == ["hm\noh"] * 3 and batch["target_mask"].any(1).all()
    assert state["unreadable"] == 1
    ((key, told),) = state["unreadable_first"]
    assert key == "key1" and re.search(why, told)
    refusing = dataclasses.replace(conversations, unreadable="refuse")
    with pytest.raises(UserError, match=f"^given: record key1 is unreadable: .*{why.strip('^$')}"):
        batch_of(TEXT_ONLY, record, TEXT_ONLY, conversations=refusing, text=text)


def test_data_of_which_nothing_can_be_learnt_is_refused_by_the_name_of_an_example():
    with pytest.raises(
        UserError, match=r"^source 'given': 8 records in a row are unreadable, the first is key0: it has"
    ):
        batch_of({"messages": [user("a")]})


def test_a_pair_without_a_caption_that_fits_is_replaced():
    made = Conversations(images=FixedImages(tokens=5), overlong="leave_out")
    pair = {"image": png(1), "text": ["word" * 20, "one", "two"]}
    batch, state = batch_of(pair, {"image": png(2), "text": "word" * 20}, conversations=made, count=4)
    assert {words(batch, row, "target_mask") for row in range(8)} == {"one", "two"} and state["unreadable"] == 4


PROMPTS = {"plain": "see  and \nyeswhy\n", "vicuna": "USER: why ASSISTANT:"}


@pytest.mark.parametrize("conversations", [TWO, NATIVE], ids=["fixed", "native"])
@pytest.mark.parametrize("template", PROMPTS)
def test_prompts_are_how_training_s_rows_begin(conversations, template):
    made = dataclasses.replace(conversations, template=template, system="")
    records = [TALK, {**TALK, "messages": TALK["messages"][:3]}, TEXT_ONLY]
    text = dataclasses.replace(TEXT, length=90)
    trained, _ = batch_of(*records[::2], conversations=made, text=text)
    prompts = made.prompts(records, image=PLAIN, text=text)
    assert set(prompts) == {name for name in trained if name not in ("target_mask", "example_id")}
    assert words(prompts, 0).endswith(PROMPTS[template])
    for name, array in prompts.items():
        np.testing.assert_array_equal(array[0], array[1])
        assert array.dtype == trained[name].dtype and array.shape[1:] == trained[name].shape[1:]
    for row, of_training in ((0, 0), (2, 1)):
        count = (prompts["text_segment_ids"][row] > 0).sum()
        assert prompts["text_segment_ids"][row][:count].all()
        learnt = np.flatnonzero(trained["target_mask"][of_training])
        assert count in learnt and count - 1 not in learnt
        for name, array in trained.items():
            if name in prompts:
                cut = slice(count if name.startswith("text") else None)
                np.testing.assert_array_equal(prompts[name][row][cut], array[of_training][cut])


def test_what_is_scored_is_the_last_answer():
    scored = TWO.scored([TALK, TEXT_ONLY], image=PLAIN, text=TEXT)
    trained, _ = batch_of(TALK, TEXT_ONLY)
    assert [words(scored, row, "target_mask") for row in range(2)] == ["so", "oh"]
    assert scored["target_mask"].sum(1).tolist() == [3, 3]
    assert (trained["target_mask"] | ~scored["target_mask"]).all()
    same({n: a for n, a in scored.items() if n != "target_mask"}, {n: trained[n] for n in scored if n != "target_mask"})


def test_prompts_take_pictures_of_any_kind_as_they_are_evaluated():
    varied = ImageTransform(size=16, flip=True, random_resized_crop=(0.3, 0.4))
    records = [{"image": image, "messages": [user("<image>?")]} for image in (PICTURE, RGB)]
    image = TWO.prompts(records, image=varied, text=TEXT)["image"][:, 0]
    np.testing.assert_array_equal(image, np.stack([ImageTransform(size=16)(PICTURE)] * 2))
    asked = TWO.prompts([{"image": PICTURE, "text": "a gradient"}, {"image": PICTURE}], image=varied, text=TEXT)
    assert (asked["text_segment_ids"].sum(1) == 6).all()


@pytest.mark.parametrize(
    "record, function, why",
    [
        (TALK, "prompts", r"^record 1: it takes 28 tokens, 2 images, and a row has room for 25, 2\.$"),
        ({**TALK, "key": "x.json:7"}, "scored", r"^record x\.json:7: it takes 31 tokens"),
        ({"messages": [user("<image>")]}, "prompts", r"^record 1: it has 0 images and 1 places"),
        ({"messages": [user("a")]}, "scored", r"^record 1: it has no answer to be scored\.$"),
        ({"messages": [user("a")], "image": b"?"}, "prompts", r"^record 1: not an image"),
    ],
)
def test_broken_prompts_are_named(record, function, why):
    with pytest.raises(UserError, match=why):
        getattr(TWO, function)([TEXT_ONLY, record], image=PLAIN, text=dataclasses.replace(TEXT, length=25))


@dataclasses.dataclass(frozen=True)
class Mix(Talks):
    """Images and lengths as in instruction data (LLaVA's 665k: nine in ten with one image), an eighth as long."""

    def __getitem__(self, index: int) -> dict:
        rng = np.random.default_rng(index)
        has_image = rng.random() < 0.85
        letters = int(rng.lognormal(np.log(180 if has_image else 500), 0.8) / 8)
        answer = max(2, letters // 2)
        messages = [user("<image>" * has_image + "q" * (letters - answer)), assistant("a" * answer)]
        return {"messages": messages, "images": [strip(index)] * has_image, "key": f"key{index}"}


def test_packed_rows_waste_less_than_a_twentieth():
    """Rows of 512 tokens hold images of 72; unpacked rows need be as long as the longest."""
    packed = Conversations(images=FixedImages(count=8, tokens=72), examples=79, rows=16, per_row=16)
    alone = Conversations(images=FixedImages(tokens=72))
    metrics, waste = {}, {}
    for name, made, length, rows in (("packed", packed, 512, 160), ("alone", alone, 256, 790)):
        text = Text(length=length, canonicalise="none", pad="pad")
        pipeline = Pipeline(Mix(length=5000), PLAIN, text, conversations=made, threads=0)
        batch, state = take(pipeline, 1, batch_size=rows)
        metrics[name] = made.metrics(batch)
        waste[name] = 1 - metrics[name]["packing/text_fill"]
        assert state["rows"] == {"talks": 790} and waste[name] == 1 - (batch["text_segment_ids"] > 0).mean()
        assert metrics[name]["packing/targets"] == batch["target_mask"].sum()
    assert waste["packed"] < 0.05 and waste["alone"] > 0.5
    assert metrics["packed"]["packing/left_out"] == 790 - metrics["packed"]["packing/conversations"] < 790 * 0.05
    assert metrics["alone"]["packing/left_out"] == 0
    half = {name: array[:8] for name, array in batch.items()}
    assert packed.metrics(half)["packing/left_out"] == 79 / 2 - batch["text_segment_ids"][:8].max(axis=1).sum()


def test_shapes_do_not_depend_on_what_a_batch_holds():
    made = dataclasses.replace(NATIVE, examples=4, rows=2, per_row=4)
    shapes = [
        {name: array.shape for name, array in batch_of(*records, conversations=made)[0].items()}
        for records in ([TEXT_ONLY] * 2, [TALK] * 2, [TALK, TEXT_ONLY])
    ]
    assert shapes[0] == shapes[1] == shapes[2]


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(text=None), r"^Pipeline\.conversations needs Pipeline\.text"),
        (dict(text=Text(length=7)), r"^Text\.length=7 has no room for an image and its answer; at least 8 are needed"),
        (dict(text=Text(pad_side="left")), r"^Text\.pad_side='left'"),
        (dict(packing=Packing(patch_size=4)), r"^Pipeline\.packing and conversations say each what a row holds"),
        (dict(image=ImageTransform(size=8, pad_crop=1), conversations=NATIVE), "pad_crop changes the aspect ratio"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError, match=message):
        Pipeline(**{"source": Talks(), "image": PLAIN, "text": TEXT, "conversations": TWO, **options})


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(template="lama2"), r"^template='lama2': did you mean 'llama2'\?$"),
        (dict(rows=0), r"^Conversations\.rows=0 must be at least 1\.$"),
        (dict(examples=9, rows=2, per_row=4), "can never fit into 2 rows of 4"),
        (dict(system="x", template=Template({"user": Turn(), "assistant": Turn("", "<eos>")})), "system needs"),
    ],
)
def test_numbers_that_do_not_fit_are_named(options, message):
    with pytest.raises(UserError, match=message):
        Conversations(**options)


def test_a_template_that_the_tokenizer_cannot_write_is_refused_before_the_first_batch():
    with pytest.raises(UserError, match=r"^tokenizer='bytes' has no token '<\|im_start\|>'"):
        Pipeline(Talks(), PLAIN, TEXT, conversations=Conversations("chatml")).batches(
            seed=0, batch_size=1, rows=np.arange(1)
        )


@dataclasses.dataclass(frozen=True)
class Reading:
    """A task that only says what it reads."""

    conversations: Conversations
    end_id: int
    vocab_size: int

    def batch_spec(self, batch_size: int) -> dict:
        return {}


def test_a_recipe_shares_them_and_its_tokenizer_knows_their_tokens(tmp_path):
    turns = {role: bind("data.chat_template.Turn", after="<end>") for role in ("user", "assistant")}
    shapes = bind("data.sources.shapes.Shapes", size=30, image_size=8)
    recipe = bind(
        "experiment.Experiment",
        task=bind(
            "tests.data.test_conversations.Reading", **{n: late(n) for n in ("conversations", "end_id", "vocab_size")}
        ),
        data=bind(
            "data.pipeline.Pipeline",
            source=bind("data.sources.shapes.ShapesQuestions", shapes=shapes, per_scene=4),
            image=late("image"),
            text=late("text"),
            conversations=late("conversations"),
        ),
        conversations=bind(
            "data.conversations.Conversations",
            template=bind("data.chat_template.Template", turns=turns, tokens=("<end>",)),
            images=bind("data.conversation_images.FixedImages", count=5, tokens=3),
            examples=6,
            rows=2,
            per_row=5,
        ),
        image=bind("data.image.ImageTransform", size=8),
        text=bind("data.text.Text", tokenizer=late("tokenizer"), length=48, pad="pad"),
        tokenizer="train:100",
        optimizer=bind("optim.Optimizer"),
        batch_size=4,
        total_steps=2,
    )
    config.check(recipe)
    experiment = open_experiment(recipe, tmp_path / "assets")
    assert experiment.task.end_id == 4 == experiment.data.conversations.chat(experiment.data.text).end_id
    assert experiment.task.conversations is experiment.data.conversations and experiment.examples == 12
    batch, _ = take(experiment.data, 1, batch_size=4)
    found = batch["text"][batch["target_mask"]]
    assert (found[1::2] == 4).all() and len(found) > 16  # an answer is one token
    assert experiment.data.text.model.unk_id not in batch["text"]
    recipe.batch_size = 3
    with pytest.raises(UserError, match=r"^config\.batch_size=3 is not a multiple of config\.conversations\.rows=2\.$"):
        open_experiment(recipe, tmp_path / "assets")
