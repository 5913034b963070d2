"""Texts of prompt and answer beside captions: what is predicted, and batches that are the same however made."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.data.numbered import same, take
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.pipeline import Pipeline
from vlm_jax.data.prompted import Prompted, choose
from vlm_jax.data.sources.located import Located
from vlm_jax.data.sources.shapes import Shapes
from vlm_jax.data.text import Text
from vlm_jax.data.tiles import Tiles
from vlm_jax.errors import UserError

TEXT = Text(length=24, canonicalise="lower", bos=True, pad="pad")
PROMPTED = Prompted(TEXT)
SHAPES = Located(Shapes(size=60, image_size=32), bins=32)
IMAGE = ImageTransform(size=32)


def pipeline(**options):
    long = Prompted(dataclasses.replace(TEXT, length=80))
    options = {"text": Text(length=64), "prompted": long, "threads": 0} | options
    return Pipeline(source=SHAPES, image=IMAGE, **options)


def test_rows_and_what_is_predicted_of_them():
    rows, target = PROMPTED([("Cap", "A dog"), ("x", "much longer than there is room for")])
    encode = TEXT.model.encode
    assert rows[0].tolist() == [3, *encode("cap"), *encode("a dog"), 1] + [0] * (24 - 10)
    assert target[0].tolist() == [False] * 4 + [True] * 6 + [False] * 14
    assert rows[1, -1] == 1 and target[1].tolist() == [False] * 2 + [True] * 22
    assert PROMPTED.prompt("Cap") == rows[0, :4].tolist()


def test_tasks_are_equally_likely_and_so_are_the_pairs_of_one():
    pairs = (tuple(("a", str(k)) for k in range(4)), (), (("b", "0"),))
    found = [choose(pairs, u) for u in np.linspace(0, 1, 800, endpoint=False)]
    counts = {pair: found.count(pair) for pair in found}
    assert counts == {("a", "0"): 100, ("a", "1"): 100, ("a", "2"): 100, ("a", "3"): 100, ("b", "0"): 400}


def test_batches_have_both_texts():
    batches = pipeline().batches(seed=0, batch_size=30, rows=np.arange(30))
    batch = next(batches)
    plain = next(pipeline(prompted=None).batches(seed=0, batch_size=30, rows=np.arange(30)))
    for name in plain:  # captions and images are those of a run without
        np.testing.assert_array_equal(batch[name], plain[name])
    assert batch["decoder_text"].shape == batch["decoder_target"].shape == (30, 80)
    answer = np.where(batch["decoder_target"], batch["decoder_text"], 0)
    prompts = np.where(batch["decoder_target"], 0, batch["decoder_text"])
    decode = TEXT.model.decode
    told = {(decode(p).split()[0], decode(a)) for p, a in zip(prompts.tolist(), answer.tolist())}
    assert {task for task, _ in told} == {"cap", "aref", "gcap"}
    boxes = [SHAPES.read(answer) for task, answer in told if task == "aref"]
    assert len(boxes) > 3 and all(x0 < x1 and y0 < y1 for x0, y0, x1, y1 in boxes)


def test_workers_the_cache_and_a_restart_change_nothing():
    whole, _ = take(pipeline(), 4)
    same(take(pipeline(workers=1, threads=2), 4)[0], whole)
    same(take(pipeline(cache=True), 4)[0], whole)
    _, state = take(pipeline(), 2)
    same(take(pipeline(), 2, state=state)[0], {name: array[16:] for name, array in whole.items()})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Prompted(Text(bos=False)), r"Prompted\.text has bos=False"),
        (lambda: Prompted(Text(bos=True, eos="none")), "eos='none'"),
        (lambda: PROMPTED([("x" * 30, "y")]), r"a prompt of 31 tokens in Prompted\.text\.length=24: 'xxxx"),
        (lambda: pipeline(tiles=Tiles(size=32)), "tiles and prompted say each what a row holds"),
        (
            lambda: dataclasses.replace(pipeline(), image=ImageTransform(size=32, flip=True)),
            r"ImageTransform\.flip=True moves them, set it to False",
        ),
        (
            lambda: next(
                dataclasses.replace(pipeline(), source=Shapes(size=4)).batches(seed=0, batch_size=2, rows=np.arange(2))
            ),
            "source 'shapes/train' has no prompted texts; bind it as the source",
        ),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()
