"""Classes and captions chosen by likelihood, with likelihoods that are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluate.toy import IMAGE, Source, picture
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError
from vlm_jax.evaluate.likelihood import GREY, LikelihoodChoose, LikelihoodZeroShot
from vlm_jax.evaluate.readers.base import Choice
from vlm_jax.mesh import Layout

TEXT = Text(length=16, bos=True)
NAMES = ("red", "green", "blue")


def mesh(devices=1):
    return Layout().make(jax.devices()[:devices])


def predict(table, grey=()):
    """log p of the listed texts: `table[text]` holds a value for each picture, by its first byte; `grey[text]` of grey.

    A text that is not listed is a mistake of the test.
    """
    rows = jnp.asarray(TEXT(list(table)))
    values = np.zeros((len(table), 256), np.float32)
    for k, (text, of_pictures) in enumerate(table.items()):
        values[k, : len(of_pictures)] = of_pictures
        values[k, GREY] = dict(grey).get(text, 0.0)

    @jax.jit
    def log_likelihood(image, tokens):
        assert image.shape[0] == tokens.shape[0] and image.dtype == jnp.uint8
        which = (rows[None] == tokens[:, None]).all(2).argmax(1)
        return jnp.asarray(values)[which, image[:, 0, 0, 0]]

    return {"log_likelihood": log_likelihood}


def source(labels):
    """Picture k has k as its first byte."""
    return Source(tuple({"image": picture([k / 255]), "label": label} for k, label in enumerate(labels)), NAMES)


def evaluator(labels, **changes):
    return LikelihoodZeroShot(source=source(labels), image=IMAGE, text=TEXT, templates=("a {}",), **changes)


TABLE = {"a red": [-1, -9, -5, -3, -7], "a green": [-5, -2, -4, -8, -6], "a blue": [-6, -3, -6, -1, -5]}


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_likeliest_class_for_any_batch_size_and_devices(devices, batch_size):
    result = evaluator([0, 1, 2, 0, -1], batch_size=batch_size)(predict(TABLE), mesh(devices))
    assert result["top1"] == 2 / 4 and result["examples"] == 4
    assert result.rows["images"]["answer"].tolist() == ["red", "green", "green", "blue"]
    of = np.exp(np.array([TABLE[f"a {name}"][:4] for name in NAMES]))
    np.testing.assert_allclose(result.rows["images"]["confidence"], (of / of.sum(0)).max(0), rtol=1e-5)


def test_what_is_likely_of_any_image_is_taken_off():
    """Green is likeliest everywhere, by 4 of grey; without that it is each time the class that the image is of."""
    table = {"a red": [-6, -9], "a green": [-5, -5], "a blue": [-9, -6]}
    model = predict(table, grey={"a red": -8, "a green": -4, "a blue": -8})
    found = {p: evaluator([0, 2], prior=p)(model, mesh()).rows["images"]["answer"].tolist() for p in (0.0, 1.0)}
    assert found == {0.0: ["green", "green"], 1.0: ["red", "blue"]}


def test_a_long_name_has_no_disadvantage_by_the_token():
    """Bytes are tokens: with the end token "a red" has 6 after the first, "a green" 8."""
    table = {"a red": [-6.0], "a green": [-7.2], "a blue": [-14.0]}
    for normalise, answer in ((False, "red"), (True, "green")):
        result = evaluator([0], normalise=normalise)(predict(table), mesh())
        assert result.rows["images"]["answer"].tolist() == [answer]


def test_a_class_of_several_prompts_is_as_likely_as_they_are_on_average():
    table = {f"{t} {n}": [v] for t, vs in {"a": (-1, -2, -9), "one": (-9, -2, -9)}.items() for n, v in zip(NAMES, vs)}
    both = dataclasses.replace(evaluator([1]), templates=("a {}", "one {}"))
    scores = both.scores(predict(table), mesh(), {}).vectors
    np.testing.assert_allclose(scores[0], np.log([(np.exp(-1) + np.exp(-9)) / 2, np.exp(-2), np.exp(-9)]), rtol=1e-5)


def test_a_model_that_does_not_look_scores_nothing_once_the_prior_is_off():
    same = {text: [-3.0 - k] * 3 for k, text in enumerate(TABLE)}
    grey = {text: values[0] + 1e-5 for text, values in same.items()}
    assert evaluator([0, 1, 2], prior=1.0)(predict(same, grey), mesh())["top1"] == 0


@dataclasses.dataclass(frozen=True, eq=False)
class Choices(Source):
    def choices(self, index):
        return self.records[index]["choices"]


def choose(*choices, **changes):
    records = tuple({"image": picture([k / 255]), "choices": mine} for k, mine in enumerate(choices))
    return LikelihoodChoose(source=Choices(records), image=IMAGE, text=TEXT, **changes)


@pytest.mark.parametrize("devices", [1, 8])
def test_choices_by_likelihood(devices):
    """Images with none, one and several choices, whose texts are one another's wrong ones."""
    table = {"cat": [-1, -5, -2, -1], "dog": [-3, -4, -2, -9], "fox": [-9, -1, -5, -9]}
    a, b = Choice(("cat", "dog"), "a"), Choice(("dog", "cat", "fox"), "b")
    result = choose((a,), (a, b), (a,), ())(predict(table), mesh(devices))
    assert result["examples"] == 4 and result["accuracy"] == 1 / 4  # of image 2 the two are a tie
    assert result.rows["cases"]["answer"].tolist() == ["cat", "dog", "fox", "dog"]
    assert result["a"] == 1 / 3 and result["b"] == 0 and result["macro"] == pytest.approx(1 / 6)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(4)))
def test_the_order_of_images_changes_nothing(order):
    table = {"cat": [-1, -5, -2, -1], "dog": [-3, -4, -3, -9]}
    whole = choose(*[(Choice(("cat", "dog"), "a"),)] * 4)
    records = tuple(whole.source.records[k] for k in order)
    moved = dataclasses.replace(whole, source=Choices(records))(predict(table), mesh())
    assert moved["accuracy"] == 3 / 4
    assert [order[k] for k in np.flatnonzero(~moved.rows["cases"]["accuracy"])] == [1]


def test_mistakes():
    with pytest.raises(UserError, match="gives no 'log_likelihood'"):
        evaluator([0])({"image_embedding": None}, mesh())
    with pytest.raises(UserError, match="prior=2"):
        evaluator([0], prior=2.0)
    with pytest.raises(UserError, match="LikelihoodZeroShot: toy has no label"):
        evaluator([-1])(predict(TABLE), mesh())
    with pytest.raises(UserError, match="LikelihoodChoose: none of the 1 images of toy can be read"):
        choose(())(predict(TABLE), mesh())
