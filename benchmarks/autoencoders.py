"""What autoencoders are to beat: PCA with as many numbers an image, and k-means of patches with as many bits.

    python -m benchmarks.autoencoders --train='cifar10/train-*.parquet' --test='cifar10/test-*.parquet' \\
        [--numbers=256] [--codes=512] [--patch=4] [--workdir=DIR ...] [--output=FILE] [--picture=FILE.png]

Both are fitted on all training images (k-means on `--patches` of their patches, drawn at random) and measured on all
test images, as the recipes are: reconstructions rounded to 8 bits, PSNR averaged over images. Of runs in `--workdir`
the last figures of the evaluator `reconstructions` are put beside them. A row of the picture has test images, and those
below what each of these makes of them, in the order of the figures. It needs scikit-learn (extra `test`).
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, UInt8
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

import vlm_jax
from benchmarks.runs import enlarged, last_values, under
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.sources.parquet import Parquet
from vlm_jax.evaluate.reconstructions import errors, usage

Images = UInt8[np.ndarray, "n height width 3"]
EVALUATOR = "eval/reconstructions/"
SHOWN, SCALE = 12, 2  # images of the picture, and pixels for a pixel


def read(path: str, size: int, limit: int | None = None) -> Images:
    """The images of Parquet files, `size` x `size`."""
    source, transform = Parquet(path, class_name_column="class_name", limit=limit), ImageTransform(size)
    return np.stack([transform(source[i]["image"]) for i in range(len(source))])


def pca(train: Images, test: Images, numbers: int) -> tuple[dict[str, float], Images]:
    """The best linear code of so many numbers an image: figures and reconstructions."""
    flat = lambda images: images.reshape(len(images), -1).astype(np.float32) / 255
    fitted = PCA(numbers, svd_solver="covariance_eigh").fit(flat(train))
    again = rounded(fitted.inverse_transform(fitted.transform(flat(test)))).reshape(test.shape)
    return {"numbers": numbers, **compared(test, again)}, again


def kmeans(
    train: Images, test: Images, codes: int, patch: int, patches: int, seed: int = 0
) -> tuple[dict[str, float], Images]:
    """Each patch by the nearest of `codes` patches, from k-means++ and Lloyd's iterations: figures, reconstructions."""
    rng = np.random.default_rng(seed)
    rows = cut(train, patch)
    rows = rows[rng.choice(len(rows), min(patches, len(rows)), replace=False)].astype(np.float32) / 255
    fitted = KMeans(codes, n_init=1, max_iter=100, random_state=seed).fit(rows)
    found = fitted.predict(cut(test, patch).astype(np.float32) / 255)
    places = [side // patch for side in test.shape[1:3]]
    again = rounded(joined(fitted.cluster_centers_[found], test.shape, patch))
    used = usage(found.reshape(len(test), *places), codes)
    return {**used, **compared(test, again)}, again


def cut(images: Images, patch: int) -> UInt8[np.ndarray, "patches numbers"]:
    """All patches of all images, each a row."""
    n, height, width, colours = images.shape
    cells = images.reshape(n, height // patch, patch, width // patch, patch, colours).swapaxes(2, 3)
    return cells.reshape(-1, patch * patch * colours)


def joined(patches: np.ndarray, shape: tuple[int, ...], patch: int) -> Float[np.ndarray, "n height width 3"]:
    """The images that `cut` took apart."""
    n, height, width, colours = shape
    return patches.reshape(n, height // patch, width // patch, patch, patch, colours).swapaxes(2, 3).reshape(shape)


def rounded(pixels: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Of pixels in [0, 1]."""
    return np.round(255 * pixels.clip(0, 1)).astype(np.uint8)


def compared(images: Images, again: Images) -> dict[str, float]:
    """Mean errors of reconstructions."""
    return {name: float(values.mean()) for name, values in errors(images, again).items()}


def measure(train: Images, test: Images, options: argparse.Namespace) -> tuple[dict[str, Mapping], list[Images]]:
    """Figures by name, `pca`, `kmeans` and each run's; what each makes of the first test images, if it is asked for."""
    found = {
        "pca": pca(train, test, options.numbers),
        "kmeans": kmeans(train, test, options.codes, options.patch, options.patches),
    }
    figures = {name: figures for name, (figures, _) in found.items()}
    again = [again[:SHOWN] for _, again in found.values()]
    if options.picture:
        again += [vlm_jax.load(path).reconstruct(test[:SHOWN]) for path in options.workdir]
    return figures | {path.name: under(EVALUATOR, last_values(path)) for path in options.workdir}, again


def draw(rows: list[Images], path: pathlib.Path) -> None:
    """Writes a picture: a row for each."""
    whole = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    enlarged(whole, SCALE).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="Parquet files with the columns image and class_name")
    parser.add_argument("--test", required=True)
    parser.add_argument("--size", type=int, default=32, help="of images, in pixels")
    parser.add_argument("--limit", type=int, help="images of each; all unless given")
    parser.add_argument("--numbers", type=int, default=256, help="of PCA, an image")
    parser.add_argument("--codes", type=int, default=512, help="of k-means")
    parser.add_argument("--patch", type=int, default=4, help="side of the patches of k-means, in pixels")
    parser.add_argument("--patches", type=int, default=100_000, help="that k-means is fitted on")
    parser.add_argument("--workdir", type=pathlib.Path, action="append", default=[], help="of a run; may be repeated")
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--picture", type=pathlib.Path)
    options = parser.parse_args()
    images = {name: read(getattr(options, name), options.size, options.limit) for name in ("train", "test")}
    figures, again = measure(**images, options=options)
    found = {name: len(values) for name, values in images.items()} | figures
    print(json.dumps(found, indent=2))
    if options.output:
        options.output.write_text(json.dumps(found, indent=2) + "\n")
    if options.picture:
        draw([images["test"][:SHOWN], *again], options.picture)


if __name__ == "__main__":
    main()
