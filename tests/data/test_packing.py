from __future__ import annotations

import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlm_jax.data.augment import Grayscale
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.packing import Packing, fit, keep_patches, patchify, text_lengths
from vlm_jax.data.packing_bins import first_fit_decreasing, pack_texts
from vlm_jax.errors import UserError
from vlm_jax.nn import embed, pool

SIDES = st.integers(1, 4000)


@given(SIDES, SIDES, st.integers(1, 1024), st.one_of(st.none(), st.integers(1, 40)))
def test_a_grid_keeps_to_its_budget(height, width, budget, longest):
    rows, cols = fit(height, width, budget, longest)
    assert 1 <= rows * cols <= budget
    assert max(rows, cols) <= (longest or budget)


@given(st.floats(-0.7, 0.7), st.sampled_from([64, 144, 256, 1024]))
def test_a_grid_has_the_shape_of_its_image_and_most_of_its_budget(shape, budget):
    height, width = round(1000 * math.exp(shape)), 1000
    rows, cols = fit(height, width, budget)
    assert abs(math.log(rows / cols) - math.log(height / width)) < 1.5 / min(rows, cols)
    assert rows * cols > 0.7 * budget


def test_grids_of_common_shapes():
    assert fit(480, 640, 256) == (14, 18)
    assert fit(640, 480, 256) == (18, 14)
    assert fit(500, 500, 256) == (16, 16)
    assert fit(10, 4000, 256) == (1, 256)
    assert fit(10, 4000, 256, longest=32) == (1, 32)


def test_patches_are_those_of_the_model():
    image = np.random.default_rng(0).integers(0, 256, (12, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(patchify(image, 4), embed.patchify(image[None], 4).reshape(6, 48))


@given(st.integers(1, 30), st.integers(1, 6), st.integers(0, 2**32), st.data())
def test_kept_patches_are_in_order_at_their_positions(rows, cols, seed, data):
    kept = data.draw(st.integers(1, rows * cols))
    patches = np.arange(rows * cols)[:, None]
    got, positions = keep_patches(patches, cols, kept, np.random.default_rng(seed))
    assert len(set(got[:, 0].tolist())) == kept and sorted(got[:, 0].tolist()) == got[:, 0].tolist()
    np.testing.assert_array_equal(positions @ [cols, 1], got[:, 0])


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=30), st.integers(1, 5))
def test_bins_hold_what_they_have_room_for(sizes, bins):
    sizes, room = np.array(sizes), np.full((bins, 2), 12)
    places = first_fit_decreasing(sizes, room)
    for i in range(bins):
        np.testing.assert_array_equal(room[i], 12 - sizes[places == i].sum(axis=0))
    assert (room >= 0).all()
    for size in sizes[places < 0]:
        assert not (room >= size).all(axis=1).any()


TEXTS = st.lists(st.lists(st.integers(1, 99), max_size=12), max_size=40)


@given(TEXTS, st.integers(1, 20), st.integers(1, 6))
def test_packed_texts_are_whole_and_each_there_once(texts, length, rows):
    packed, left_out = pack_texts(texts, length=length, rows=rows, pad_id=7)
    found = []
    for tokens, segments, positions in zip(*packed.values()):
        count = segments.max(initial=0)
        real = segments > 0
        assert (np.diff(segments[real]) >= 0).all() and not real[real.sum() :].any()  # contiguous, padding last
        assert (tokens[~real] == 7).all()
        for segment in range(1, count + 1):
            np.testing.assert_array_equal(positions[segments == segment], np.arange((segments == segment).sum()))
            found.append(tokens[segments == segment].tolist())
    assert sorted(found) == sorted(text for i, text in enumerate(texts) if i not in left_out and text)
    assert all(len(texts[i]) for i in left_out)


@st.composite
def windows(draw):
    budgets = tuple(draw(st.lists(st.integers(4, 64), min_size=1, max_size=3)))
    drop = draw(st.one_of(st.just(()), st.tuples(*[st.floats(0, 0.9)] * len(budgets))))
    rows, images = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    examples = draw(st.integers(1, rows * images))
    packing = Packing(
        tokens=draw(st.integers(64, 200)),
        images=images,
        text_tokens=draw(st.integers(1, 40)),
        examples=examples,
        rows=rows,
        budgets=budgets,
        drop=drop,
        smallest=draw(st.integers(1, 8)),
    )
    many = dict(min_size=examples, max_size=examples)
    sizes = draw(st.lists(st.tuples(SIDES, SIDES), **many))
    drawn = draw(st.lists(st.integers(0, len(budgets) - 1), **many))
    return packing, sizes, drawn, draw(st.lists(st.integers(1, 20), **many))


@settings(deadline=None)
@given(windows())
def test_a_plan_keeps_to_every_limit_and_places_an_example_at_most_once(window):
    packing, sizes, drawn, texts = window
    plan = packing.plan(sizes, drawn, texts)
    assert plan == packing.plan(sizes, drawn, texts)
    assert len(plan) == packing.rows
    places = [placed.example for row in plan for placed in row]
    assert len(set(places)) == len(places)
    for row in plan:
        assert len(row) <= packing.images
        assert sum(placed.kept for placed in row) <= packing.tokens
        assert sum(texts[placed.example] for placed in row) <= packing.text_tokens
        for placed in row:
            assert 1 <= placed.kept <= math.prod(placed.grid) <= packing.budgets[drawn[placed.example]]


def shapes(count: int, seed: int) -> list[tuple[int, int]]:
    """Sizes of photographs: 4:3, 3:2, 16:9 and squares, lying and standing, with some spread."""
    rng = np.random.default_rng(seed)
    aspects = rng.choice([1, 4 / 3, 3 / 4, 3 / 2, 2 / 3, 16 / 9, 9 / 16], count) * np.exp(rng.normal(0, 0.1, count))
    return [(round(500 / math.sqrt(a)), round(500 * math.sqrt(a))) for a in aspects]


@pytest.mark.parametrize("options", [{}, {"budgets": (256,), "examples": 33}])
def test_rows_are_filled_to_95_percent(options):
    packing, rng, filled, placed = Packing(**options), np.random.default_rng(0), [], 0
    for seed in range(20):
        drawn = packing.draw(rng)
        plan = packing.plan(shapes(packing.examples, seed), drawn, rng.integers(5, 30, packing.examples))
        filled.append(sum(p.kept for row in plan for p in row) / (packing.rows * packing.tokens))
        placed += sum(map(len, plan))
    assert np.mean(filled) >= 0.95
    assert placed >= 0.99 * 20 * packing.examples


def test_budgets_are_drawn_equally_often():
    counts = np.bincount(Packing().draw(np.random.default_rng(0)))
    assert counts.max() - counts.min() <= 1
    naflex = Packing(examples=1, rows=1, images=1)
    assert {naflex.draw(np.random.default_rng(seed)).item() for seed in range(30)} == {0, 1, 2}


def jpeg(height: int, width: int) -> bytes:
    file = io.BytesIO()
    Image.effect_mandelbrot((width, height), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(file, "JPEG")
    return file.getvalue()


def test_an_image_keeps_its_shape_and_is_read_near_its_budget():
    native = Packing(budgets=(64,), tokens=64).transform(ImageTransform())
    array = native.decode_resize(jpeg(1200, 1600))
    assert array.shape == (150, 200, 3)
    assert native.augment(array, np.random.default_rng(0), (7, 9)).shape == (7 * 16, 9 * 16, 3)
    big = native.decode_resize(np.zeros((3000, 3000, 3), np.uint8))
    assert 2 * 128 <= big.shape[0] <= 4 * 128


def test_flip_and_augmentation_are_the_transforms():
    array = np.random.default_rng(0).integers(0, 256, (16, 32, 3), dtype=np.uint8)
    native = Packing(budgets=(64,), tokens=64).transform(ImageTransform(flip=True, augmentation=Grayscale(p=1.0)))
    seen = {native.augment(array, np.random.default_rng(seed), (1, 2)).tobytes() for seed in range(8)}
    grey = native.augment(array, np.random.default_rng(0), (1, 2))
    assert len(seen) == 2 and (grey[..., 0] == grey[..., 2]).all()


def test_lengths_are_those_of_the_models_real_tokens():
    rows = np.array([[5, 6, 9, 9], [5, 6, 7, 8], [9, 9, 9, 9], [5, 9, 0, 0]])
    for pad_id, eos_id in ((9, 9), (0, 9)):
        np.testing.assert_array_equal(
            text_lengths(rows, pad_id, eos_id), pool.real_tokens(rows, pad_id, eos_id).sum(axis=1)
        )


@pytest.mark.parametrize(
    "options, says",
    [
        ({"tokens": 100}, "tokens=100 is less than an image of 256"),
        ({"drop": (0.5,)}, "one fraction for each"),
        ({"drop": (0.5, 0.5, 1.0)}, "0 <= drop < 1"),
        ({"examples": 200}, "can never fit into 8 rows of 16"),
        ({"budgets": ()}, "numbers of patches"),
        ({"rows": 0}, "rows=0 must be at least 1"),
    ],
)
def test_mistakes_are_told(options, says):
    with pytest.raises(UserError, match=says):
        Packing(**options)


def test_crops_are_refused():
    with pytest.raises(UserError, match="random_resized_crop changes the aspect ratio"):
        Packing().transform(ImageTransform(random_resized_crop=(0.5, 1.0)))
