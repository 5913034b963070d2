"""What decoders of texts and image tokens write and draw (`chameleon_tiny`, `cm3_tiny`): figures and a picture.

    python -m benchmarks.fused WORKDIR ... [--classifier=WORKDIR] [--output=FILE] [--picture=FILE.png]

Figures are the last ones of each run's own evaluators. The picture, of the first run, has a drawing for each pair of
colour and shape, a line below those that the classifier takes for another pair, and test images with the captions that
are written for them.
"""

from __future__ import annotations

import argparse
import json
import pathlib

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

import vlm_jax
from benchmarks.runs import enlarged, last_values, under
from vlm_jax.data.sources.shapes import Shapes
from vlm_jax.data.sources.shapes.scene import COLOURS, OUTLINES

TEMPLATE = "a picture of a {}"
SCALE, SHOWN = 2, 16  # pixels for a pixel, and captions
HEAD, WORDS, GAP = 16, 210, 6  # heights and widths, in pixels


def figures(workdir: pathlib.Path) -> dict[str, float]:
    """The last value of each of a run's evaluators, and how many steps it has had."""
    found = last_values(workdir)
    return {"steps": found["step"], **under("eval/", found)}


def drawings(model, classifier) -> Image.Image:
    """A row for each colour, a column for each shape."""
    names = [f"{colour} {shape}" for colour in COLOURS for shape in OUTLINES]
    images = model.draw([TEMPLATE.format(name) for name in names])
    seen = names
    if classifier is not None:
        seen = [names[k] for k in classifier.classify(images, names, (TEMPLATE,)).probabilities.argmax(1)]
    side = images.shape[1] * SCALE + GAP
    page = Image.new("RGB", (70 + len(OUTLINES) * side, HEAD + len(COLOURS) * side), "white")
    pen = ImageDraw.Draw(page)
    for k, shape in enumerate(OUTLINES):
        _write(pen, (70 + k * side, 0), shape)
    for k, (name, image) in enumerate(zip(names, images)):
        row, column = divmod(k, len(OUTLINES))
        x, y = 70 + column * side, HEAD + row * side
        if not column:
            _write(pen, (0, y + side // 2 - 8), name.split()[0])
        page.paste(enlarged(image, SCALE), (x, y))
        if seen[k] != name:
            pen.line((x, y + side - 4, x + side - GAP - 1, y + side - 4), fill=(200, 0, 0), width=3)
    return page


def captions(model, images: UInt8[np.ndarray, "n height width 3"], height: int) -> Image.Image:
    """Each image, and beside it what is written, in columns."""
    side = images.shape[1] * SCALE + GAP
    rows = max(1, (height - HEAD) // side)
    page = Image.new("RGB", (-(-len(images) // rows) * (side + WORDS), height), "white")
    pen = ImageDraw.Draw(page)
    for k, (image, text) in enumerate(zip(images, model.generate(list(images)))):
        column, row = divmod(k, rows)
        x, y = column * (side + WORDS), HEAD + row * side
        page.paste(enlarged(image, SCALE), (x, y))
        _write(pen, (x + side, y + side // 2 - 8), text)
    return page


def picture(model, classifier) -> Image.Image:
    """Drawings at the left, captions at the right."""
    left = drawings(model, classifier)
    source = Shapes(size=SHOWN, image_size=model.task.model.tokenizer.image_size, split="test", scenes="single")
    right = captions(model, np.stack([source[k]["image"] for k in range(SHOWN)]), left.height)
    page = Image.new("RGB", (left.width + 20 + right.width, left.height), "white")
    page.paste(left, (0, 0))
    page.paste(right, (left.width + 20, 0))
    return page


def _write(pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str) -> None:
    pen.text(place, text, fill="black", font=ImageFont.load_default(12))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=pathlib.Path, nargs="+")
    parser.add_argument("--classifier", type=pathlib.Path, help="a run of siglip_tiny")
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--picture", type=pathlib.Path)
    options = parser.parse_args()
    found = {path.name: figures(path) for path in options.workdir}
    print(json.dumps(found, indent=2))
    if options.output:
        options.output.write_text(json.dumps(found, indent=2) + "\n")
    if options.picture:
        classifier = vlm_jax.load(options.classifier) if options.classifier else None
        picture(vlm_jax.load(options.workdir[0]), classifier).save(options.picture, optimize=True)


if __name__ == "__main__":
    main()
