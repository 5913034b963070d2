"""Images from their latents: how far they are from what they were, and how the codes are used."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, UInt8

from vlm_jax import mesh as meshes
from vlm_jax.data.image import ImageTransform
from vlm_jax.errors import UserError, closest
from vlm_jax.evaluate.base import Evaluator, Predict, Result, embed_rows, joined, placed_batches
from vlm_jax.report.artifacts import Gallery

Images = UInt8[np.ndarray, "n height width 3"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstructions(Evaluator):
    """Errors of a source's images as an autoencoder gives them back, in 8 bits a subpixel.

    Args:
      shown: images in the report.
      between: the report also has pictures of so many points on the way from the latents of one image to those of
        another, the ends included; where latents are codes, between the vectors that stand for them.
    """

    source: Any
    image: ImageTransform
    shown: int = 8
    between: int = 8

    def validate(self) -> None:
        """Raises UserError for values that do not fit together."""
        super().validate()
        if self.shown < 1 or self.between < 2:
            raise UserError(
                f"Reconstructions(shown={self.shown}, between={self.between}): at least 1 and 2 are wanted."
            )

    def __call__(self, predict: Predict, mesh: Mesh) -> Result:
        """`mse`, `l1` and `psnr`, means over images of pixels in [0, 1] (see `errors`), and `examples`.

        Where there are codes also `codes_used`, a fraction, and `perplexity` of the codes of all places of all images,
        and `bits` of an image, whose codes are written without compression. Where a place has several codes (residual
        VQ), each with a codebook of its own, the first two are means over the codebooks.
        """
        if "reconstruct" not in predict:
            raise UserError(f"Reconstructions: the model gives no 'reconstruct'; {closest('reconstruct', predict)}")
        discrete, rows, codes, first = "tokens" in predict, [], [], []
        for batch in placed_batches(self.source, self.image, self.batch_size, mesh):
            images = meshes.gather(batch.pixels, mesh)[batch.keep]
            again = meshes.gather(predict["reconstruct"](batch.pixels), mesh)[batch.keep]
            rows.append({"index": batch.columns["index"], **errors(images, again)})
            if discrete:
                codes.append(meshes.gather(predict["tokens"](batch.pixels), mesh)[batch.keep])
            if (missing := self.shown - sum(len(images) for images, _ in first)) > 0:
                first.append((images[:missing], again[:missing]))
        rows = joined(rows)
        images, again = map(np.concatenate, zip(*first))
        metrics = {name: float(rows[name].mean()) for name in ("mse", "l1", "psnr")}
        metrics["examples"] = float(len(rows["index"]))
        artifacts = {"reconstructions": _gallery(images, again, rows["psnr"])}
        if discrete:
            metrics |= usage(np.concatenate(codes), predict["vocab_size"]())
        if "latents" in predict and len(images) > 1:
            artifacts["interpolations"] = self._interpolations(predict, mesh, images)
        return Result(metrics, artifacts, {"images": rows})

    def _interpolations(self, predict: Predict, mesh: Mesh, images: Images) -> Gallery:
        """On straight lines between the latents of each two images."""
        latents = embed_rows(predict["latents"], images[: len(images) // 2 * 2], self.batch_size, mesh)
        one, other = latents[0::2, None], latents[1::2, None]
        way = np.linspace(0, 1, self.between, dtype=np.float32).reshape(1, -1, *[1] * (latents.ndim - 1))
        points = one + way * (other - one)
        found = embed_rows(predict["images"], points.reshape(-1, *latents.shape[1:]), self.batch_size, mesh)
        found = found.reshape(*points.shape[:2], *found.shape[1:])
        rows = [
            (
                f"from image {2 * k} to image {2 * k + 1}",
                [(picture, f"{part:.0%}", None) for picture, part in zip(line, way.ravel())],
            )
            for k, line in enumerate(found)
        ]
        return Gallery("interpolations", rows)


def errors(images: Images, again: Images) -> dict[str, Float[np.ndarray, "n"]]:
    """`mse` and `l1` of pixels in [0, 1], and `psnr` in decibels, of each image.

    Sums of integers, so exact. An image without any error counts in `psnr` as one that is off by 1 / 255 in a single
    subpixel: its own ratio is infinite, and would be the mean's.
    """
    apart = np.abs(images.astype(np.int64) - again).reshape(len(images), -1)
    squares, count = (apart**2).sum(1), apart.shape[1] * 255.0**2
    psnr = 10 * np.log10(count / np.maximum(squares, 1))
    return {"mse": squares / count, "l1": apart.sum(1) / (apart.shape[1] * 255.0), "psnr": psnr}


def usage(codes: Int[np.ndarray, "n rows cols *stages"], size: int) -> dict[str, float]:
    """`codes_used`, `perplexity` and `bits` of the codes of images, of `size` that there are; see `Reconstructions`."""
    stages = codes.reshape(*codes.shape[:3], -1)
    used, perplexity = [], []
    for stage in np.moveaxis(stages, -1, 0):
        counts = np.unique(stage, return_counts=True)[1]
        share = counts / counts.sum()
        used.append(len(counts) / size)
        perplexity.append(np.exp(-(share * np.log(share)).sum()))
    bits = math.prod(stages.shape[1:]) * math.log2(size)
    return {"codes_used": float(np.mean(used)), "perplexity": float(np.mean(perplexity)), "bits": bits}


def _gallery(images: Images, again: Images, psnr: Float[np.ndarray, "n"]) -> Gallery:
    before = [(image, f"image {k}", None) for k, image in enumerate(images)]
    after = [(image, f"{psnr[k]:.1f} dB", None) for k, image in enumerate(again)]
    return Gallery("reconstructions", [("images", before), ("their reconstructions", after)])
