"""Images a second on one core: JPEG to 224 x 224 by decoder, resizer and size, and what each augmentation costs.

    python -m benchmarks.images [--seconds=1.0] [--rounds=3]

Pictures are made of noise of several scales, with about the bytes a photograph has (quality 85). Counted is the
processor's time, and the best round: what else runs on the machine changes neither much.
"""

from __future__ import annotations

import argparse
import functools
import io
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from vlm_jax.data.augment import ColorJitter, Grayscale, RandAugment, RandomErasing
from vlm_jax.data.image import DECODERS, ImageTransform

SIZES = ((256, 341), (375, 500), (480, 640), (768, 1024), (1080, 1920))
WAYS = {decoder: {"decoder": decoder} for decoder in DECODERS}
WAYS |= {f"{decoder}, simd": {"decoder": decoder, "resizer": "simd"} for decoder in DECODERS}
AUGMENTATIONS = (
    ColorJitter(0.4, 0.4, 0.4, p=1.0),
    ColorJitter(0.4, 0.4, 0.4, 0.1, p=1.0),
    Grayscale(p=1.0),
    RandAugment(),
    RandomErasing(p=1.0),
)


def photograph(h: int, w: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    total = np.zeros((h, w, 3))
    for scale in (2, 8, 32, 128):
        noise = rng.normal(size=(3, max(2, h // scale), max(2, w // scale))).astype(np.float32)
        layers = [Image.fromarray(layer).resize((w, h), Image.Resampling.BICUBIC) for layer in noise]
        total += np.stack(layers, -1) * scale**0.7
    return (128 + 50 * total / total.std()).clip(0, 255).astype(np.uint8)


def jpeg(array: np.ndarray, quality: int = 85) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "JPEG", quality=quality)
    return file.getvalue()


def rate(call: Callable, seconds: float, rounds: int) -> float:
    """Calls a second of processor time, of the best round."""
    call()
    best = 0.0
    for _ in range(rounds):
        calls, start = 0, time.process_time()
        while (spent := time.process_time() - start) < seconds:
            call()
            calls += 1
        best = max(best, calls / spent)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    turns = vars(parser.parse_args())

    row = lambda *cells: print("| " + " | ".join(cells) + " |")
    row("images/s", "interpolation", *WAYS)
    row(*["---"] * (2 + len(WAYS)))
    for h, w in SIZES:
        data = jpeg(photograph(h, w))
        for name in ("bilinear", "bicubic"):
            transforms = [ImageTransform(224, interpolation=name, **options) for options in WAYS.values()]
            rates = [rate(functools.partial(transform, data), **turns) for transform in transforms]
            row(f"{w} x {h}, {len(data) // 1000} kB", name, *(f"{value:.0f}" for value in rates))
    print()
    row("augmentation of 224 x 224", "ms")
    row("---", "---")
    for augmentation in AUGMENTATIONS:
        call = functools.partial(augmentation, photograph(224, 224), np.random.default_rng(0))
        row(f"`{augmentation}`", f"{1000 / rate(call, **turns):.2f}")


if __name__ == "__main__":
    main()
