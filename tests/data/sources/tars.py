"""Images that hold a number, and tars of them."""

from __future__ import annotations

import io
import json
import pathlib
import tarfile

from PIL import Image

from vlm_jax.data.image import decode


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def value(record: dict) -> int:
    """The number that the image of a record holds."""
    return int(decode(record["image"])[0, 0, 0])


def write_tar(path: pathlib.Path, members: list[tuple[str, bytes]]) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def sample(k: int, key: str | None = None) -> list[tuple[str, bytes]]:
    """What img2dataset writes of an image, with two captions in the JSON, and a class."""
    key = f"{k:09}" if key is None else key
    meta = {"caption": f"caption {k}", "meta": {"alt": [f"alt {k}", None, f"other {k}"]}, "label": k % 3}
    return [
        (f"{key}.png", png(k)),
        (f"{key}.txt", f"caption {k}\nsecond line {k}\n".encode()),
        (f"{key}.json", json.dumps(meta).encode()),
        (f"{key}.cls", str(k % 3).encode()),
    ]
