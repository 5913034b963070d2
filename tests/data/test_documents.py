"""Documents of texts and images as rows: what is placed where, its pixels and tokens, resume, damage."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.numbered import PLAIN, VARIED, Numbered, png, same, take
from vlm_jax import config
from vlm_jax.config import bind
from vlm_jax.data.documents import Documents
from vlm_jax.data.image import decode
from vlm_jax.data.mixture import Mixture, Part
from vlm_jax.data.packing import Packing
from vlm_jax.data.pipeline import Pipeline
from vlm_jax.data.sources.interleaved import Interleaved
from vlm_jax.data.text import Text
from vlm_jax.data.tokenizers import Bytes
from vlm_jax.errors import UserError

TEXT = Text(length=40, canonicalise="none", bos=True, pad="pad")
DOCUMENTS = Documents(images=2, image_tokens=3)
BEGIN, END = Bytes.bos_id, Bytes.eos_id
FIRST = 10  # token ids from here on are those of the texts below

# Parts of a document: the length of a text, or None for an image.
shapes = st.lists(st.one_of(st.none(), st.integers(1, 12)), min_size=1, max_size=12).filter(any)


def numbered(shape) -> list[list[int] | None]:
    """Token ids that say where in the document they are."""
    counter = itertools.count(FIRST)
    return [None if length is None else list(itertools.islice(counter, length)) for length in shape]


@settings(max_examples=300, deadline=None)
@given(
    shape=shapes,
    draw=st.floats(0, 1, exclude_max=True),
    images=st.integers(1, 3),
    image_tokens=st.integers(1, 3),
    room=st.integers(0, 30),
    bos=st.booleans(),
    eos=st.sampled_from(["sticky", "none"]),
)
def test_a_row_is_a_window_of_its_document(shape, draw, images, image_tokens, room, bos, eos):
    documents = Documents(images, image_tokens)
    text = Text(length=images * image_tokens + 2 + bos + room, bos=bos, eos=eos)
    documents.check(text)
    parts = numbered(shape)
    placed = documents.place(parts, text, draw)
    assert len(placed.tokens) == len(placed.image_ids) <= text.length and len(placed.images) <= images
    whole = []  # of the document: token ids, and -1 - k at the places of its part k, which is an image
    for k, part in enumerate(parts):
        whole += [-1 - k] * image_tokens if part is None else part
    row = [token if i == 0 else -1 - placed.images[i - 1] for token, i in zip(placed.tokens, placed.image_ids)]
    counts = np.bincount(placed.image_ids, minlength=len(placed.images) + 1)
    assert counts[0] > 0 and (counts[1:] == image_tokens).all() and len(counts) == len(placed.images) + 1
    begins = bos and row[:1] == [BEGIN]
    inside = row[begins:]
    ends = eos != "none" and inside[-1:] == [END]
    inside = inside[: len(inside) - ends]
    start = whole.index(inside[0])
    assert inside == whole[start : start + len(inside)]
    assert begins == (bos and start == 0) and (not ends or start + len(inside) == len(whole))
    fits = len(whole) + bos + (eos != "none") <= text.length and shape.count(None) <= images
    if fits:
        assert inside == whole and ends == (eos != "none")
    assert any(token >= FIRST for token in inside)


def test_windows_begin_at_any_part_that_leaves_no_room():
    parts = numbered([8, None, 8, None, 8, 8, 8])
    found = {DOCUMENTS.place(parts, Text(length=20), draw).tokens[0] for draw in np.linspace(0, 0.999, 50)}
    texts = {part[0] for part in parts[:5] if part is not None}
    assert found == texts | {Text().pad_id}  # rows that begin with an image too


def test_images_before_a_text_are_the_nearest_to_it():
    placed = DOCUMENTS.place(numbered([None, None, None, 5]), TEXT, 0.0)
    assert placed.images == [1, 2] and placed.image_ids == [1] * 3 + [2] * 3 + [0] * 6
    assert placed.tokens[6:] == [*range(FIRST, FIRST + 5), END]


@dataclasses.dataclass(frozen=True)
class Papers:
    """Document i has texts "i a", "i b" and three images, whose numbers are 3i, 3i + 1, 3i + 2."""

    name: str = "papers"
    length: int = 20
    fingerprint: str = "f"
    class_names: tuple[str, ...] = ()
    damaged: tuple[tuple[int, object], ...] = ()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        first, *others = (png(3 * index + k) for k in range(3))
        parts = [f"{index} a", first, f"{index} b", "c" * (index % 3), *others]
        return {"parts": dict(self.damaged).get(index, parts), "dropped": 0, "key": f"key{index}"}

    def captions(self, limit: int | None = None):
        return (f"{index} a" for index in range(self.length if limit is None else limit))


def make(source=None, image=VARIED, **options) -> Pipeline:
    source = Papers() if source is None else source
    return Pipeline(source, image, TEXT, documents=DOCUMENTS, **{"threads": 0, **options})


def test_a_batch():
    batch, state = take(make(image=PLAIN), 5)
    assert {name: (array.shape[1:], array.dtype.name) for name, array in batch.items()} == {
        "image": ((2, 8, 8, 3), "uint8"),
        "image_mask": ((2,), "bool"),
        "text": ((40,), "int32"),
        "target_mask": ((40,), "bool"),
        "text_image_ids": ((40,), "int32"),
        "example_id": ((2,), "uint32"),
    }
    seen = set()
    for row in range(40):
        ids, mask, tokens = (batch[name][row] for name in ("text_image_ids", "target_mask", "text"))
        words = bytes(int(token) - 4 for token in tokens[mask] if token >= 4).decode()
        number = int(words.split()[0])
        seen.add(number)
        begins_with_text = tokens[0] == BEGIN
        tail = "\n" + "c" * (number % 3) if number % 3 else ""
        head = f"{number} a" if begins_with_text else ""
        assert words == f"{head}{number} b{tail}" and batch["image_mask"][row].all()
        first = 3 * number + (not begins_with_text and ids[0] == 0)  # a window that begins with the second text
        for place in range(2):
            np.testing.assert_array_equal(batch["image"][row, place], decode(png(first + place)))
            assert (ids == place + 1).sum() == 3
        assert not mask[ids > 0].any() and (tokens[~mask] == TEXT.pad_id).all()
    assert len(seen) == 20 and state["next_index"] == 40


def mixed(**options) -> Pipeline:
    broken = ["word", png(1)[:40]]
    parts = dict(
        papers=Part(Papers(length=7, damaged=((3, broken),))),
        pairs=Part(Numbered("n", 50), weight=2, image=PLAIN, caption="first"),
    )
    return make(Mixture(parts), **options)


@pytest.mark.parametrize("options", [dict(threads=2), dict(workers=2), dict(cache=True)])
def test_a_restart_and_workers_change_nothing(options):
    whole, end = take(mixed(), 6)
    head, state = take(mixed(), 3)
    tail, last = take(mixed(**options), 3, state=json.loads(json.dumps(state)))
    same({name: np.concatenate([head[name], tail[name]]) for name in head}, whole)
    assert last == end and end["unreadable_of"]["papers"] > 0
    rows = np.array([6, 1])
    part, _ = take(mixed(), 6, rows=rows)
    same(part, {name: array[(8 * np.arange(6)[:, None] + rows).ravel()] for name, array in whole.items()})


def test_pairs_are_documents_of_an_image_and_its_caption():
    batch, _ = take(make(Numbered("n"), image=PLAIN), 5)
    for row in range(40):
        assert batch["image_mask"][row].tolist() == [True, False] and not batch["image"][row, 1].any()
        assert batch["text_image_ids"][row, :4].tolist() == [0, 1, 1, 1] and batch["text"][row, 0] == BEGIN
        caption = Bytes().decode(batch["text"][row][batch["target_mask"][row]][1:-1].tolist())
        np.testing.assert_array_equal(batch["image"][row, 0], decode(png(int(caption.split()[2]))))


@pytest.mark.parametrize(
    "parts, why",
    [
        (["a", b"<html>404</html>"], "not an image: it starts with b'<html>404</h'"),
        ([png(1), "  "], "it has no text"),
        (["a" * 10**6], "a caption of 1000000 characters"),
        (["caf\udce9"], "its text is not UTF-8"),
    ],
)
def test_damaged_documents_are_replaced_counted_and_named(parts, why):
    whole, _ = take(make(shuffle=False), 2, batch_size=10)
    batch, state = take(make(Papers(damaged=((5, parts),)), shuffle=False), 2, batch_size=10)
    assert state["unreadable"] == 1
    ((key, told),) = state["unreadable_first"]
    assert key == "key5" and told.startswith(why)
    others = np.arange(20) != 5
    same({name: array[others] for name, array in batch.items()}, {n: array[others] for n, array in whole.items()})


def test_obelics_as_batches(tmp_path):
    rows = {
        "images": [[None, {"bytes": png(k), "path": ""}] for k in range(9)],
        "texts": [[f"text {k}", None] for k in range(9)],
    }
    pq.write_table(pa.table(rows), tmp_path / "x.parquet")
    source = Interleaved(str(tmp_path / "x.parquet"))
    batch, state = take(make(source, image=PLAIN, shuffle=False), 1, batch_size=9)
    assert batch["image"][:, 0, 0, 0, 0].tolist() == list(range(9)) and state["unreadable"] == 0
    texts = [Bytes().decode(row[mask][1:-1].tolist()) for row, mask in zip(batch["text"], batch["target_mask"])]
    assert texts == [f"text {k}" for k in range(9)]


def test_images_that_are_not_there_are_left_out_and_told(tmp_path):
    documents = [{"texts": [f"text {k}", None], "images": [None, f"{k}.png"]} for k in range(4)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, documents)))
    for k in (0, 1, 3):
        (tmp_path / f"{k}.png").write_bytes(png(k))
    source = Interleaved(str(tmp_path / "x.jsonl"), images=str(tmp_path), missing="drop")
    batch, state = take(make(source, shuffle=False), 1, batch_size=4)
    assert batch["image_mask"].sum(1).tolist() == [1, 1, 0, 1] and batch["target_mask"].any(1).all()
    assert state["unreadable"] == 1 and state["unreadable_first"] == [["x.jsonl:2", "images that it lacks: 1"]]


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(documents=Documents(images=13, image_tokens=3)), r"^Text\.length=40 has no room for .* at least 41 are"),
        (dict(text=None), r"^Pipeline\.documents needs Pipeline\.text"),
        (dict(packing=Packing(patch_size=4)), r"^Pipeline\.packing and documents say each what a row holds"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError, match=message):
        Pipeline(**{"source": Papers(), "image": PLAIN, "text": TEXT, "documents": DOCUMENTS, **options})
    with pytest.raises(UserError, match=r"^Documents\.images=0 must be at least 1\.$"):
        Documents(images=0)


def test_documents_are_bound_in_a_recipe():
    node = bind(
        "data.pipeline.Pipeline",
        source=bind("data.sources.shapes.Shapes", size=20, image_size=8),
        image=bind("data.image.ImageTransform", size=8),
        text=bind("data.text.Text", length=32),
        documents=bind("data.documents.Documents", images=1, image_tokens=4),
    )
    config.check(node)
    assert take(config.build(node), 1)[0]["text_image_ids"].max() == 1
