from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.data.numbered import TEXT, same, take
from tests.data.strips import Strips
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.mixture import Mixture, Part
from vlm_jax.data.packing import Packing
from vlm_jax.data.pipeline import Pipeline
from vlm_jax.errors import UserError

PACKING = Packing(
    patch_size=4,
    tokens=40,
    images=6,
    text_tokens=64,
    examples=18,
    rows=4,
    budgets=(6, 12),
    drop=(0.0, 0.25),
    smallest=2,
)
FLIPPED = ImageTransform(size=8, flip=True)
BATCH = 16


def pipeline(source=None, **options) -> Pipeline:
    options = {"image": FLIPPED, "text": TEXT, "threads": 0, "packing": PACKING, **options}
    return Pipeline(Strips("s", length=60) if source is None else source, **options)


def mixed(**options) -> Pipeline:
    """Two sources, one of which begins new epochs all the time, with records that cannot be read."""
    parts = dict(
        few=Part(Strips("few", 13, damaged=((3, b"junk"), (7, b""), (11, "\udcff"))), caption="first"),
        many=Part(Strips("many", 200, failing=((5, "torn"),)), weight=2.5),
    )
    return pipeline(Mixture(parts), **options)


def pairs(batch):
    """Number, pixels, positions and grid of every pair."""
    for row, pair in np.argwhere(batch["pair_mask"]):
        image, text = (batch[f"{name}_segment_ids"][row] == pair + 1 for name in ("image", "text"))
        number = int(TEXT.decode(batch["text"][row][text][None])[0].split()[-1])
        yield (
            number,
            batch["patches"][row][image],
            batch["patch_positions"][row][image],
            batch["image_grids"][row, pair],
        )


def test_shapes_are_the_spec_s():
    batch, _ = take(pipeline(), 1, batch_size=BATCH)
    spec = PACKING.spec() | {"example_id": ((6, 2), "uint32")}
    assert {name: (array.shape[1:], array.dtype.name) for name, array in batch.items()} == spec


def test_each_image_stands_with_its_text_and_each_example_comes_once_an_epoch():
    batch, _ = take(pipeline(image=ImageTransform(size=8), packing=dataclasses.replace(PACKING, examples=15)), 1)
    found = []
    for number, pixels, positions, grid in pairs(batch):
        assert (pixels == number).all()
        assert (positions < grid).all() and len(np.unique(positions, axis=0)) == len(positions)
        found.append(number)
    assert len(set(found)) == len(found)
    assert len(found) == 30  # two windows of 15, none left out


def test_segments_are_contiguous_and_padding_comes_last():
    batch, _ = take(mixed(), 2, batch_size=BATCH)
    for ids in (*batch["image_segment_ids"], *batch["text_segment_ids"]):
        real = ids[ids > 0]
        assert (np.diff(real) >= 0).all() and not ids[len(real) :].any()
    np.testing.assert_array_equal(batch["image_segment_ids"].max(axis=1), batch["pair_mask"].sum(axis=1))
    np.testing.assert_array_equal(batch["text_segment_ids"].max(axis=1), batch["pair_mask"].sum(axis=1))


def test_a_caption_longer_than_its_row_is_cut_as_in_a_dense_batch():
    dense, _ = take(pipeline(packing=None, shuffle=False), 1, batch_size=18)
    packed, _ = take(pipeline(shuffle=False), 1, batch_size=4)
    ids = {tuple(example.tolist()): caption for example, caption in zip(dense["example_id"], dense["caption_id"])}
    mask = packed["pair_mask"]
    for example, caption in zip(packed["example_id"][mask], packed["caption_id"][mask]):
        assert ids[tuple(example.tolist())] == caption


@pytest.fixture(scope="module")
def wanted():
    """Four batches without interruption."""
    return take(mixed(), 4, batch_size=BATCH, seed=3)


@pytest.mark.parametrize("hosts, workers, threads", [(1, 2, 1), (2, 0, 2), (4, 1, 1), (2, 3, 0)])
def test_batches_and_state_depend_on_neither_hosts_workers_nor_restarts(wanted, hosts, workers, threads):
    batches, state = wanted
    _, middle = take(mixed(), 2, batch_size=BATCH, seed=3)
    parts = [
        take(mixed(workers=workers, threads=threads), 2, batch_size=BATCH, seed=3, rows=rows, state=middle)[0]
        for rows in np.array_split(np.arange(BATCH), hosts)
    ]
    step = BATCH // hosts
    joined = {
        name: np.concatenate([part[name][at : at + step] for at in (0, step) for part in parts]) for name in batches
    }
    same({name: array[2 * BATCH :] for name, array in batches.items()}, joined)
    assert state["next_index"] == 4 * BATCH
    assert sum(state["rows"].values()) == 4 * BATCH // 4 * 18


def test_unreadable_examples_are_counted_once(wanted):
    _, state = wanted
    examples = 4 * BATCH // 4 * 18
    few, many = state["rows"]["few"], state["rows"]["many"]
    assert few + many == examples
    assert state["unreadable_of"]["few"] in (3 * (few // 13) + i for i in range(4))
    _, state = take(mixed(), 4, batch_size=BATCH, seed=3, counted=np.arange(0, BATCH, 2))
    _, other = take(mixed(), 4, batch_size=BATCH, seed=3, counted=np.arange(1, BATCH, 2))
    assert state["unreadable"] + other["unreadable"] == wanted[1]["unreadable"]


def test_another_window_is_refused_and_other_sizes_are_told():
    _, state = take(pipeline(), 1, batch_size=BATCH)
    other = pipeline(packing=dataclasses.replace(PACKING, examples=17))
    with pytest.raises(UserError, match="was 18 in 4, is 17 in 4"):
        take(other, 1, batch_size=BATCH, state=state, allow_change=True)
    with pytest.raises(UserError, match="was 18 in 4, is 1 in 1"):
        take(pipeline(packing=None), 1, batch_size=BATCH, state=state)
    other = pipeline(packing=dataclasses.replace(PACKING, budgets=(6, 10)))
    with pytest.raises(UserError, match=r"packing.budgets was \[6, 12\], is \[6, 10\]"):
        take(other, 1, batch_size=BATCH, state=state)
    take(other, 1, batch_size=BATCH, state=state, allow_change=True)


def test_naflex_is_one_image_a_row():
    packing = Packing(patch_size=4, tokens=12, images=1, text_tokens=16, examples=1, rows=1, budgets=(6, 12))
    batch, _ = take(pipeline(packing=packing), 1, batch_size=12)
    assert batch["pair_mask"].all()
    counts = (batch["image_segment_ids"] > 0).sum(axis=1)
    assert counts.max() <= 12 and (counts <= 6).any() and (counts > 6).any()
    np.testing.assert_array_equal(counts, batch["image_grids"][:, 0].prod(axis=1))


def test_mistakes_are_told():
    with pytest.raises(UserError, match="batch_size=6 is not a multiple of Packing"):
        take(pipeline(), 1, batch_size=6)
    with pytest.raises(UserError, match="text_tokens=8 is less than a text of length=16"):
        pipeline(packing=dataclasses.replace(PACKING, text_tokens=8))
    with pytest.raises(UserError, match="pad_crop changes the aspect ratio"):
        pipeline(image=ImageTransform(size=8, pad_crop=1))
