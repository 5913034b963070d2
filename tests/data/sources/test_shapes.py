"""Shapes: what is said of a scene is what is drawn, and held-out pairs stay held out."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from vlm_jax.data.sources.shapes import Shapes, source
from vlm_jax.data.sources.shapes.scene import CLASS_NAMES, COLOURS, HELD_OUT, OUTLINES, SIZES, Object, relations
from vlm_jax.errors import UserError

OBJECT = re.compile(rf"a (?:({'|'.join(SIZES)}) )?(?:({'|'.join(COLOURS)}) )?({'|'.join(OUTLINES)})\b")
RELATION = re.compile(r"^a (\w+ \w+) (left of|right of|above|below) a (\w+ \w+)")


def centre(o: dict) -> tuple[float, float]:
    x0, y0, x1, y1 = o["box"]
    return (x0 + x1) / 2, (y0 + y1) / 2


def holds(a: dict, relation: str, b: dict) -> bool:
    (ax, ay), (bx, by) = centre(a), centre(b)
    return {"left of": ax < bx, "right of": ax > bx, "above": ay < by, "below": ay > by}[relation]


def same(a: dict, b: dict) -> bool:
    return np.array_equal(a["image"], b["image"]) and a["text"] == b["text"] and a["label"] == b["label"]


def test_a_record_is_a_function_of_its_index():
    shapes, again = Shapes(words=0.3), pickle.loads(pickle.dumps(Shapes(words=0.3)))
    backwards = {i: again[i] for i in reversed(range(40))}
    assert all(same(shapes[i], backwards[i]) for i in range(40))
    assert not same(shapes[0], shapes[1])
    image = shapes[0]["image"]
    assert image.shape == (32, 32, 3) and image.dtype == np.uint8


def test_scenes_stay_what_they_are():
    """Known values: if they change, runs and results of earlier versions do; raise `_VERSION` then."""
    assert [o["name"] for i in range(4) for o in Shapes().objects(i)] == [
        "red cross",
        "red diamond",
        "black square",
        "brown circle",
        "red diamond",
        "black square",
    ]
    np.testing.assert_allclose(Shapes().objects(0)[0]["box"], [11.35, 6.56, 20.75, 15.96], atol=0.01)


def test_splits_and_seeds_share_no_scene():
    scenes = [
        repr(Shapes(split=split, seed=seed).scene(i))
        for split in ("train", "val", "test")
        for seed in (0, 1)
        for i in range(300)
    ]
    assert len(set(scenes)) == len(scenes)


def test_words_and_questions_do_not_disturb_the_scene():
    plain = Shapes()
    before = plain.scene(3)
    plain.questions(3)
    plain[3]
    assert plain.scene(3) == before
    assert Shapes(image_size=64).scene(3) == before


def test_held_out_pairs_are_neither_seen_nor_named_in_training():
    shapes = Shapes()
    names, text = set(), []
    for i in range(4000):
        names |= {o["name"] for o in shapes.objects(i)}
        text += [q.question + " " + q.answer for q in shapes.questions(i)]
    text += shapes.captions(5 * 4000)
    assert names == set(CLASS_NAMES) - set(HELD_OUT)
    assert not [line for line in text if any(name in line for name in HELD_OUT)]


def test_held_out_pairs_cover_all_colours_and_leave_every_shape_known():
    colours, shapes = zip(*(name.split() for name in HELD_OUT))
    assert sorted(colours) == sorted(COLOURS)
    assert set(shapes) == set(OUTLINES) and len(shapes) > len(set(shapes))


def test_class_names_number_the_labels():
    assert len(Shapes().class_names) == len(set(Shapes().class_names)) == 48
    for pairs, expected in (("held_out", set(HELD_OUT)), ("all", set(CLASS_NAMES))):
        shapes = Shapes(split="test", scenes="single", pairs=pairs)
        records = [(shapes.objects(i), shapes[i]["label"]) for i in range(600)]
        assert all(len(objects) == 1 and objects[0]["label"] == label for objects, label in records)
        assert all(objects[0]["name"] == CLASS_NAMES[label] for objects, label in records)
        assert {CLASS_NAMES[label] for _, label in records} == expected
    several = Shapes(scenes="several")
    assert all(several[i]["label"] == -1 for i in range(20))


def test_numbers_of_objects():
    counted = {
        scenes: Counter(len(Shapes(scenes=scenes).scene(i).objects) for i in range(1500))
        for scenes in ("mixed", "uniform", "several")
    }
    assert 0.56 < counted["mixed"][1] / 1500 < 0.64
    assert all(0.29 < counted["uniform"][n] / 1500 < 0.38 for n in (1, 2, 3))
    assert set(counted["several"]) == {2, 3}
    assert set(counted["mixed"]) == {1, 2, 3}


@pytest.mark.parametrize("size", [64, 160])
def test_pixels_agree_with_the_ground_truth(size):
    shapes = Shapes(image_size=size, split="val", pairs="all", scenes="uniform")
    for i in range(150):
        image, objects = shapes[i]["image"].astype(int), shapes.objects(i)
        background = np.array([shapes.scene(i).background] * 3)
        empty = np.abs(image - background).max(-1) == 0
        for o in objects:
            x0, y0, x1, y1 = o["box"]
            assert 0 < x0 < x1 < size and 0 < y0 < y1 < size
            left, top, right, bottom = int(x0), int(y0), int(np.ceil(x1)), int(np.ceil(y1))
            inside = image[top:bottom, left:right]
            painted = np.abs(inside - COLOURS[o["colour"]]).max(-1) <= 2
            # Area, by the shoelace formula, tells shapes and sizes; the box is tight.
            x, y = (SIZES[o["size"]] * size * OUTLINES[o["shape"]]).T
            area = abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2
            drawn = np.abs(inside - background).sum() / np.abs(COLOURS[o["colour"]] - background).sum()
            assert abs(drawn - area) < 0.08 * area + 4
            assert painted.sum() > 0.6 * area
            rows, columns = np.nonzero(np.abs(inside - background).max(-1) > 0)
            assert rows.min() <= 1 and columns.min() <= 1
            assert rows.max() >= bottom - top - 2 and columns.max() >= right - left - 2
            empty[top:bottom, left:right] = True
        assert empty.all(), "nothing is painted outside the boxes"


def test_objects_do_not_touch():
    shapes = Shapes(scenes="several", image_size=128)
    for i in range(100):
        objects = shapes.objects(i)
        assert len({o["name"] for o in objects}) == len(objects)
        for a, b in itertools.pairwise(objects):
            assert centre(a)[0] <= centre(b)[0] + 1  # left to right
        painted = np.abs(shapes[i]["image"].astype(int) - shapes.scene(i).background).max(-1) > 0
        assert _components(painted) == len(objects)


def _components(mask: np.ndarray) -> int:
    """Number of connected areas."""
    left, number = set(zip(*(index.tolist() for index in np.nonzero(mask)))), 0
    while left:
        number += 1
        edge = [left.pop()]
        while edge:
            y, x = edge.pop()
            near = {(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)} & left
            left -= near
            edge += near
    return number


def test_size_can_be_told_from_the_area():
    area = defaultdict(list)
    shapes = Shapes(scenes="single", image_size=64)
    for i in range(200):
        painted = np.abs(shapes[i]["image"].astype(int) - shapes.scene(i).background).max(-1) > 40
        area[shapes.objects(i)[0]["size"]].append(painted.sum())
    assert max(area["small"]) < min(area["large"])


def test_captions_are_true_and_natural():
    shapes = Shapes(split="val", pairs="all")
    kinds = Counter()
    for i in range(800):
        objects, captions = shapes.objects(i), shapes[i]["text"]
        assert len(captions) == 5
        if len(objects) == 1:
            assert captions.count(f"a picture of a {objects[0]['name']}") == 2
        for caption in captions:
            assert len(caption.encode()) <= 63, "fits into 64 byte tokens with its end"
            said = OBJECT.findall(caption)
            assert said
            for size, colour, shape in said:
                matching = [o for o in objects if o["shape"] == shape and colour in ("", o["colour"])]
                assert any(size in ("", o["size"]) for o in matching)
            if found := RELATION.match(caption):
                a, b = (next(o for o in objects if o["name"] == name) for name in (found[1], found[3]))
                assert holds(a, found[2], b)
                kinds[found[2]] += 1
            else:
                assert len(said) == len(objects), "a list names everything"
                said_as = ("size " if said[0][0] else "") + ("colour " if said[0][1] else "") + "shape"
                kinds[said_as] += 1
    assert kinds["shape"] + kinds["size shape"] == 2 * 800
    assert min(kinds[r] for r in ("left of", "right of", "above", "below")) > 60
    assert kinds["size colour shape"] > 300


def test_relations_leave_out_what_is_hardly_so():
    a = Object("red", "circle", "small", 0.3, 0.3)
    assert relations(a, dataclasses.replace(a, x=0.7)) == ["left of"]
    assert relations(a, dataclasses.replace(a, x=0.35, y=0.1)) == ["below"]
    assert relations(a, dataclasses.replace(a, x=0.1, y=0.7)) == ["right of", "above"]
    assert relations(a, a) == []


def answer(question: str, objects: list[dict]) -> str:
    """The answer worked out from boxes and names alone."""
    numbers = ["zero", "one", "two", "three"]
    if question == "how many objects are there?":
        return numbers[len(objects)]
    if found := re.fullmatch(r"how many (\w+) objects are there\?", question):
        return numbers[sum(o["colour"] == found[1] for o in objects)]
    if found := re.fullmatch(r"what (colour|size) is the (\w+)\?", question):
        (only,) = (o for o in objects if o["shape"] == found[2])
        return only[found[1]]
    if found := re.fullmatch(r"what shape is the (\w+) object\?", question):
        (only,) = (o for o in objects if o["colour"] == found[1])
        return only["shape"]
    if found := re.fullmatch(r"is there a (\w+)( object)?\?", question):
        return "yes" if any(o["colour" if found[2] else "shape"] == found[1] for o in objects) else "no"
    found = re.fullmatch(r"is the (\w+ \w+) (left of|right of|above|below) the (\w+ \w+)\?", question)
    a, b = (next(o for o in objects if o["name"] == name) for name in (found[1], found[3]))
    return "yes" if holds(a, found[2], b) else "no"


def test_answers_are_right_and_balanced():
    shapes = Shapes(split="val", pairs="all", scenes="uniform")
    answers = defaultdict(Counter)
    for i in range(1500):
        objects = shapes.objects(i)
        for question, given, kind in shapes.questions(i):
            assert given == answer(question, objects), question
            answers[kind][given] += 1
    assert set(answers) == {
        "count", "count_colour", "colour", "size", "shape", "exist_colour", "exist_shape", "relation",
    }  # fmt: skip
    share = {kind: max(counts.values()) / sum(counts.values()) for kind, counts in answers.items()}
    assert all(share[kind] < 0.55 for kind in ("exist_colour", "exist_shape", "relation", "count"))
    assert share["count_colour"] < 0.75 and share["size"] < 0.65 and share["colour"] < 0.2 and share["shape"] < 0.25


def test_words_are_written_below_the_objects():
    shapes = Shapes(words=1.0, image_size=96, split="val")
    for i in range(60):
        word = shapes.scene(i).word
        record = shapes[i]
        assert all(caption.endswith(f" and the word {word}") for caption in record["text"][:3])
        band = record["image"][int(0.8 * 96) :].astype(int)
        ink = (np.abs(band - shapes.scene(i).background).max(-1) > 80).mean()
        assert 0.05 < ink < 0.5
        assert all(o["box"][3] <= 0.8 * 96 for o in shapes.objects(i))
    some = Shapes(words=0.25)
    assert 0.2 < sum(bool(some.scene(i).word) for i in range(1000)) / 1000 < 0.3
    assert len({shapes.scene(i).word for i in range(300)}) == 20


def test_captions_without_relations_list_all_objects_from_left_to_right():
    with_relations, without = Shapes(size=200), Shapes(size=200, relations=False)
    assert with_relations.fingerprint != without.fingerprint
    for i in range(200):
        old, new = with_relations[i]["text"], without[i]["text"]
        several = len(without.objects(i)) > 1
        assert new == [old[0], *(old[:1] * 2 if several else old[1:3]), *old[3:]]
        for caption in new:
            assert len(re.findall(r"\ba (?!picture)", caption)) == len(without.objects(i))


def test_captions_for_a_tokenizer_are_those_of_the_records_and_draw_nothing(monkeypatch):
    shapes = Shapes(size=50)
    expected = [caption for i in range(50) for caption in shapes[i]["text"]]
    monkeypatch.setattr(source, "render", None)
    assert list(shapes.captions()) == expected
    assert list(shapes.captions(7)) == expected[:7]
    assert list(shapes.captions(0)) == []


def test_fingerprint_tells_every_option():
    changed = [
        Shapes(),
        Shapes(size=10),
        Shapes(image_size=64),
        Shapes(split="val"),
        Shapes(scenes="single"),
        Shapes(split="val", pairs="all"),
        Shapes(words=0.5),
        Shapes(seed=1),
    ]
    assert len({s.fingerprint for s in changed}) == len(changed)
    assert Shapes().fingerprint == Shapes().fingerprint


def test_bounds():
    shapes = Shapes(size=5)
    assert len(shapes) == 5 and len(list(shapes)) == 5
    for index in (5, -1):
        with pytest.raises(IndexError):
            shapes[index]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"split": "trian"}, "did you mean 'train'"),
        ({"scenes": "singel"}, "did you mean 'single'"),
        ({"pairs": "heldout", "split": "val"}, "did you mean 'held_out'"),
        ({"pairs": "held_out"}, "split='val' or 'test'"),
        ({"pairs": "all"}, "split='val' or 'test'"),
        ({"size": 0}, "size >= 1"),
        ({"image_size": 4}, "image_size >= 8"),
        ({"words": 1.5}, "0 <= words <= 1"),
        ({"seed": -1}, "seed >= 0"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        Shapes(**options)
