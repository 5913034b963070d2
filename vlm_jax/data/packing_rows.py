"""Packed rows of training batches from global row indices."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from vlm_jax.data.packing import Placed, keep_patches, patchify, text_lengths
from vlm_jax.data.rows import RowGenerator, Rows, halves
from vlm_jax.data.text import caption_ids


@dataclasses.dataclass(frozen=True)
class _Window:
    """The examples of a window, read, and what each row holds of them."""

    start: int
    parts: Sequence
    images: Sequence[np.ndarray]
    texts: np.ndarray | None
    lengths: np.ndarray
    failures: Sequence[tuple[str, str] | None]
    plan: Sequence[Sequence[Placed]]


class PackedRows(Rows):
    """Makes the packed rows of any global row indices; see `vlm_jax.data.packing.Packing`. It pickles.

    `example_id` and `caption_id` are those of each pair of a row, zero where `pair_mask` is false.
    """

    @property
    def spec(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape of one row and type of each array."""
        packing, texts = self._pipeline.packing, self._pipeline.text is not None
        return packing.spec(texts=texts) | {"example_id": ((packing.images, 2), "uint32")}

    def __call__(self, indices: np.ndarray) -> tuple[dict[str, np.ndarray], list[tuple[int, str, str, str]]]:
        """The rows, and place, source, key and reason of each example in them whose own record was unreadable.

        An example that is in no row is told with the first row of its window.
        """
        packing, text = self._pipeline.packing, self._pipeline.text
        batch = {name: np.zeros((len(indices), *shape), dtype) for name, (shape, dtype) in self.spec.items()}
        if text is not None:
            batch["text"] += np.int32(text.pad_id)
        generator, unreadable = RowGenerator(self._seed), []
        windows, slots = np.divmod(indices, packing.rows)
        for number in np.unique(windows).tolist():
            window = self._read(number, generator)
            left_out = set(range(packing.examples)) - {placed.example for row in window.plan for placed in row}
            for at in np.flatnonzero(windows == number).tolist():
                row = window.plan[slots[at]]
                self._fill({name: array[at] for name, array in batch.items()}, window, row, generator)
                told = [placed.example for placed in row] + (sorted(left_out) if slots[at] == 0 else [])
                failed = [example for example in told if window.failures[example] is not None]
                unreadable += [(at, window.parts[i].name, *window.failures[i]) for i in failed]
        return batch, unreadable

    def _read(self, number: int, generator: RowGenerator) -> _Window:
        packing, text = self._pipeline.packing, self._pipeline.text
        start = number * packing.examples
        indices = np.arange(start, start + packing.examples)
        parts, examples, failures = zip(*self.examples(indices))
        texts, lengths = None, np.zeros(len(indices), np.int64)
        if text is not None:
            draws = [generator(index).random() for index in indices.tolist()]
            texts = text([part.choose(e.texts, draw) for part, e, draw in zip(parts, examples, draws)])
            lengths = text_lengths(texts, text.pad_id, text.eos_id)
        images = [example.image for example in examples]
        # Another stream than those of examples, whose index the window's first one has.
        rng = np.random.Generator(np.random.Philox(key=[self._seed % 2**64, start], counter=[0, 0, 0, 1]))
        plan = packing.plan([image.shape[:2] for image in images], packing.draw(rng).tolist(), lengths.tolist())
        return _Window(start, parts, images, texts, lengths, failures, plan)

    def _fill(
        self, row: dict[str, np.ndarray], window: _Window, plan: Sequence[Placed], generator: RowGenerator
    ) -> None:
        """Writes the images and texts of a row into its arrays, which are zero, or padding."""
        patch_size, patches_end, text_end = self._pipeline.packing.patch_size, 0, 0
        for pair, placed in enumerate(plan):
            example, grid = placed.example, placed.grid
            rng = generator(window.start + example)
            rng.random()  # the caption's
            image = window.parts[example].augment(window.images[example], rng, grid)
            place = slice(patches_end, patches_end + placed.kept)
            patches_end = place.stop
            row["patches"][place], row["patch_positions"][place] = keep_patches(
                patchify(image, patch_size), grid[1], placed.kept, rng
            )
            row["image_segment_ids"][place] = pair + 1
            row["image_grids"][pair] = grid
            row["pair_mask"][pair] = True
            row["example_id"][pair] = halves(np.array([window.start + example]))[0]
            if window.texts is not None:
                place = slice(text_end, text_end + int(window.lengths[example]))
                text_end = place.stop
                row["text"][place] = window.texts[example][: window.lengths[example]]
                row["text_segment_ids"][place] = pair + 1
                row["caption_id"][pair] = caption_ids(window.texts[example : example + 1])[0]
