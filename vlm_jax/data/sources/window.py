"""Sources that use some of the rows of their files: `limit` after the first `skip`."""

from __future__ import annotations

import abc
import dataclasses
from pathlib import Path
from typing import Any, ClassVar

from vlm_jax.data.storage import without_query
from vlm_jax.errors import UserError

LEAST = {"skip": 0, "limit": 1, "cache_mb": 0}


class Window(abc.ABC):
    """A base of dataclasses with `path`, `skip`, `limit` and, where row groups are kept, `cache_mb`."""

    ROWS: ClassVar[str] = "rows"  # what a message calls them
    KIND: ClassVar[str]  # of the source, as its name says it
    path: str
    skip: int
    limit: int | None

    @property
    def name(self) -> str:
        """Kind and last part of the path, the same wherever the data lies: the order of examples hangs on it."""
        return f"{self.KIND}/{Path(without_query(self.path)).name}"

    @abc.abstractmethod
    def count(self) -> int:
        """Rows that are there, before `skip` and `limit`."""

    def check_options(self) -> None:
        """Raises UserError for options that no files fit."""
        least = {name: value for name, value in LEAST.items() if hasattr(self, name)}
        given = {name: getattr(self, name) for name in least}
        if any(value is not None and value < least[name] for name, value in given.items()):
            said = ", ".join(f"{name}={value}" for name, value in given.items())
            wanted = ", ".join(f"{name} >= {value}" for name, value in least.items())
            raise UserError(f"{type(self).__name__}({said}): wanted are {wanted}.")

    def check_count(self) -> None:
        """Raises UserError where no row is left."""
        if len(self) == 0:
            raise UserError(f"{self.path} has {self.count()} {self.ROWS}, none is left after skip={self.skip}.")

    def place(self, index: int) -> int:
        """The row of a record. Raises IndexError beyond the last."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} {self.ROWS}, asked for number {index}.")
        return self.skip + index

    def __len__(self) -> int:
        left = max(0, self.count() - self.skip)
        return left if self.limit is None else min(left, self.limit)

    def __getstate__(self) -> dict[str, Any]:
        """The options alone: a process that gets a copy opens the files itself."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
