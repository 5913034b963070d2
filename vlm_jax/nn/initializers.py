"""Initial weights of a transformer block, after big_vision ("jax"), open_clip ("clip") or GPT-2 ("gpt")."""

from __future__ import annotations

import dataclasses

from jax.nn.initializers import Initializer, lecun_normal, normal, variance_scaling, xavier_uniform, zeros

STYLES = ("jax", "clip", "gpt")


@dataclasses.dataclass(frozen=True)
class Initializers:
    """One initializer for each kind of weight of a tower; biases start at zero."""

    qkv: Initializer
    out: Initializer
    fc1: Initializer
    fc2: Initializer
    head: Initializer
    token: Initializer
    image_posemb: Initializer
    text_posemb: Initializer
    cls: Initializer


def initializers(style: str, *, width: int, depth: int) -> Initializers:
    """The initializers of a tower.

    "jax" is what big_vision trains SigLIP from: Xavier-uniform kernels (query, key and value each as its own
    matrix, though they are stored fused) and positions of standard deviation `width**-0.5`. "clip" is the table of
    the CLIP paper's code, section 2.5: standard deviations that shrink with depth on the way into the residual stream;
    open_clip leaves vision blocks to its framework's defaults, here they get the same table. "gpt" is what language
    models start from: standard deviation 0.02, on the way into the residual stream divided by the square root of the
    number of branches (Radford et al. 2019, section 2.3).
    """
    if style == "gpt":
        residual = normal(0.02 * (2 * depth) ** -0.5)
        others = ("qkv", "fc1", "head", "token", "image_posemb", "text_posemb", "cls")
        return Initializers(out=residual, fc2=residual, **dict.fromkeys(others, normal(0.02)))
    if style == "clip":
        residual = normal(width**-0.5 * (2 * depth) ** -0.5)
        return Initializers(
            qkv=normal(width**-0.5),
            out=residual,
            fc1=normal((2 * width) ** -0.5),
            fc2=residual,
            head=normal(width**-0.5),
            token=normal(0.02),
            image_posemb=normal(width**-0.5),
            text_posemb=normal(0.01),
            cls=normal(width**-0.5),
        )
    return Initializers(
        qkv=variance_scaling(1.0, "fan_in", "uniform"),  # of [D, 3D]: the range of Xavier-uniform on [D, D]
        out=xavier_uniform(),
        fc1=xavier_uniform(),
        fc2=xavier_uniform(),
        head=lecun_normal(),
        token=normal(width**-0.5),
        image_posemb=normal(width**-0.5),
        text_posemb=normal(width**-0.5),
        cls=zeros,
    )
