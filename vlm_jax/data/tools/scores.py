"""Scores of examples, such as the similarity of image and caption, that another program has written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt64

from vlm_jax.data.storage import content_hash
from vlm_jax.errors import UserError


def key_number(key: str) -> int:
    """64 bits that stand for a key."""
    return int(content_hash(key), 16)


class Scores:
    """Scores by key, from a file of lines `{"key": KEY, "score": NUMBER}`; 12 bytes each in memory."""

    def __init__(self, path: str):
        """Raises: UserError, with the line, for a file that is none of such lines."""
        numbers, scores = [], []
        try:
            with Path(path).expanduser().open(encoding="utf-8") as lines:
                for at, line in enumerate(lines, 1):
                    if line.strip():
                        key, score = _pair(line, f"--scores={path}, line {at}")
                        numbers.append(key_number(key))
                        scores.append(score)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--scores={path} cannot be read: {error}.") from error
        if not numbers:
            raise UserError(f"--scores={path} has no scores.")
        keys = np.array(numbers, np.uint64)
        self._keys, first = np.unique(keys, return_index=True)
        self._scores = np.array(scores, np.float32)[first]

    def __call__(self, keys: UInt64[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
        """The score of each `key_number`, NaN where there is none."""
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[at] == keys, self._scores[at], np.float32("nan"))


def _pair(line: str, where: str) -> tuple[str, float]:
    try:
        row = json.loads(line)
        return str(row["key"]), float(row["score"])
    except (ValueError, TypeError, KeyError):
        wanted = '{"key": "00000.tar:000000007", "score": 0.31}'
        raise UserError(f"{where}: {line.strip()[:60]!r}, wanted is {wanted}.") from None
