from __future__ import annotations

import collections
import dataclasses
import io
import json
import re
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data.numbered import PLAIN, SIZE, TEXT, VARIED, Numbered, png, same, take, told
from vlm_jax import config as configs
from vlm_jax.config import bind
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.mixture import Mixture, Part
from vlm_jax.data.order import permutation
from vlm_jax.data.packing import Packing
from vlm_jax.data.pipeline import Pipeline
from vlm_jax.data.reader import LONGEST_CAPTION
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError


def make(image=PLAIN, text=TEXT, threads=0, shuffle=True, cache=False, **parts) -> Pipeline:
    return Pipeline(Mixture(parts), image=image, text=text, threads=threads, shuffle=shuffle, cache=cache)


def two(**changes) -> dict[str, Part]:
    parts = dict(few=Part(Numbered("few", 13)), many=Part(Numbered("many", 1000), weight=2.5))
    return {name: dataclasses.replace(part, **changes.get(name, {})) for name, part in parts.items()}


def of(name: str, rows: list[tuple[str, int]]) -> list[int]:
    return [record for source, record in rows if source == name]


# Which rows


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    weights=st.lists(st.floats(0.1, 10), min_size=4, max_size=4),
    seed=st.integers(0, 2**40),
)
def test_every_record_once_an_epoch_in_the_order_of_its_source(lengths, weights, seed):
    parts = {f"s{i}": Part(Numbered(f"s{i}", n), weight=w) for i, (n, w) in enumerate(zip(lengths, weights))}
    rows = told(take(make(cache=True, **parts), 3, batch_size=100, seed=seed)[0])
    for name, part in parts.items():
        length, records = len(part.source), of(name, rows)
        for epoch in range(-(-len(records) // length)):
            order = permutation(length, seed=seed, name=name, epoch=epoch)(np.arange(length)).tolist()
            of_epoch = records[epoch * length : (epoch + 1) * length]
            assert of_epoch == order[: len(of_epoch)]


def test_proportions():
    rows = told(take(make(**two()), 1, batch_size=700)[0])
    assert abs(len(of("few", rows)) - 200) <= 2


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_rows_from_anywhere_are_the_same_rows(data):
    pipeline = make(image=VARIED, **two())
    whole, _ = take(pipeline, 1, batch_size=90)
    batch_size = data.draw(st.integers(1, 40))
    start = data.draw(st.integers(0, 90 - batch_size))
    rows = np.array(data.draw(st.lists(st.integers(0, batch_size - 1), min_size=1, max_size=10)))
    part, _ = take(pipeline, 1, batch_size=batch_size, rows=rows, next_index=start)
    same(part, {name: array[start + rows] for name, array in whole.items()})


def test_the_order_in_which_parts_are_named_is_nothing():
    parts = two()
    backwards = dict(reversed(parts.items()))
    same(take(make(**parts), 3)[0], take(make(**backwards), 3)[0])


def test_a_weight_of_zero_leaves_a_source_out():
    parts = two(few=dict(weight=0.0))
    rows = told(take(make(**parts), 5)[0])
    assert not of("few", rows) and len(Mixture(parts)) == 1000
    assert len(Mixture(two())) == 1013


def test_one_part_has_the_rows_of_its_source():
    source = Numbered("only", 50)
    alone = Pipeline(source, image=VARIED, text=TEXT, threads=0)
    same(take(make(image=VARIED, only=Part(source)), 9)[0], take(alone, 9)[0])


def test_the_same_records_under_two_names_come_in_two_orders():
    parts = dict(a=Part(Numbered("a", 50)), b=Part(Numbered("b", 50)))
    rows = told(take(make(**parts), 1, batch_size=60)[0])
    assert of("a", rows)[:25] != of("b", rows)[:25]
    rows = told(take(make(shuffle=False, **parts), 1, batch_size=60)[0])
    assert of("a", rows)[:25] == of("b", rows)[:25] == list(range(25))


# What is made of them


def test_each_part_has_its_transform():
    grey = ImageTransform(size=SIZE, resize="pad")
    flips = ImageTransform(size=SIZE, flip=True)
    batch, _ = take(make(**two(few=dict(image=flips)), image=grey), 4, batch_size=50)
    for (name, record), image, halves in zip(told(batch), batch["image"], batch["example_id"]):
        plain = np.asarray(Image.open(io.BytesIO(png(record))))
        rng = np.random.Generator(np.random.Philox(key=np.array([0, halves[1]], np.uint64)))
        rng.random()  # the caption
        mirrored = name == "few" and rng.random() < 0.5
        np.testing.assert_array_equal(image, plain[:, ::-1] if mirrored else plain)


def words(batch, name: str) -> collections.Counter:
    texts = [text.split() for text in Text(length=64).decode(batch["text"])]
    return collections.Counter(" ".join(word for word in text if not word.isdigit()) for text in texts if name in text)


def test_captions_are_drawn_or_the_first_or_all():
    parts = two(few=dict(caption="first"))
    parts["third"] = Part(Numbered("third", 9), caption="join")
    batch, _ = take(make(**parts, text=Text(length=64)), 1, batch_size=450)
    assert set(words(batch, "few")) == {"few one"}
    assert set(words(batch, "third")) == {"third one third two third three"}
    drawn = words(batch, "many")
    assert set(drawn) == {"many one", "many two", "many three"} and min(drawn.values()) > 50


def test_templates_of_class_names():
    part = Part(Numbered("few", 13), templates=("a photo of {}", "{} it is"))
    batch, _ = take(make(few=part, many=two()["many"], text=Text(length=64)), 1, batch_size=200)
    texts = Text(length=64).decode(batch["text"])
    labels = [("even", "odd")[label] for label in batch["label"]]
    made = [(text, label) for text, label in zip(texts, labels) if "many" not in text]
    assert len(made) > 40
    assert all(text in (f"a photo of {label}", f"{label} it is") for text, label in made)
    assert {text.split()[0] for text, _ in made} >= {"a", "even", "odd"}


def test_a_record_without_a_class_is_no_caption():
    @dataclasses.dataclass(frozen=True)
    class Unsure(Numbered):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "label": {0: None, 1: 7}.get(index, index % 2)}

    part = Part(Unsure("unsure", 6), templates=("{}",))
    _, state = take(make(unsure=part), 3)
    assert {tuple(named) for named in state["unreadable_first"]} == {
        (f"key{i}", "it has no class name") for i in (0, 1)
    }


def test_labels_are_given_where_class_names_agree():
    unlabelled = Part(Numbered("few", 13, class_names=()))
    others = Part(Numbered("few", 13, class_names=("cat", "dog")))
    many = two()["many"]
    batch, _ = take(make(few=unlabelled, many=many), 4)
    for (name, record), label in zip(told(batch), batch["label"]):
        assert label == (record % 2 if name == "many" else -1)
    assert "label" not in take(make(few=others, many=many), 1)[0]
    assert Mixture(dict(few=others, many=many)).class_names == ()


def test_captions_for_a_tokenizer_are_in_proportion():
    mixture = Mixture(two(few=dict(templates=("a {}",), weight=1.0), many=dict(weight=3.0)))
    captions = list(mixture.captions(100))
    assert len(captions) == 77 and captions[:2] == ["a even", "a odd"]  # two class names, then three quarters
    assert len(list(mixture.captions(3))) == 3
    assert len(list(Mixture(two()).captions())) == 1013


# What a checkpoint says of them


def test_the_state_names_every_source():
    _, state = take(make(**two()), 5)
    assert state["sources"] == [
        {"name": "few", "length": 13, "weight": 1.0, "fingerprint": "f"},
        {"name": "many", "length": 1000, "weight": 2.5, "fingerprint": "f"},
    ]
    assert sum(state["rows"].values()) == state["next_index"] == 40
    json.dumps(state)


def test_metrics_of_each_source():
    parts = two(few=dict(source=Numbered("few", 13, failing=((3, "torn"), (4, "torn")))))
    batches = make(**parts).batches(seed=0, batch_size=70, rows=np.arange(70))
    rows = [row for _ in range(3) for row in told(next(batches))]
    state, metrics = batches.state(), batches.metrics()
    batches.close()
    few = len(of("few", rows))
    assert metrics["source/few/rows"] == few and metrics["source/few/epochs"] == few / 13
    assert metrics["source/few/unreadable"] == state["unreadable"] == state["unreadable_of"]["few"] > 5
    assert metrics["source/many/rows"] == 210 - few and metrics["source/many/unreadable"] == 0
    alone = Pipeline(Numbered(), image=PLAIN, text=TEXT, threads=0).batches(seed=0, batch_size=8, rows=np.arange(8))
    assert alone.metrics() == {}
    alone.close()


CHANGES = {
    "few.weight was 1.0, is 2.0": two(few=dict(weight=2.0)),
    "many.length was 1000, is 999; many.fingerprint was f, is g": two(
        many=dict(source=Numbered("many", 999, fingerprint="g"))
    ),
    "many is gone (1000 examples, weight 2.5)": {"few": two()["few"]},
    "books is new (50 examples, weight 4)": {**two(), "books": Part(Numbered("books"), weight=4)},
    "few is gone (13 examples, weight 1); small is new (13 examples, weight 1)": {
        "small": two()["few"],
        "many": two()["many"],
    },
}


@pytest.mark.parametrize("diff", CHANGES)
def test_a_changed_mixture_is_refused_with_a_diff(diff):
    _, state = take(make(**two()), 2)
    with pytest.raises(UserError) as error:
        take(make(**CHANGES[diff]), 1, state=state)
    assert str(error.value).startswith(f"the data is not what this run began with: {diff}; give it the same data")


def test_a_long_diff_is_cut():
    parts = {f"s{i:02}": Part(Numbered(f"s{i}")) for i in range(20)}
    _, state = take(make(**parts), 1)
    doubled = {name: dataclasses.replace(part, weight=2.0) for name, part in parts.items()}
    with pytest.raises(UserError, match=r"s07\.weight was 1\.0, is 2\.0; and 12 more; give it"):
        take(make(**doubled), 1, state=state)


def test_a_changed_mixture_goes_on_where_each_source_stood():
    head, state = take(make(**two()), 5)
    parts = {**two(few=dict(weight=5.0)), "books": Part(Numbered("books"), weight=2)}
    middle, after = take(make(**parts), 5, state=state, allow_change=True)
    tail, _ = take(make(**parts), 5, state=json.loads(json.dumps(after)))  # the same data as before: nothing to allow
    rows = told(head) + told(middle) + told(tail)
    for name, length in (("few", 13), ("many", 1000), ("books", 50)):
        records = of(name, rows)
        for epoch in range(-(-len(records) // length)):
            order = permutation(length, seed=0, name=name, epoch=epoch)(np.arange(length)).tolist()
            of_epoch = records[epoch * length : (epoch + 1) * length]
            assert of_epoch == order[: len(of_epoch)]
    assert after["rows"] == {name: len(of(name, told(head) + told(middle))) for name in after["rows"]}
    assert len(of("few", told(middle) + told(tail))) > 40 and len(of("books", rows)) > 10
    assert after["origin"] == {"index": 40, "rows": {"books": 0, **state["rows"]}}


@pytest.mark.parametrize("packing", [None, Packing(patch_size=4, tokens=8, rows=2, examples=3, budgets=(4,))])
def test_overfitting_changed_data_repeats_them_and_forgets_nothing(packing):
    make_packed = lambda parts: dataclasses.replace(make(**parts), packing=packing)
    changed = make_packed(two(few=dict(weight=5.0)))
    _, state = take(make_packed(two()), 5)
    expected, after = take(changed, 2, state=state, allow_change=True)
    batches, end = take(changed, 6, state=after, overfit_batches=2)
    same(batches, {name: np.concatenate([array] * 3) for name, array in expected.items()})
    assert end["origin"] == after["origin"] and end["origin"]["index"] > 0
    on, _ = take(changed, 1, state=end)
    same(on, {name: array[-8:] for name, array in take(changed, 7, state=after)[0].items()})


def test_a_source_becomes_part_of_a_mixture():
    """A state that a release without mixtures wrote; its rows are those of the only source."""
    first, state = take(Pipeline(Numbered("many", 1000), image=PLAIN, text=TEXT, threads=0), 5)
    for name in ("rows", "origin", "unreadable_of"):
        del state[name]
    with pytest.raises(UserError, match=r"few is new \(13 examples, weight 1\); many\.weight was 1\.0, is 2\.5"):
        take(make(**two()), 1, state=state)
    more, _ = take(make(**two()), 5, state=state, allow_change=True)
    order = permutation(1000, seed=0, name="many", epoch=0)(np.arange(1000)).tolist()
    records = of("many", told(first) + told(more))
    assert records == order[: len(records)] and len(records) < 80


# Mistakes and damage


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_that_are_none(weight):
    with pytest.raises(UserError, match=r"^Part\.weight=.* of 'numbers': wanted is a number of at least 0\.$"):
        Part(Numbered(), weight=weight)


@pytest.mark.parametrize(
    "parts, why",
    [
        ({}, r"^Mixture\.parts is empty; name at least one"),
        (dict(a=Part(Numbered(), weight=0), b=Part(Numbered(), weight=0)), r"^Mixture\.parts: the weights of a, b are"),
        (dict(a=Part(Numbered("n", 0))), r"^Mixture\.parts\.a: source 'n' is empty\.$"),
        (dict(a=Numbered()), r"^Mixture\.parts\.a is a Numbered; bind data\.mixture\.Part around it\.$"),
        (dict(a=Part(Numbered()), b=Part(Numbered(), weight=1e-9)), r"^Mixture\.parts\.b\.weight=1e-09 is not one row"),
        ({"a/b": Part(Numbered())}, r"^Mixture\.parts: 'a/b' is no name"),
    ],
)
def test_mixtures_that_are_none(parts, why):
    with pytest.raises(UserError, match=why) as error:
        Mixture(parts)
    assert "\n" not in str(error.value)


def test_parts_that_do_not_fit():
    with pytest.raises(UserError, match=r"Part\.templates: 'n' has no class names"):
        Part(Numbered("n", class_names=()), templates=("{}",))
    with pytest.raises(UserError, match=r"each template needs one '\{\}'"):
        Part(Numbered(), templates=("a photo",))
    with pytest.raises(UserError, match=r"^Mixture\.parts\.few\.image\.size=9, batches have images of 8;"):
        make(**two(few=dict(image=ImageTransform(size=9))))


def test_a_mixture_is_bound_like_anything_else():
    shapes = lambda **options: bind("data.sources.shapes.Shapes", image_size=16, **options)
    node = bind(
        "data.mixture.Mixture",
        parts=dict(
            single=bind("data.mixture.Part", source=shapes(scenes="single"), templates=("a {}",)),
            several=bind("data.mixture.Part", source=shapes(scenes="several"), weight=3, caption="first"),
        ),
    )
    configs.check(node)
    mixture = configs.build(node)
    assert list(mixture.parts) == ["several", "single"] and len(mixture) == 120_000
    assert mixture.apportionment().shares.tolist() == [49152, 16384]
    node.parts.several.caption = "last"
    with pytest.raises(UserError, match=r"several\.caption.*'sample', 'first', 'join'"):
        configs.check(node)


def bomb() -> bytes:
    """A PNG of a few bytes that says it is 30000 x 30000."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


DAMAGE = {
    "HTML": (b"<!DOCTYPE html><html>404</html>", r"not an image: it starts with b'<!DOCTYPE ht'"),
    "bomb": (bomb(), r"DecompressionBombError: Image size \(900000000 pixels\)"),
    "zero bytes": (b"", "empty"),
    "torn": (png(3)[:-40], r"\w+: "),
    "1 MB": ("word " * 200_000, rf"a caption of 1000000 characters, the most is {LONGEST_CAPTION}"),
    "1 MB among others": (["a word", "x" * 10**6], "a caption of 1000000 characters"),
    "no UTF-8": ("caf\udce9", "its text is not UTF-8: surrogates not allowed"),
    "bytes": ([b"caf\xe9"], "its text is of type bytes"),
    "no text": ("  ", "it has no text"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_replaced_named_and_counted(kind):
    content, why = DAMAGE[kind]
    broken = Part(Numbered("few", 13, damaged=((5, content),)))
    whole, _ = take(make(**two()), 13)
    batch, state = take(make(few=broken, many=two()["many"]), 13)
    hit = [row for row, what in enumerate(told(whole)) if what == ("few", 5)]
    assert state["unreadable"] == state["unreadable_of"]["few"] == len(hit) >= 2
    ((key, reason),) = state["unreadable_first"]
    assert key == "few/key5" and re.match(why, reason)
    kept = np.setdiff1d(np.arange(104), hit)
    same({n: a[kept] for n, a in batch.items()}, {n: a[kept] for n, a in whole.items()})


def test_a_part_without_a_readable_record_stops_the_run():
    broken = Part(Numbered("few", 13, damaged=tuple((i, b"junk") for i in range(13))))
    with pytest.raises(UserError, match=r"^source 'few' of 'web' in the mixture: 13 records in a row are unreadable"):
        take(make(web=broken, many=two()["many"]), 2)
