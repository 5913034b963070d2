"""Sets that CLIP_benchmark exported (github.com/LAION-AI/CLIP_benchmark): tars of images with a class or captions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

from vlm_jax.data.sources.webdataset import WebDataset
from vlm_jax.data.storage import is_remote
from vlm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ClipBenchmark(WebDataset):
    """`path` names the tars of a split, "wds_cifar10/test/*.tar"; beside the split lies `classnames.txt`.

    The prompts of a set are `ZeroShot(templates=("@wds_cifar10/zeroshot_classification_templates.txt",))`. What was
    exported for retrieval has captions, one a line: `ClipBenchmark(text=("txt",), lines=True, label=None)`.
    """

    text: tuple[str, ...] = ()
    label: str | None = "cls"

    KIND: ClassVar[str] = "clip_benchmark"

    def names_in_data(self) -> tuple[str, ...]:
        """The lines of `classnames.txt`. Raises: UserError where it is missing; give `classes` of a bucket."""
        if is_remote(self.path):
            return ()
        file = Path(self.path.removeprefix("file://")).expanduser().parent.parent / "classnames.txt"
        if not file.is_file():
            raise UserError(f"there is no file {file}; give ClipBenchmark.classes.")
        return tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
