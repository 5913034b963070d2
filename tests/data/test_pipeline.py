from __future__ import annotations

import collections
import json
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.counting import TEXT, Source, make, records
from tests.data.numbered import PLAIN, SIZE, VARIED, same, take
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.order import permutation
from vlm_jax.data.pipeline import evaluation_batches
from vlm_jax.errors import UserError


def test_a_batch():
    batch, _ = take(make(), 1)
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        "image": ((8, SIZE, SIZE, 3), "uint8"),
        "text": ((8, 12), "int32"),
        "caption_id": ((8,), "int32"),
        "label": ((8,), "int32"),
        "example_id": ((8, 2), "uint32"),
    }
    assert batch["label"].tolist() == [record % 2 for record in records(batch)]


def test_images_belong_to_their_captions():
    batch, _ = take(make(image=PLAIN), 6)
    assert batch["image"][:, 0, 0, 0].tolist() == records(batch)


def test_the_order_is_the_permutation_of_the_epoch():
    batch, _ = take(make(Source(length=20)), 5)
    orders = [permutation(20, seed=0, name="numbers", epoch=epoch)(np.arange(20)) for epoch in (0, 1)]
    assert records(batch) == np.concatenate(orders).tolist()


def test_without_shuffling_the_order_is_the_source_s():
    batch, _ = take(make(Source(length=20), shuffle=False), 5)
    assert records(batch) == 2 * list(range(20))


def test_batches_longer_than_the_source():
    batch, _ = take(make(Source(length=3)), 2, batch_size=10)
    for epoch in range(6):
        assert sorted(records(batch)[3 * epoch : 3 * epoch + 3]) == [0, 1, 2]


def test_example_ids_are_the_halves_of_the_global_index():
    far = 5 * 2**32 - 4
    batch, state = take(make(), 1, next_index=far)
    ids = batch["example_id"].astype(np.uint64)
    assert ((ids[:, 0] << np.uint64(32)) + ids[:, 1]).tolist() == [far + row for row in range(8)]
    assert state["next_index"] == far + 8


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_rows_from_anywhere_are_the_same_rows(data):
    whole, _ = take(make(), 9)  # 72 rows: into the second epoch
    batch_size = data.draw(st.integers(1, 40))
    start = data.draw(st.integers(0, 72 - batch_size))
    rows = data.draw(st.lists(st.integers(0, batch_size - 1), min_size=1, max_size=10))
    part, _ = take(make(), 1, batch_size=batch_size, rows=np.array(rows), next_index=start)
    same(part, {name: array[start + np.array(rows)] for name, array in whole.items()})


def test_another_seed_is_another_run():
    one, other = take(make(), 4)[0], take(make(), 4, seed=1)[0]
    assert records(one) != records(other)
    pinned = dict(image=VARIED, shuffle=False)
    one, other = take(make(**pinned), 4)[0], take(make(**pinned), 4, seed=1)[0]
    assert records(one) == records(other) and (one["image"] != other["image"]).any()
    assert (one["text"] != other["text"]).any(), "captions are drawn anew as well"


def test_threads_prefetch_and_cache_change_nothing():
    kwargs = dict(batch_size=70, rows=np.arange(70)[::-1])  # more rows than one thread takes at a time
    expected, _ = take(make(), 4, **kwargs)
    for options in (dict(threads=1), dict(threads=4), dict(threads=4, prefetch=1), dict(threads=2, prefetch=0)):
        for cache in (False, True):
            same(take(make(cache=cache, **options), 4, **kwargs)[0], expected)


def test_the_cache_decodes_once():
    source = Source()
    take(make(source, cache=True, threads=0), 20)
    assert set(source.reads.values()) == {1} and len(source.reads) == len(source)


def test_random_crops_are_taken_from_the_cache_too():
    image = ImageTransform(size=4, random_resized_crop=(0.3, 1.0))
    same(take(make(image=image, cache=True), 14)[0], take(make(image=image), 14)[0])


def test_augmentation_is_numpy_s_philox_of_seed_and_index():
    batch, _ = take(make(shuffle=False), 1, seed=3, next_index=40)
    for row in range(8):
        rng = np.random.Generator(np.random.Philox(key=np.array([3, 40 + row], np.uint64)))
        record = Source()[40 + row]
        caption = record["text"][int(rng.random() * 3)]
        np.testing.assert_array_equal(batch["text"][row], TEXT(caption)[0])
        np.testing.assert_array_equal(batch["image"][row], VARIED(record["image"], rng))


def test_captions_are_drawn_evenly():
    batch, _ = take(make(image=PLAIN, cache=True), 30, batch_size=50)
    words = collections.Counter(caption.split()[0] for caption in TEXT.decode(batch["text"]))
    assert all(abs(words[word] - 500) < 5 * np.sqrt(500 * 2 / 3) for word in ("one", "two", "three"))


def test_images_alone():
    source = Source(class_names=())
    assert set(take(make(source, text=None), 1)[0]) == {"image", "example_id"}


@pytest.mark.parametrize("steps", range(1, 9))
def test_resume_goes_on(steps):
    whole, _ = take(make(), 9)
    _, state = take(make(), steps)
    rest, _ = take(make(threads=2), 9 - steps, state=json.loads(json.dumps(state)))
    same(rest, {name: array[8 * steps :] for name, array in whole.items()})


def test_resume_before_the_first_batch():
    batches = make().batches(seed=0, batch_size=8, rows=np.arange(8))
    state = batches.state()
    batches.close()
    same(take(make(), 1, state=state)[0], take(make(), 1)[0])


def test_resume_with_another_batch_size_and_split():
    whole, _ = take(make(), 9)
    _, state = take(make(), 3)
    rest, _ = take(make(), 3, batch_size=16, rows=np.array([15, 0]), state=state)
    expected = np.array([24 + 16 * step + row for step in range(3) for row in (15, 0)])
    same(rest, {name: array[expected] for name, array in whole.items()})


def test_state_does_not_count_what_was_only_prefetched():
    batches = make(Source(broken=frozenset(range(0, 50, 5))), threads=2, prefetch=4).batches(
        seed=0, batch_size=8, rows=np.arange(8)
    )
    next(batches)
    state = batches.state()
    batches.close()
    assert state["next_index"] == 8
    order = permutation(50, seed=0, name="numbers", epoch=0)(np.arange(8))
    assert state["unreadable"] == sum(record % 5 == 0 for record in order.tolist())


@pytest.mark.parametrize(
    "change, why",
    [
        (dict(length=51), "numbers.length was 50, is 51"),
        (dict(name="others"), "numbers.name was numbers, is others"),
        (dict(fingerprint="g"), "numbers.fingerprint was f, is g"),
    ],
)
def test_changed_data_is_refused_with_a_diff(change, why):
    _, state = take(make(), 2)
    changed = make(Source(**change))
    with pytest.raises(UserError, match=why) as error:
        take(changed, 1, state=state)
    assert "\n" not in str(error.value)
    got, _ = take(changed, 1, state=state, allow_change=True)
    same(got, take(changed, 1, next_index=16)[0])


def test_a_changed_seed_is_refused():
    _, state = take(make(), 2)
    with pytest.raises(UserError, match="seed was 0, is 1"):
        take(make(), 1, seed=1, state=state)


def test_overfit_batches_come_again_and_again():
    first, _ = take(make(), 2)
    again, state = take(make(), 6, overfit_batches=2)
    same(again, {name: np.concatenate([array] * 3) for name, array in first.items()})
    assert state["next_index"] == 48
    resumed, _ = take(make(), 1, overfit_batches=2, state=take(make(), 3, overfit_batches=2)[1])
    same(resumed, {name: array[8:] for name, array in first.items()})


def test_waiting_is_measured_since_it_was_last_asked():
    batches = make().batches(seed=0, batch_size=8, rows=np.arange(8))
    assert batches.wait_seconds() == 0
    next(batches)
    assert batches.wait_seconds() > 0
    assert batches.wait_seconds() == 0
    batches.close()


def test_close_stops_the_threads():
    before = set(threading.enumerate())
    batches = make(threads=3).batches(seed=0, batch_size=8, rows=np.arange(8))
    next(batches)
    batches.close()
    batches.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_mistakes_are_named():
    with pytest.raises(UserError, match="threads=-1"):
        make(threads=-1)
    with pytest.raises(UserError, match="'numbers' is empty"):
        take(make(Source(length=0)), 1)
    for rows in ([], [8], [-1]):
        with pytest.raises(ValueError, match="rows"):
            take(make(), 1, rows=np.array(rows, np.int64))


def evaluate(source, rows, batch_size=8, image=PLAIN, text=TEXT, **options):
    return list(evaluation_batches(source, image, text, batch_size=batch_size, rows=rows, **options))


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 50])
def test_evaluation_sees_every_record_once_in_order(length, threads):
    batches = evaluate(Source(length=length), np.arange(8), threads=threads)
    assert len(batches) == -(-length // 8) and all(len(batch["mask"]) == 8 for batch in batches)
    mask = np.concatenate([batch["mask"] for batch in batches])
    index = np.concatenate([batch["index"] for batch in batches])
    label = np.concatenate([batch["label"] for batch in batches])
    image = np.concatenate([batch["image"] for batch in batches])
    assert index[mask].tolist() == list(range(length)) and mask.sum() == length
    assert label[mask].tolist() == [i % 2 for i in range(length)] and (label[~mask] == -1).all()
    assert image[mask, 0, 0, 0].tolist() == list(range(length)) and not image[~mask].any()


def test_evaluation_gives_every_process_as_many_batches():
    source = Source(length=17)
    whole = evaluate(source, np.arange(8))
    for rows in (np.array([0, 2]), np.array([7, 6, 5])):
        for part, batch in zip(evaluate(source, rows), whole, strict=True):
            same(part, {name: array[rows] for name, array in batch.items()})


def test_evaluation_augments_nothing_and_takes_the_first_caption():
    batch = evaluate(Source(), np.arange(8), image=VARIED)[2]
    for row in range(8):
        record = Source()[16 + row]
        np.testing.assert_array_equal(batch["image"][row], PLAIN(record["image"]))
        np.testing.assert_array_equal(batch["text"][row], TEXT(record["text"][0])[0])


def test_evaluation_leaves_out_what_is_unreadable(caplog):
    (batch,) = evaluate(Source(length=8, broken=frozenset({2}), torn=frozenset({5})), np.arange(8))
    assert np.flatnonzero(~batch["mask"]).tolist() == [2, 5]
    assert "record key5 is unreadable: torn" in caplog.text and "record 2 is unreadable" in caplog.text


def test_evaluation_keeps_decoded_images_for_the_caller():
    source, cache = Source(), {}
    first = evaluate(source, np.arange(8), cache=cache)
    for one, other in zip(first, evaluate(source, np.arange(8), cache=cache), strict=True):
        same(one, other)
    assert set(source.reads.values()) == {1}


def test_evaluation_without_text_or_labels():
    batch = evaluate(Source(class_names=()), np.arange(8), text=None)[0]
    assert set(batch) == {"image", "index", "mask"}
