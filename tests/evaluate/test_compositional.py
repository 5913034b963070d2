"""Winoground and choices of captions: by hand, for a collapsed model, and on drawn shapes."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluate import toy
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.sources.shapes import Shapes
from vlm_jax.data.sources.shapes.scene import relations
from vlm_jax.errors import UserError
from vlm_jax.evaluate.choice import Choose
from vlm_jax.evaluate.readers.base import Choice
from vlm_jax.evaluate.readers.shapes import CHANGES, ShapesChoices, ShapesLabels, ShapesWinoground, swapped
from vlm_jax.evaluate.winoground import Winoground, matched
from vlm_jax.mesh import Layout

ONE = Layout().make(jax.devices()[:1])
SHAPES = Shapes(size=60, split="test", scenes="several", image_size=16)


def test_the_three_scores_by_hand():
    """Similarities [image, caption]: all right; texts alone; images alone; nothing; a tie."""
    scores = [[[3, 1], [1, 3]], [[3, 2], [4, 5]], [[3, 4], [2, 5]], [[1, 3], [3, 1]], [[3, 3], [1, 4]]]
    right = matched(np.array(scores, float))
    assert right["text"].tolist() == [True, True, False, False, False]
    assert right["image"].tolist() == [True, False, True, False, True]
    assert right["group"].tolist() == [True, False, False, False, False]


def test_chance_is_what_the_paper_says():
    right = matched(np.random.default_rng(0).normal(size=(200_000, 2, 2)))
    for name, chance in (("text", 1 / 4), ("image", 1 / 4), ("group", 1 / 6)):
        assert right[name].mean() == pytest.approx(chance, abs=0.004)


@given(st.floats(-1, 1), st.floats(0, 1e-7))
def test_what_is_equal_up_to_rounding_is_a_tie(value, rounding):
    scores = np.full((1, 2, 2), value)
    scores[0, 0, 0] += rounding
    assert not any(right[0] for right in matched(scores).values())


@dataclasses.dataclass(frozen=True, eq=False)
class Cases(toy.Source):
    """Images with choices of captions."""

    made: tuple[tuple[Choice, ...], ...] = ()

    def choices(self, index):
        return self.made[index]


def cases():
    records = tuple({"image": toy.picture(v)} for v in ([1, 0], [0, 1], [1, 1]))
    made = (
        (Choice(("x", "y"), "swap"), Choice(("y", "x"), "add")),  # right, wrong
        (Choice(("y", "x", "xy"), "swap"),),  # right against both
        (Choice(("x", "y"), "swap"), Choice(("xy", "y", "x"), "add")),  # a tie, right
    )
    return Cases(records, made=made)


MODEL = toy.predict(2, {"x": [1, 0], "y": [0, 1], "xy": [1, 1]})


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("batch_size", [1, 64])
def test_choices_by_hand(devices, batch_size):
    evaluator = Choose(source=cases(), image=toy.IMAGE, text=toy.TEXT, batch_size=batch_size)
    result = evaluator(MODEL, Layout().make(jax.devices()[:devices]))
    assert dict(result) == pytest.approx(
        {"accuracy": 3 / 5, "macro": 7 / 12, "swap": 2 / 3, "add": 1 / 2, "examples": 5}
    )
    rows = result.rows["cases"]
    assert rows["index"].tolist() == [0, 0, 1, 2, 2] and rows["accuracy"].tolist() == [True, False, True, False, True]
    assert rows["answer"].tolist() == ["x", "x", "y", "y", "xy"]


def test_subsets_that_are_too_small_or_left_out_do_not_count_in_the_mean():
    evaluator = Choose(source=cases(), image=toy.IMAGE, text=toy.TEXT, least=3)
    assert evaluator(MODEL, ONE)["macro"] == pytest.approx(2 / 3)
    evaluator = Choose(source=cases(), image=toy.IMAGE, text=toy.TEXT, left_out=("swap",))
    assert evaluator(MODEL, ONE)["macro"] == pytest.approx(1 / 2)


def test_a_collapsed_model_scores_nothing_on_any_subset_and_any_score():
    options = dict(image=ImageTransform(size=16), text=toy.TEXT)
    chosen = Choose(source=ShapesChoices(SHAPES, (*CHANGES, "order")), **options)(toy.collapsed(), ONE)
    assert {value for name, value in chosen.items() if name != "examples"} == {0.0}
    assert {*CHANGES, "order"} <= set(chosen) and chosen["examples"] > 300
    matched = Winoground(source=ShapesWinoground(SHAPES), **options)(toy.collapsed(), ONE)
    assert matched["text"] == matched["image"] == matched["group"] == 0.0 and matched["examples"] > 10


def facts(caption: str, scene) -> bool:
    """Whether a caption is true of a scene, read word by word."""
    for relation in ("left of", "right of", "above", "below"):
        if f" {relation} " in caption:
            a, b = (phrase.removeprefix("a ") for phrase in caption.split(f" {relation} "))
            named = {o.name: o for o in scene.objects}
            return a in named and b in named and relation in relations(named[a], named[b])
    said = [phrase.strip().removeprefix("a ") for phrase in caption.replace(" and ", ", ").split(",")]
    left = list(scene.objects)
    for phrase in said:
        fits = [o for o in left if phrase in (o.name, f"{o.size} {o.name}")]
        if not fits:
            return False
        left.remove(fits[0])
    return True


def test_right_captions_of_shapes_are_true_and_wrong_ones_false():
    source = ShapesChoices(SHAPES)
    seen = set()
    for index in range(len(source)):
        scene = SHAPES.scene(index)
        for choice in source.choices(index):
            right, *wrong = choice.texts
            assert facts(right, scene), (choice, scene)
            assert not any(facts(text, scene) for text in wrong), (choice, scene)
            seen.add(choice.subset)
    assert seen == set(CHANGES)


def test_order_is_the_same_words():
    for index in range(10):
        for choice in ShapesChoices(SHAPES, ("order",)).choices(index):
            right, *wrong = (sorted(text.replace(",", " ").split()) for text in choice.texts)
            assert len(wrong) >= 1 and all(words == right for words in wrong)
            assert choice.texts[0] not in choice.texts[1:]


def test_pairs_of_shapes_are_matched_by_the_diagonal_alone():
    source = ShapesWinoground(SHAPES)
    for pair in range(len(source) // 2):
        tag, scenes, captions = source._pairs[pair]
        assert [[facts(caption, scene) for caption in captions] for scene in scenes] == [[True, False], [False, True]]
        assert sorted(captions[0].replace(",", "").split()) == sorted(captions[1].replace(",", "").split())
        images = [source[2 * pair + j]["image"] for j in (0, 1)]
        assert (images[0] != images[1]).any() and source.tag(pair) == tag
    assert {source.tag(pair) for pair in range(len(source) // 2)} == {"Attribute", "Relation"}


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("batch_size", [4, 64])
def test_a_model_that_knows_the_scene_matches_every_pair(devices, batch_size):
    source = ShapesWinoground(dataclasses.replace(SHAPES, size=20))
    count = len(source)
    known = np.stack([source[i]["image"] for i in range(count)])
    rows = toy.TEXT([source.caption(i) for i in range(count)])
    one_hot = lambda same: jax.nn.one_hot(same.argmax(1), count)
    predict = {
        "image_embedding": lambda x: one_hot((x[:, None] == known[None]).all((2, 3, 4))),
        "text_embedding": lambda x: one_hot((x[:, None] == rows[None]).all(2)),
    }
    evaluator = Winoground(source=source, image=ImageTransform(size=16), text=toy.TEXT, batch_size=batch_size)
    result = evaluator(predict, Layout().make(jax.devices()[:devices]))
    assert result["text"] == result["image"] == result["group"] == 1.0
    assert result.rows["pairs"]["index"].tolist() == list(range(0, count, 2))


def test_labels_and_groups_of_shapes():
    source = ShapesLabels(size=30, split="test", image_size=16)
    for index in range(30):
        record = source[index]
        objects = source.objects(index)
        assert np.flatnonzero(record["labels"]).tolist() == sorted(o["label"] for o in objects)
        assert source.group_names[record["group"]] == ("one", "two", "three")[len(objects) - 1]
    sized = dataclasses.replace(source, group="size")
    groups = {sized[i]["group"] for i in range(30)}
    assert groups == {-1, 0, 1}


def test_colours_are_swapped_in_place():
    scene = next(s for s in map(SHAPES.scene, range(60)) if len(s.objects) == 2)
    other = swapped(scene)
    assert [(o.x, o.y, o.shape) for o in other.objects] == [(o.x, o.y, o.shape) for o in scene.objects]
    assert [o.colour for o in other.objects] == [o.colour for o in scene.objects][::-1]


def test_mistakes():
    with pytest.raises(UserError, match="'swap' is none of add_obj"):
        ShapesChoices(SHAPES, ("swap",))
    with pytest.raises(UserError, match="wanted are scenes='several'"):
        ShapesChoices(Shapes(size=4))
    with pytest.raises(UserError, match="none of 1 scenes makes a pair"):
        len(ShapesWinoground(dataclasses.replace(SHAPES, size=1)))
