"""Statistics of measured records: sizes, shapes, captions, scripts, classes, duplicates, and what is unreadable."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vlm_jax.data.storage import content_hash
from vlm_jax.data.tools.hashing import Hashes, near_duplicates
from vlm_jax.data.tools.measure import Measured
from vlm_jax.data.tools.scripts import script_of

QUANTILES = {"min": 0, "p5": 5, "median": 50, "p95": 95, "max": 100}
ASPECTS = ((0, 0.5), (0.5, 0.8), (0.8, 1.25), (1.25, 2), (2, float("inf")))  # width to height
SHOWN = 20  # unreadable records, captions and classes that are listed


def caption_key(text: str) -> int:
    """64 bits of a caption without regard to case and blanks: equal captions are equal numbers."""
    return int(content_hash(" ".join(text.lower().split())), 16)


def statistics(rows: Iterable[Measured], class_names: Sequence[str], duplicate_bits: int) -> dict[str, Any]:
    """What `inspect.json` holds. Captions are kept as numbers, images as hashes: 200 bytes a record or so.

    Args:
      duplicate_bits: images whose hashes differ in so many bits of 128, or fewer, count as duplicates.
    """
    sizes, characters, words, captions_of = array("q"), array("q"), array("q"), array("q")
    hashes = bytearray()
    formats, scripts, labels = Counter(), Counter(), Counter()
    captions: Counter[int] = Counter()
    examples: dict[int, str] = {}
    unreadable: list[tuple[str, str]] = []
    records = damaged = 0
    for row in rows:
        records += 1
        if row.unreadable:
            damaged += 1
            if damaged <= SHOWN:
                unreadable.append((row.key, row.unreadable))
            continue
        sizes.extend((row.bytes, row.width, row.height))
        formats[row.format] += 1
        captions_of.append(len(row.texts))
        labels[row.label] += 1
        hashes += bytes.fromhex(row.hash)
        for text in row.texts:
            characters.append(len(text))
            words.append(len(text.split()))
            scripts[script_of(text)] += 1
            key = caption_key(text)
            captions[key] += 1
            if captions[key] == 2:
                examples[key] = text
    size, width, height = np.array(sizes, np.float64).reshape(-1, 3).T
    repeated = near_duplicates(Hashes.from_bytes(hashes), duplicate_bits) >= 0
    common = [(examples[key][:200], count) for key, count in captions.most_common(SHOWN) if count > 1]
    result = {
        "records": records,
        "unreadable": damaged,
        "unreadable_first": unreadable,
        "formats": dict(formats.most_common()),
        "image_bytes": _quantiles(size),
        "width": _quantiles(width),
        "height": _quantiles(height),
        "short_side": _quantiles(np.minimum(width, height)),
        "aspect": _quantiles(width / np.maximum(height, 1), 3),
        "aspect_shares": {f"{low}-{high}": _share((width / height >= low) & (width / height < high))
                          for low, high in ASPECTS},
        "duplicate_images": int(repeated.sum()),
        "images_without_structure": len(size) - len(repeated),
        "captions_of_a_record": _quantiles(captions_of),
        "caption_characters": _quantiles(characters),
        "caption_words": _quantiles(words),
        "scripts": {name: round(count / len(words), 4) for name, count in scripts.most_common()},
        "captions": len(words),
        "duplicate_captions": len(words) - len(captions),
        "most_common_captions": common,
    }  # fmt: skip
    if class_names:
        result["classes"] = _balance(labels, class_names)
    return result


def table(found: dict[str, Any]) -> list[str]:
    """The short form of the statistics, for a terminal."""
    rows = [("records", f"{found['records']:,}"), ("unreadable", f"{found['unreadable']:,}")]
    for name in ("image_bytes", "width", "height", "aspect", "caption_characters", "caption_words"):
        quantiles = found[name]
        rows.append((name.replace("_", " "), "  ".join(f"{q} {value:,}" for q, value in quantiles.items())))
    rows.append(("formats", _few(found["formats"])))
    rows.append(("scripts", _few({name: f"{share:.1%}" for name, share in found["scripts"].items()})))
    rows.append(("duplicate images", f"{found['duplicate_images']:,}"))
    rows.append(("duplicate captions", f"{found['duplicate_captions']:,} of {found['captions']:,}"))
    if "classes" in found:
        classes = found["classes"]
        rows.append(("classes", f"{classes['with_records']:,} of {classes['count']:,} have records, the largest "
                                f"{classes['largest']:,}, the smallest {classes['smallest']:,}"))  # fmt: skip
    lines = [f"{name:<19} {value}" for name, value in rows]
    return lines + [f"  unreadable: {key}: {why}" for key, why in found["unreadable_first"][:5]]


def _quantiles(values: Sequence[float], digits: int = 0) -> dict[str, float]:
    if not len(values):
        return {}
    rounded = [round(float(v), digits) for v in np.percentile(values, list(QUANTILES.values()))]
    return {name: value if digits else int(value) for name, value in zip(QUANTILES, rounded)}


def _share(which: np.ndarray) -> float:
    return round(float(which.mean()), 4) if which.size else 0.0


def _few(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in list(values.items())[:6]) or "none"


def _balance(labels: Counter[int], names: Sequence[str]) -> dict[str, Any]:
    counts = {name: labels[k] for k, name in enumerate(names)}
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return {
        "count": len(names),
        "with_records": sum(count > 0 for count in counts.values()),
        "without_class": labels[-1],
        "largest": ordered[0][1],
        "smallest": ordered[-1][1],
        "most": dict(ordered[:SHOWN]),
        "least": dict(ordered[-SHOWN:]),
    }
