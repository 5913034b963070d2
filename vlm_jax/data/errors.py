"""What can be wrong with one record: the record is replaced and counted, the run goes on."""

from __future__ import annotations


class UnreadableImage(ValueError):
    """Bytes that are no image which can be trained on; its text is the reason, in one line."""


class UnreadableRecord(Exception):
    """A record whose content is broken, as against a disk or a network that fails (that is an `OSError`)."""

    def __init__(self, source: str, key: str, why: str):
        super().__init__(source, key, why)  # all three, so that it survives pickling
        self.source, self.key, self.why = source, key, why

    def __str__(self) -> str:
        return f"{self.source}: record {self.key} is unreadable: {self.why}"
