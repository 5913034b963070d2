"""Captions written by a model whose every caption is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.evaluate.toy import IMAGE, Source, picture
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError
from vlm_jax.evaluate.captions import Captions
from vlm_jax.mesh import Layout

TEXT = Text(length=64, bos=True)
REFERENCES = (
    ["A small red circle is left of a blue square.", "a red circle and a blue square"],
    ["two dogs on a sandy beach", "dogs running on the beach"],
    ["a man with an umbrella in the rain"],
)


def predict(*captions):
    """Writes caption k about a picture whose first byte is k: what follows the begin token, padded as texts are."""
    rows = jnp.asarray(TEXT(captions))[:, 1:]
    return {"generate": jax.jit(lambda image: rows[image[:, 0, 0, 0]])}


def captions(references=REFERENCES, **changes):
    records = tuple({"image": picture([k / 255]), "text": text} for k, text in enumerate(references))
    return Captions(source=Source(records), image=IMAGE, text=TEXT, **changes)


def mesh(devices=1):
    return Layout().make(jax.devices()[:devices])


def test_captions_that_are_references_are_the_best_there_is():
    result = captions()(predict(REFERENCES[0][1], REFERENCES[1][0], REFERENCES[2][0]), mesh())
    assert result["exact_match"] == 1 and result["examples"] == 3
    assert result["bleu4"] == pytest.approx(1) and result["rouge_l"] == pytest.approx(1)
    assert result.rows["captions"]["cider_d"][2] == pytest.approx(10)  # of one reference


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("batch_size", [1, 256])
def test_known_captions_for_any_batch_size_and_devices(devices, batch_size):
    written = "a small red circle is left of a blue square", "two cats", "a man with an umbrella in the rain"
    result = captions(batch_size=batch_size)(predict(*written), mesh(devices))
    assert result["exact_match"] == pytest.approx(2 / 3)  # capitals and the full stop do not count
    rows = result.rows["captions"]
    assert rows["answer"].tolist() == list(written) and rows["index"].tolist() == [0, 1, 2]
    # of "two cats" and "two dogs on a sandy beach": P = 1/2, R = 1/6
    assert rows["rouge_l"][1] == pytest.approx(2.44 / 12 / (1 / 6 + 1.44 / 2))
    for name in ("exact_match", "cider_d", "rouge_l"):
        assert result[name] == pytest.approx(rows[name].mean())
    right, wrong = result.artifacts["captions"].rows
    assert right[0] == "as one of the references: 2 of 3" and len(wrong[1]) == 1
    assert wrong[1][0][1:] == ("two cats (reference: two dogs on a sandy beach)", False)
    assert wrong[1][0][0].dtype == np.uint8


def test_a_record_may_have_one_caption_as_a_string_and_a_model_may_write_nothing():
    result = captions(["a cat", "a dog"])(predict("a cat", ""), mesh())
    assert result["exact_match"] == 1 / 2 and result.rows["captions"]["answer"].tolist() == ["a cat", ""]


def test_a_model_that_writes_nothing_is_named():
    with pytest.raises(UserError, match="gives no 'generate'"):
        captions()({"image_embedding": None}, mesh())
