"""Boxes that are written: overlaps by hand, and a model that reads the prompt."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.data.image import ImageTransform
from vlm_jax.data.prompted import Prompted
from vlm_jax.data.sources.located import Located
from vlm_jax.data.sources.shapes import Shapes
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError
from vlm_jax.evaluate.referring import Referring, iou
from vlm_jax.mesh import Layout

SOURCE = Located(Shapes(size=11, image_size=16, scenes="uniform"), bins=100)
PROMPTED = Prompted(Text(length=64, canonicalise="none", bos=True, pad="pad"))
EVALUATOR = Referring(source=SOURCE, image=ImageTransform(size=16), prompted=PROMPTED, batch_size=4)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 1, 1), (0, 0, 1, 1), 1),
        ((0, 0, 1, 1), (0.5, 0, 1.5, 1), 1 / 3),
        ((0, 0, 1, 1), (1, 0, 2, 1), 0),
        ((0, 0, 1, 1), (2, 2, 3, 3), 0),
        ((1, 1, 0, 0), (0, 0, 1, 1), 0),
        ((0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5), 0),
    ],
)
def test_overlap(a, b, expected):
    assert iou(a, b) == pytest.approx(expected)


def oracle(wrong=()):
    """It finds the image and its description again, and writes the box, or of some records something else."""
    images = {SOURCE[k]["image"].tobytes(): k for k in range(len(SOURCE))}

    def generate(pixels, prompts):
        answers = []
        for image, prompt in zip(np.asarray(pixels), np.asarray(prompts)):
            index = images.get(image.tobytes())  # None of the rows that fill a batch
            if index is None:
                answers.append("")
                continue
            (description,) = PROMPTED.text.decode(prompt[None])
            boxes = {f"aref {name}": box for name, box in SOURCE.source.regions(index)}
            answers.append(dict(wrong).get(index, SOURCE.written(boxes[description])))
        rows = np.zeros((len(answers), 40), np.int32)
        for row, answer in zip(rows, answers):
            tokens = [*PROMPTED.text.model.encode(answer), PROMPTED.text.eos_id]
            row[: len(tokens)] = tokens
        return jax.device_put(jnp.asarray(rows), pixels.sharding)

    return {"generate": generate}


@pytest.mark.parametrize("devices", [1, 4])
def test_every_region_is_found_by_who_knows_it(devices):
    result = EVALUATOR(oracle(), Layout().make(jax.devices()[:devices]))
    assert result["accuracy"] == 1 and result["examples"] == 11
    assert result["iou"] > 0.9 and result["no_box"] == 0


def test_what_is_wrong_and_what_is_no_box():
    result = EVALUATOR(oracle({2: "0 0 1 1", 5: "somewhere", 7: "1 2 3"}.items()), Layout().make(jax.devices()[:1]))
    assert result["accuracy"] == pytest.approx(8 / 11) and result["no_box"] == pytest.approx(2 / 11)
    rows = result.rows["referring"]
    assert [k for k, overlap in zip(rows["index"], rows["iou"]) if overlap < 0.5] == [2, 5, 7]
    assert rows["answer"][5] == "somewhere"


def test_regions_of_a_list_are_asked_for_in_turn():
    asked = EVALUATOR._asked()
    for index, (name, _) in enumerate(asked):
        names = [name for name, _ in SOURCE.source.regions(index)]
        assert name == names[index % len(names)]


def test_mistakes_are_named():
    mesh = Layout().make(jax.devices()[:1])
    with pytest.raises(UserError, match="Referring: the model gives no 'generate'"):
        EVALUATOR({"image_embedding": None}, mesh)

    class Plain:
        name, fingerprint, class_names = "plain", "", ()

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return {"image": np.zeros((16, 16, 3), np.uint8), "text": "a"}

    empty = Referring(source=Located(Plain()), image=ImageTransform(size=16), prompted=PROMPTED)
    with pytest.raises(UserError, match="nothing in source 'plain' is described with a box"):
        empty(oracle(), mesh)
