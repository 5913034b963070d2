"""Questions about drawn scenes as conversations: each is reached, and is one of its scene's."""

from __future__ import annotations

import collections
import itertools
import pickle

import numpy as np
import pytest

from tests.data.numbered import take
from vlm_jax.data.conversation_images import FixedImages
from vlm_jax.data.conversations import Conversations
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.mixture import Mixture, Part
from vlm_jax.data.pipeline import Pipeline
from vlm_jax.data.sources.shapes import Shapes, ShapesQuestions
from vlm_jax.data.sources.shapes.questions import TYPES
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError

SHAPES = Shapes(size=80, split="val", pairs="all")


def asked(record: dict) -> tuple[str, str, str]:
    user, assistant = record["messages"]
    assert (user["role"], assistant["role"]) == ("user", "assistant")
    content = user["content"]
    question = content if isinstance(content, str) else content[1]["text"]
    assert isinstance(content, str) or content[0] == {"type": "image"}
    return question, assistant["content"], record["type"]


def test_every_question_is_addressed_once():
    source = ShapesQuestions(SHAPES, per_scene=None)
    wanted = [(scene, *question) for scene in range(80) for question in SHAPES.questions(scene)]
    records = [source[index] for index in range(len(source))]
    assert [(int(r["key"].split(":")[0]), *asked(r)) for r in records] == wanted and len(wanted) > 5 * 80
    assert {r["type"] for r in records} == set(TYPES)
    for record in records[::50]:
        np.testing.assert_array_equal(record["image"], SHAPES[int(record["key"].split(":")[0])]["image"])
        assert record["answers"] == [record["messages"][1]["content"]]
    with pytest.raises(IndexError):
        source[len(source)]


def test_questions_are_drawn_by_index_and_differ_within_a_scene():
    source = ShapesQuestions(SHAPES, per_scene=8)
    assert len(source) == 640
    backwards = {index: source[index] for index in reversed(range(640))}
    first = collections.Counter()
    for scene in range(80):
        found = [asked(backwards[8 * scene + number]) for number in range(8)]
        of_scene = [tuple(question) for question in SHAPES.questions(scene)]
        assert set(found) == set(of_scene) and found[: len(of_scene)] == list(dict.fromkeys(found))
        first[found[0][2]] += 1
    assert len(first) >= 7  # the first is of any type
    again = pickle.loads(pickle.dumps(ShapesQuestions(SHAPES)))
    assert [asked(again[scene]) for scene in range(80)] == [asked(backwards[8 * scene]) for scene in range(80)]


def test_a_conversation_may_have_several_turns():
    one, all_of_them = ShapesQuestions(SHAPES, per_scene=8), ShapesQuestions(SHAPES, per_scene=1, turns=8)
    assert len(all_of_them) == 80
    for scene in range(80):
        record = all_of_them[scene]
        turns = [asked({**record, "messages": list(turn)})[1:2] for turn in _turns(record["messages"])]
        count = len(SHAPES.questions(scene))
        assert turns == [asked(one[8 * scene + number])[1:2] for number in range(count)] and 5 <= count <= 8
        last = asked(one[8 * scene + count - 1])
        assert (record["answers"], record["type"]) == ([last[1]], last[2])
        assert [m["content"][0] for m in record["messages"] if not isinstance(m["content"], str)] == [{"type": "image"}]
    second = ShapesQuestions(SHAPES, per_scene=2, turns=3)[1]["messages"]
    assert [m["content"] for m in second[2:]] == [m["content"] for m in all_of_them[0]["messages"][8:12]]
    told = ShapesQuestions(SHAPES, turns=4, described=True)[0]["messages"]
    assert ". " in told[0]["content"] and len(told) == 8 and not any(". " in m["content"] for m in told[1:])


def _turns(messages: list) -> zip:
    return zip(messages[::2], messages[1::2])


def test_a_description_answers_its_question():
    source = ShapesQuestions(SHAPES, per_scene=None, described=True)
    for index in range(0, len(source), 7):
        record = source[index]
        text, answer, type = asked(record)
        scene, question = text.split(". ")
        objects = SHAPES.objects(int(record["key"].split(":")[0]))
        assert "image" not in record and type != "relation"
        for o in objects:
            assert f"{o['size']} {o['colour']} {o['shape']}" in scene
        if type in ("colour", "size", "shape"):
            (named,) = (o for o in objects if o["shape"] in question or f" {o['colour']} " in question)
            assert named[type] == answer
        elif type == "count":
            assert answer == ("zero", "one", "two", "three")[len(objects)]
    assert len(source) < len(ShapesQuestions(SHAPES, per_scene=None))


def test_captions_are_questions_and_answers():
    texts = list(ShapesQuestions(SHAPES).captions())
    assert texts[::2] == [asked(ShapesQuestions(SHAPES)[k])[0] for k in range(80)] and len(texts) == 160
    assert list(ShapesQuestions(SHAPES).captions(3)) == texts[:3]
    described = list(itertools.islice(ShapesQuestions(SHAPES, described=True).captions(), 3))
    assert described[0].startswith("a") and described[1].endswith("?") and len(described) == 3


def test_what_tells_one_from_another():
    changes = ({}, {"per_scene": 2}, {"turns": 2}, {"described": True})
    sources = [ShapesQuestions(SHAPES, **options) for options in changes]
    sources += [ShapesQuestions(Shapes(size=80))]
    assert len({source.fingerprint for source in sources}) == 5 and sources[0].name == "shapes/val/questions"
    with pytest.raises(UserError, match=r"^ShapesQuestions\.per_scene=0 must be at least 1"):
        ShapesQuestions(SHAPES, per_scene=0)
    for options, wanted in (({"turns": 0}, "at least 1"), ({"turns": 2, "per_scene": None}, "1, as per_scene=None")):
        with pytest.raises(UserError, match=rf"^ShapesQuestions\.turns={options['turns']} must be {wanted}"):
            ShapesQuestions(SHAPES, **options)


def test_images_and_descriptions_in_one_batch():
    parts = {"seen": Part(ShapesQuestions(SHAPES)), "told": Part(ShapesQuestions(SHAPES, described=True))}
    pipeline = Pipeline(
        Mixture(parts),
        ImageTransform(size=32),
        Text(length=200, canonicalise="none", pad="pad"),
        conversations=Conversations(images=FixedImages(tokens=4)),
        threads=0,
    )
    batch, state = take(pipeline, 2, batch_size=16)
    assert 0 < batch["image_mask"].sum() == state["rows"]["seen"] < 32 and state["unreadable"] == 0
    assert ((batch["text_image_ids"] > 0).sum(1) == 4 * batch["image_mask"][:, 0]).all()
