"""How the rows of a batch are shared among threads and workers."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
import pytest

from tests.data.counting import Source
from vlm_jax.data.fused_vocabulary import Vocabulary
from vlm_jax.data.fusion import Fusion
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.pipeline import Pipeline
from vlm_jax.data.stream import CHUNK, chunked
from vlm_jax.data.text import Text

TEXT = Text(length=64, canonicalise="none", bos=True, pad="pad")
FUSION = Fusion(Vocabulary(TEXT.vocab_size, codes=16), grid=2, examples=40, rows=64, per_row=1)


@dataclasses.dataclass
class Codes(Source):
    def __getitem__(self, index):
        self.reads[index] += 1
        return {"image_codes": np.arange(4), "text": f"no {index}"}


@pytest.mark.parametrize("size", [1, 7, CHUNK])
@pytest.mark.parametrize("window", [1, 4, 24, 64, 100])
@pytest.mark.parametrize("rows", [np.arange(1), np.arange(600), np.arange(100, 300), np.arange(33)[::-1], [5, 99, 7]])
def test_chunks_begin_where_windows_do(rows, window, size):
    rows = np.asarray(rows)
    places = chunked(rows, size, window)
    np.testing.assert_array_equal(np.concatenate(places), np.arange(len(rows)))
    windows = [set((rows[part] // window).tolist()) for part in places]
    seen = collections.Counter(window for each in windows for window in each)
    assert max(seen.values()) == 1 and all(windows) and max(map(len, places)) < max(size, window) + window


def test_without_windows_chunks_are_of_a_size():
    assert [len(places) for places in chunked(np.arange(100), CHUNK, 1)] == [25] * 4


@pytest.mark.parametrize("threads", [0, 3])
def test_each_window_is_read_once(threads):
    source = Codes(length=160, class_names=())
    pipeline = Pipeline(source, ImageTransform(size=8), TEXT, threads=threads, prefetch=1, fusion=FUSION)
    batches = pipeline.batches(seed=0, batch_size=256, rows=np.arange(256), overfit_batches=1)
    batch = next(batches)
    batches.close()
    assert (batch["text_segment_ids"].max(axis=1) > 0).sum() == 160 and set(source.reads) == set(range(160))
    if threads == 0:  # others may be at the next batch
        assert set(source.reads.values()) == {1}
