"""Rows of conversations: what stands in them, packed or alone, and that they depend on nothing but their index."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from tests.data.numbered import Numbered, same, take
from tests.data.talks import Talks
from vlm_jax.data.conversation_images import FixedImages, NativeImages, TiledImages
from vlm_jax.data.conversations import Conversations
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.mixture import Mixture, Part
from vlm_jax.data.pipeline import Pipeline
from vlm_jax.data.text import Text
from vlm_jax.data.tokenizers import Bytes
from vlm_jax.errors import UserError

TEXT = Text(length=260, canonicalise="none", pad="pad")
FLIPPED = ImageTransform(size=8, flip=True)
ALONE = Conversations(images=FixedImages(count=2, tokens=5))
PACKED = dataclasses.replace(ALONE, images=FixedImages(count=8, tokens=5), examples=12, rows=8, per_row=6)
NATIVE = dataclasses.replace(
    PACKED, images=NativeImages(count=8, patch_size=4, patches=120, budget=24, merge=2, cls=True)
)
TILED = dataclasses.replace(PACKED, images=TiledImages(count=8, tiles=24, side=2))
LAYOUTS = {"alone": ALONE, "packed": PACKED, "native": NATIVE}


def pipeline(source=None, **options) -> Pipeline:
    options = {"image": FLIPPED, "text": TEXT, "threads": 0, "conversations": PACKED, **options}
    return Pipeline(Talks() if source is None else source, **options)


def mixed(**options) -> Pipeline:
    """Conversations with and without images, and pairs, some of which cannot be read."""
    wrong = {"messages": [{"role": "user", "content": "a"}], "images": []}
    parts = dict(
        pairs=Part(Numbered("n", 40, damaged=((5, "caf\udce9"),)), weight=0.5),
        talks=Part(Talks(length=13, damaged=((3, wrong), (7, {"images": [b"junk"]})))),
        words=Part(Talks("words", 50)),
    )
    return pipeline(Mixture(parts), **options)


def conversations(batch):
    """Of every conversation its text, without images, the part of it that is learnt, and its image ids."""
    for row in range(len(batch["text"])):
        for segment in range(1, batch["text_segment_ids"][row].max() + 1):
            mine = batch["text_segment_ids"][row] == segment
            tokens, ids, mask = (batch[name][row][mine] for name in ("text", "text_image_ids", "target_mask"))
            yield row, Bytes().decode(tokens[ids == 0]), Bytes().decode(tokens[mask]), tokens[mask], ids


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shapes_are_the_spec_s(layout):
    made = LAYOUTS[layout]
    batch, _ = take(pipeline(conversations=made), 1)
    ids = (2,) if layout == "alone" else (6, 2)
    spec = made.spec(8, 260) | {"example_id": (ids, "uint32")}
    assert {name: (array.shape[1:], array.dtype.name) for name, array in batch.items()} == spec


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_row_holds_whole_conversations_with_their_images(layout):
    batch, _ = take(pipeline(conversations=LAYOUTS[layout]), 3)
    seen, fresh, before = [], 0, -1
    for row, text, learnt, tokens, ids in conversations(batch):
        number = int(text.split()[1])
        record = Talks()[number]
        written = "".join(
            m["content"].replace("<image>", "") + ("\n" if m["role"] == "user" else "") for m in record["messages"]
        )
        assert text == written[: len(text)] and (text == written or layout == "alone")
        answers = "".join(m["content"] for m in record["messages"] if m["role"] == "assistant")
        assert learnt == answers[: len(learnt)]
        if text == written:
            assert learnt == answers and (tokens == Bytes.eos_id).sum() == len(record["messages"]) // 2
        fresh = 0 if row != before else fresh
        before = row
        for image in range(len(record["images"]) if text == written else ids.max(initial=0)):
            fresh += 1
            places = np.flatnonzero(ids == fresh)
            assert np.ptp(places) == len(places) - 1
            colour = number + 100 * image
            if layout == "native":
                mine = batch["image_segment_ids"][row] == fresh
                rows, cols = batch["image_grids"][row, fresh - 1]
                assert len(places) == 1 + rows // 2 * (cols // 2 + 1) and mine.sum() == rows * cols
                assert (batch["patches"][row][mine] == colour).all()
            else:
                assert len(places) == 5 and batch["image_mask"][row, fresh - 1]
                assert (batch["image"][row, fresh - 1] == colour).all()
        seen.append(number)
    assert len(seen) == len(set(seen))  # an epoch has each once
    assert len(seen) == (24 if layout == "alone" else 36)


def test_segments_are_contiguous_and_padding_comes_last():
    batch, _ = take(mixed(conversations=NATIVE), 3)
    for ids in (*batch["text_segment_ids"], *batch["image_segment_ids"]):
        real = ids[ids > 0]
        assert (np.diff(real) >= 0).all() and not ids[len(real) :].any()
    padding = batch["text_segment_ids"] == 0
    assert (batch["text"][padding] == TEXT.pad_id).all()
    for name in ("target_mask", "text_image_ids"):
        assert not batch[name][padding].any()
    assert not (batch["target_mask"] & (batch["text_image_ids"] > 0)).any()
    np.testing.assert_array_equal(batch["image_segment_ids"].max(1), batch["text_image_ids"].max(1))


def test_rows_of_tiles():
    """Every image has the places and the tiles of its shape, the first its thumbnail."""
    batch, _ = take(pipeline(conversations=TILED, image=ImageTransform(size=8)), 3)
    seen, wanted = [], set()
    for row, ids in enumerate(batch["text_image_ids"]):
        first = 0
        for number in range(1, ids.max() + 1):
            rows, columns = batch["tile_grids"][row, number - 1]
            x0, y0, x1, y1 = batch["tile_boxes"][row, number - 1]
            assert (ids == number).sum() == 4 + (y1 - y0) * (x1 - x0 + 1)
            (colour,) = np.unique(batch["image"][row, first])
            seen.append(int(colour))
            first += 1 + rows * columns
        assert batch["image_mask"][row].sum() == first and batch["image_mask"][row, :first].all()
        assert not batch["image"][row, first:].any() and not batch["tile_grids"][row, ids.max() :].any()
    for _, text, _, _, ids in conversations(batch):
        number = int(text.split()[1])
        wanted |= {number + 100 * k for k in range(len(np.unique(ids[ids > 0])))}
    assert len(seen) == len(set(seen)) > 20 and set(seen) == wanted


def test_a_packed_conversation_is_what_it_is_alone():
    options = dict(shuffle=False, image=ImageTransform(size=8))
    alone, _ = take(pipeline(conversations=ALONE, **options), 1, batch_size=12)
    packed, _ = take(pipeline(**options), 1)
    whole = {text: (tokens.tolist(), (ids > 0).tolist()) for _, text, _, tokens, ids in conversations(alone)}
    found = {text: (tokens.tolist(), (ids > 0).tolist()) for _, text, _, tokens, ids in conversations(packed)}
    assert found.items() <= whole.items() and len(found) >= 10


def test_pairs_are_a_caption_as_the_answer_to_its_image():
    batch, _ = take(pipeline(Numbered("n"), conversations=ALONE, image=ImageTransform(size=8)), 5)
    captions = set()
    for row, text, learnt, _, ids in conversations(batch):
        assert ids.tolist() == [1] * 5 + [0] * (len(ids) - 5) and text == "\n" + learnt
        assert batch["image"][row, 0, 0, 0, 0] == int(learnt.split()[2])
        captions.add(learnt.split()[1])
    assert captions == {"one", "two", "three"}


@pytest.fixture(scope="module", params=LAYOUTS)
def wanted(request):
    """Four batches without interruption."""
    made = LAYOUTS[request.param]
    return made, take(mixed(conversations=made), 4, batch_size=16, seed=3)


@pytest.mark.parametrize("hosts, workers, threads", [(1, 2, 1), (2, 0, 2), (4, 1, 1)])
def test_batches_and_state_depend_on_neither_hosts_workers_nor_restarts(wanted, hosts, workers, threads):
    made, (batches, state) = wanted
    _, middle = take(mixed(conversations=made), 2, batch_size=16, seed=3)
    middle = json.loads(json.dumps(middle))
    again = mixed(conversations=made, workers=workers, threads=threads)
    parts = [
        take(again, 2, batch_size=16, seed=3, rows=rows, state=middle)[0] for rows in np.split(np.arange(16), hosts)
    ]
    step = 16 // hosts
    joined = {
        name: np.concatenate([part[name][at : at + step] for at in (0, step) for part in parts]) for name in batches
    }
    same({name: array[32:] for name, array in batches.items()}, joined)
    assert sum(state["rows"].values()) == state["next_index"] // made.rows * made.examples


def test_rows_in_any_order_and_number(wanted):
    made, (batches, _) = wanted
    rows = np.array([13, 2, 7])
    part, _ = take(mixed(conversations=made), 4, batch_size=16, seed=3, rows=rows)
    same(part, {name: array[(16 * np.arange(4)[:, None] + rows).ravel()] for name, array in batches.items()})


def test_unreadable_conversations_are_replaced_counted_once_and_named(wanted):
    made, (_, state) = wanted
    few = state["rows"]["talks"]
    assert state["unreadable_of"]["talks"] in (2 * (few // 13) + i for i in range(3))
    counted = [
        take(mixed(conversations=made), 4, batch_size=16, seed=3, counted=np.arange(k, 16, 2))[1] for k in range(2)
    ]
    assert sum(each["unreadable"] for each in counted) == state["unreadable"]
    told = dict(tuple(named) for named in state["unreadable_first"])
    assert told["talks/key3"] == "it has no answer, so that there is nothing to learn"


def test_a_window_stays_and_other_changes_are_told():
    _, state = take(pipeline(), 1)
    for other, message in (
        (dict(conversations=dataclasses.replace(PACKED, examples=11)), "was 12 in 8, is 11 in 8"),
        (dict(conversations=ALONE), "was 12 in 8, is 1 in 1"),
    ):
        with pytest.raises(UserError, match=message):
            take(pipeline(**other), 1, state=state, allow_change=True)
    changed = pipeline(conversations=dataclasses.replace(PACKED, system="Be kind."))
    with pytest.raises(UserError, match=r"packing\.system was None, is Be kind\."):
        take(changed, 1, state=state)
    take(changed, 1, state=state, allow_change=True)
    with pytest.raises(UserError, match=r"^batch_size=9 is not a multiple of Conversations\.rows=8\.$"):
        take(pipeline(), 1, batch_size=9)
