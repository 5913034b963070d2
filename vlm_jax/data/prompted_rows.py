"""Rows of training batches with a prompted text beside each caption."""

from __future__ import annotations

import dataclasses

import numpy as np

from vlm_jax.data.prompted import choose
from vlm_jax.data.reader import Example, Reader
from vlm_jax.data.rows import Rows
from vlm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class PromptedReader(Reader):
    """Reads the record's `prompted`, see `data.prompted.Pairs`."""

    more: tuple[str, ...] = ("prompted",)

    def example(self, record: dict, index: int) -> Example:
        """What a record holds, decoded. Raises: UnreadableRecord; UserError where the source has no prompts."""
        if "prompted" not in record:
            raise UserError(
                f"source {self.source.name!r} has no prompted texts; bind it as the source of a "
                "data.sources.located.Located."
            )
        return super().example(record, index)


class PromptedRows(Rows):
    """`Rows` with `decoder_text` int32 [b, L] and `decoder_target` bool [b, L], as `data.prompted` makes them."""

    reader = PromptedReader

    @property
    def spec(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape of one row and type of each array."""
        length = (self._pipeline.prompted.text.length,)
        return super().spec | {"decoder_text": (length, "int32"), "decoder_target": (length, "bool")}

    def _drawn(self, example: Example, rng: np.random.Generator) -> tuple[str, str]:
        return choose(example.more[0], rng.random())

    def _also(self, drawn: list[tuple[str, str]]) -> dict[str, np.ndarray]:
        rows, target = self._pipeline.prompted(drawn)
        return {"decoder_text": rows, "decoder_target": target}
