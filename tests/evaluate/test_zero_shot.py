"""Zero-shot accuracy against hand-computed cases, on any number of devices and at any batch size."""

import dataclasses

import jax
import numpy as np
import pytest

from vlm_jax.data.image import ImageTransform
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError
from vlm_jax.evaluate.zero_shot import ZeroShot, ranks
from vlm_jax.mesh import Layout

CLASSES = ("red", "green", "blue")


@dataclasses.dataclass(frozen=True)
class Plain:
    """Images of one colour; every tenth is labelled wrongly."""

    size: int = 37
    name: str = "plain"
    fingerprint: str = "0"
    class_names: tuple[str, ...] = CLASSES

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        colour = i % 3
        image = np.zeros((4, 4, 3), np.uint8)
        image[..., colour] = 255
        return {"image": image, "text": CLASSES[colour], "label": (colour + (i % 10 == 0)) % 3}


@dataclasses.dataclass(frozen=True)
class Labelled(Plain):
    """The same images with labels of one's own."""

    labels: tuple[int, ...] = ()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return {**super().__getitem__(i), "label": self.labels[i]}


def predict():
    """An image is its mean colour; a text is the class whose first letter it ends with."""
    text = Text(length=8)
    rows = {name: text(name)[0] for name in CLASSES}

    def text_embedding(tokens):
        return jax.vmap(lambda row: jax.numpy.stack([(row == rows[n]).all() * 1.0 for n in CLASSES]))(tokens)

    return {"image_embedding": lambda x: x.mean((1, 2)) / 255.0, "text_embedding": text_embedding}


def evaluator(**changes):
    return ZeroShot(source=Plain(), image=ImageTransform(size=4), text=Text(length=8), templates=("{}",), **changes)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("batch_size", [1, 8, 37, 256])
def test_exact_for_any_batch_size_and_devices(devices, batch_size):
    result = evaluator(batch_size=batch_size)(predict(), Layout().make(jax.devices()[:devices]))
    assert result["top1"] == pytest.approx(33 / 37)
    assert result["examples"] == 37
    assert {row[0] for row in result.artifacts["classes"].rows} == set(CLASSES)


def test_records_of_no_class_are_not_scored_and_unknown_classes_are_an_error():
    mesh = Layout().make(jax.devices()[:1])
    mixed = dataclasses.replace(evaluator(), source=Labelled(labels=(0, -1, 2, -1)))
    result = mixed(predict(), mesh)
    assert result["examples"] == 2 and result["top1"] == 1.0
    with pytest.raises(UserError, match="no label"):
        dataclasses.replace(evaluator(), source=Labelled(labels=(-1, -1)))(predict(), mesh)
    with pytest.raises(UserError, match="a label 3, where there are 3 classes"):
        dataclasses.replace(evaluator(), source=Labelled(labels=(0, 3)))(predict(), mesh)


def test_ties_count_against_the_model():
    assert (ranks(np.zeros((5, 4)), np.zeros(5, int)) == 3).all()


def test_a_wrong_answer_is_named_where_classes_tie():
    same = lambda x: jax.numpy.ones((len(x), 3))
    result = evaluator()({"image_embedding": same, "text_embedding": same}, Layout().make(jax.devices()[:1]))
    rows = result.rows["images"]
    assert result["top1"] == 0 and not (rows["truth"] == rows["answer"]).any()


def test_templates_are_averaged_and_made_unit_norm():
    both = dataclasses.replace(evaluator(), templates=("{}", " {} "))
    np.testing.assert_allclose(both.classes(predict(), Layout().make(jax.devices()[:1])), np.eye(3), atol=1e-6)


def test_bad_templates_and_classes():
    with pytest.raises(UserError, match=r"each is a prompt with one \{\}"):
        dataclasses.replace(evaluator(), templates=("a photo",))
    with pytest.raises(UserError, match="needs class names"):
        dataclasses.replace(evaluator(), source=Plain(class_names=()))
