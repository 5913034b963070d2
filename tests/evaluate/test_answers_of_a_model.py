"""`Answers` with a model of random weights: one result for any batch size and any devices, written or chosen."""

import jax
import numpy as np
import pytest

from tests.evaluate.toy import Source
from vlm_jax import partition
from vlm_jax.data.conversation_images import FixedImages
from vlm_jax.data.conversations import Conversations
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.sources.shapes import Shapes
from vlm_jax.data.text import Text
from vlm_jax.evaluate.answers import Answers
from vlm_jax.generate import Sampling
from vlm_jax.mesh import Layout
from vlm_jax.models.decoder import LanguageModel
from vlm_jax.models.llava import Llava
from vlm_jax.models.vit import ViT
from vlm_jax.tasks.language_model import LanguageModeling

SHAPE = dict(width=16, depth=2, num_heads=2, mlp_dim=32, dtype="float32", scan=False, remat="none")
SCENES = Shapes(size=5, split="test", image_size=8)
# Rows of training are longer than questions: the model has to have room for the answer.
TEXT = Text(length=64, canonicalise="none", eos="none", pad="pad")


def source():
    records = []
    for scene in range(len(SCENES)):
        for asked in SCENES.questions(scene)[:3]:
            turns = [
                {"role": "user", "content": f"<image>\n{asked.question}"},
                {"role": "assistant", "content": asked.answer},
            ]
            image = SCENES[scene]["image"]
            records.append({"messages": turns, "image": image, "type": asked.type, "cluster": scene})
    return Source(tuple(records))


def found(devices, batch_size, **changes):
    decoder = LanguageModel(**SHAPE, num_kv_heads=2, vocab_size=TEXT.vocab_size, length=64)
    vit = ViT(**SHAPE, patch_size=4, image_size=8, pool="cls", out_dim=None)
    model = Llava(decoder=decoder, image=vit)
    sampling = Sampling(max_tokens=5, stop=(TEXT.eos_id,))
    task = LanguageModeling(model, length=64, sampling=sampling, pad_id=TEXT.pad_id)
    mesh = Layout().make(jax.devices()[:devices])
    params = jax.jit(model.init)(jax.random.key(0))["params"]
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape), params)
    placed = {"params": jax.device_put(params, partition.shardings(params, Layout(), mesh, {}))}
    evaluate = Answers(
        source=source(),
        conversations=Conversations("plain", images=FixedImages(tokens=model.image_tokens)),
        image=ImageTransform(size=8),
        text=TEXT,
        length=48,
        batch_size=batch_size,
        **changes,
    )
    return evaluate(task.predict(placed), mesh)


def same(a, b):
    assert dict(a) == dict(b) and a["examples"] == 15
    assert np.array_equal(a.rows["answers"]["answer"], b.rows["answers"]["answer"])


def test_written():
    one = found(1, 64)
    same(one, found(4, 4))
    assert len(set(one.rows["answers"]["answer"].tolist())) > 1


@pytest.mark.full
def test_chosen():
    choices = ("yes", "no", "red", "two")
    one = found(1, 64, choices=choices)
    same(one, found(4, 4, choices=choices))
    assert set(one.rows["answers"]["answer"].tolist()) <= set(choices)
