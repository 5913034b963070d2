"""Which script a text is written in, by the Unicode blocks of its letters: what can be known without a model."""

from __future__ import annotations

import bisect
from collections import Counter

# First code point, last code point, script; ascending. Punctuation, digits and emoji belong to none.
BLOCKS = (
    (0x0041, 0x005A, "latin"),
    (0x0061, 0x007A, "latin"),
    (0x00C0, 0x024F, "latin"),
    (0x0370, 0x03FF, "greek"),
    (0x0400, 0x052F, "cyrillic"),
    (0x0530, 0x058F, "armenian"),
    (0x0590, 0x05FF, "hebrew"),
    (0x0600, 0x06FF, "arabic"),
    (0x0750, 0x077F, "arabic"),
    (0x08A0, 0x08FF, "arabic"),
    (0x0900, 0x097F, "devanagari"),
    (0x0980, 0x09FF, "bengali"),
    (0x0A00, 0x0A7F, "gurmukhi"),
    (0x0A80, 0x0AFF, "gujarati"),
    (0x0B80, 0x0BFF, "tamil"),
    (0x0C00, 0x0C7F, "telugu"),
    (0x0C80, 0x0CFF, "kannada"),
    (0x0D00, 0x0D7F, "malayalam"),
    (0x0D80, 0x0DFF, "sinhala"),
    (0x0E00, 0x0E7F, "thai"),
    (0x0E80, 0x0EFF, "lao"),
    (0x1000, 0x109F, "burmese"),
    (0x10A0, 0x10FF, "georgian"),
    (0x1100, 0x11FF, "korean"),
    (0x1200, 0x137F, "ethiopic"),
    (0x1780, 0x17FF, "khmer"),
    (0x1E00, 0x1EFF, "latin"),
    (0x1F00, 0x1FFF, "greek"),
    (0x3040, 0x30FF, "japanese"),
    (0x3130, 0x318F, "korean"),
    (0x3400, 0x4DBF, "han"),
    (0x4E00, 0x9FFF, "han"),
    (0xAC00, 0xD7AF, "korean"),
    (0xF900, 0xFAFF, "han"),
    (0xFB50, 0xFDFF, "arabic"),
    (0xFE70, 0xFEFE, "arabic"),
    (0x20000, 0x323AF, "han"),
)
STARTS = [first for first, _, _ in BLOCKS]
SCRIPTS = tuple(sorted({script for _, _, script in BLOCKS}))
OTHER, NONE = "other", "none"


def script_of(text: str) -> str:
    """The script of most letters; "japanese" where Han comes with kana; "other" for scripts that are not in `BLOCKS`;
    "none" for a text without letters."""
    counts: Counter[str] = Counter()
    for character, count in Counter(text).items():
        if character.isalpha():
            counts[_script(ord(character))] += count
    if not counts:
        return NONE
    if counts["japanese"] and counts["han"]:
        counts["japanese"] += counts.pop("han")
    return max(sorted(counts), key=counts.__getitem__)


def _script(point: int) -> str:
    at = bisect.bisect_right(STARTS, point) - 1
    if at < 0 or point > BLOCKS[at][1]:
        return OTHER
    return BLOCKS[at][2]
