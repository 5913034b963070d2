"""A contact sheet: pictures with their captions, as one picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from vlm_jax.data.image import decode

TILE = 160  # pixels of a picture's side
TEXT = 56  # pixels of height for its caption
GAP = 8
LETTERS, LINES, POINTS = 26, 4, 11


def contact_sheet(records: Sequence[dict[str, Any]], columns: int = 6) -> bytes:
    """A PNG with the image and first caption of each record, whole images on grey.

    Args:
      records: readable ones of a source, at least one; more than `columns` make rows.
    """
    from PIL import Image, ImageDraw, ImageFont

    columns = min(columns, len(records))
    rows = -(-len(records) // columns)
    sheet = Image.new("RGB", (GAP + columns * (TILE + GAP), GAP + rows * (TILE + TEXT + GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(POINTS)
    for at, record in enumerate(records):
        left, top = GAP + at % columns * (TILE + GAP), GAP + at // columns * (TILE + TEXT + GAP)
        draw.rectangle((left, top, left + TILE - 1, top + TILE - 1), fill=(222, 222, 222))
        image = Image.fromarray(decode(record["image"], TILE))
        scale = TILE / max(image.size)
        smaller = scale < 1
        image = image.resize(
            [max(1, round(side * scale)) for side in image.size],
            Image.Resampling.BICUBIC if smaller else Image.Resampling.NEAREST,
        )
        sheet.paste(image, (left + (TILE - image.width) // 2, top + (TILE - image.height) // 2))
        draw.text((left, top + TILE + 2), _wrapped(_first_text(record)), fill="black", font=font, spacing=1)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def spread(length: int, count: int) -> list[int]:
    """`count` numbers spread evenly over range(length), or all of it."""
    count = min(count, length)
    return (np.arange(count) * length // max(count, 1)).tolist()


def _first_text(record: dict[str, Any]) -> str:
    text = record.get("text") or ""
    return text if isinstance(text, str) else next(iter(text), "")


def _wrapped(text: str) -> str:
    """At most `LINES` lines; only what the built-in font has, so that nothing else fails."""
    import textwrap

    text = text[:1000].encode("ascii", "replace").decode()
    return "\n".join(textwrap.wrap(text, LETTERS, max_lines=LINES, placeholder="..."))
