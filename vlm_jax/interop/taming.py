"""VQGANs by the names of taming-transformers, which are those of Chameleon's tokenizer too.

Their decoders give pixels in [-1, 1], and ours in [0, 1]: the last convolution takes the difference, both ways.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vlm_jax import tree
from vlm_jax.errors import UserError
from vlm_jax.interop import table as tables
from vlm_jax.interop.table import OIHW, Layout, Table, conv, leaf, norm, within
from vlm_jax.interop.tensors import Tensors
from vlm_jax.models.autoencoder import Autoencoder, Variables
from vlm_jax.models.bottlenecks.vq import VectorQuantiser
from vlm_jax.models.codecs import VqganDecoder, VqganEncoder

CODEBOOK = "quantize.embedding.weight"
IGNORED = (r"loss\..*",)  # discriminator and perceptual network of a run
ONE_BY_ONE = Layout(lambda x: x.T[:, :, None, None], lambda x, shape: x[:, :, 0, 0].T)
PIXELS = Layout(lambda x: 2 * OIHW.write(x), lambda x, shape: OIHW.read(x, shape) / 2)
LEVELS = Layout(lambda x: 2 * x - 1, lambda x, shape: (x + 1) / 2)


def table(model: Autoencoder) -> Table:
    """Names of the parameters; the codebook is no parameter here, see `read` and `write`."""
    _check(model)
    return (
        _places("bottleneck/in", "quant_conv")
        + _places("bottleneck/out", "post_quant_conv")
        + within("encoder/", "encoder.", _network(model.encoder, model.encoder.blocks, "down"))
        + within("decoder/", "decoder.", _network(model.decoder, model.decoder.blocks + 1, "up"))
    )


def read(model: Autoencoder, tensors: Tensors) -> Variables:
    """The variables from their arrays. Without a decoder, as transformers has Chameleon's, there is none here either:
    the model then encodes alone.

    Raises:
      UserError: tensors are missing, of another shape, or not used; or no model of theirs is this one.
    """
    rules = table(model)
    wanted, held = (model.bottleneck.size, model.bottleneck.dim), tensors.shapes.get(CODEBOOK)
    if held != wanted:
        what = "is missing" if held is None else f"is {list(held)}"
        raise UserError(f"{tensors.where}: its codebook {CODEBOOK} {what}, the model's is {list(wanted)}.")
    names = {name: leaf.shape for name, leaf in tree.flatten(_shapes(model)).items()}
    if not any(name.startswith("decoder.") for name in tensors.shapes):
        names = {name: shape for name, shape in names.items() if not name.startswith("decoder/")}
    params = tables.load(rules, names, tensors, (*IGNORED, re.escape(CODEBOOK)))
    embedding = tensors.read(CODEBOOK)[None]
    state = {"embedding": embedding, "count": np.ones(embedding.shape[:2], np.float32), "sum": embedding}
    return {"params": tree.unflatten(params), "state": {**state, "started": np.ones((), bool)}}


def write(model: Autoencoder, variables: Variables) -> dict[str, np.ndarray]:
    """Their arrays by name. Raises UserError where no model of theirs is this one."""
    rules = table(model)
    params = {name: np.asarray(value) for name, value in tree.flatten(variables["params"]).items()}
    return {**tables.export(rules, params), CODEBOOK: np.asarray(variables["state"]["embedding"])[0]}


def _shapes(model: Autoencoder) -> Mapping[str, Any]:
    return jax.eval_shape(model.init, jax.random.key(0))["params"]


def _check(model: Autoencoder) -> None:
    kinds = {"encoder": VqganEncoder, "bottleneck": VectorQuantiser, "decoder": VqganDecoder}
    for part, kind in kinds.items():
        if not isinstance(getattr(model, part), kind):
            wanted = " and ".join(kind.__name__ for kind in kinds.values())
            raise UserError(f"taming-transformers has {wanted}; this model's {part} is {getattr(model, part)!r}.")
    if model.bottleneck.quantisers > 1 or model.bottleneck.cosine or model.decoder.channels != 3:
        raise UserError(
            "taming-transformers has quantisers=1, cosine=False and decoder.channels=3; this model has not."
        )


def _places(ours: str, theirs: str) -> Table:
    """A linear map of each place, of theirs a convolution of 1 x 1."""
    return leaf(f"{ours}/kernel", f"{theirs}.weight", ONE_BY_ONE) + leaf(f"{ours}/bias", f"{theirs}.bias")


def _block(ours: str, theirs: str) -> Table:
    found = conv(f"{ours}/shortcut", f"{theirs}.nin_shortcut")
    for number in (1, 2):
        found += norm(f"{ours}/norm{number}", f"{theirs}.norm{number}")
        found += conv(f"{ours}/conv{number}", f"{theirs}.conv{number}")
    return found


def _attention(ours: str, theirs: str) -> Table:
    found = norm(f"{ours}/norm", f"{theirs}.norm")
    for part, named in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "proj_out")):
        found += conv(f"{ours}/{part}", f"{theirs}.{named}")
    return found


def _network(network: VqganEncoder | VqganDecoder, blocks: int, way: str) -> Table:
    """An encoder ("down") or a decoder ("up")."""
    found = conv("conv_in", "conv_in") + _block("mid/block_1", "mid.block_1") + _block("mid/block_2", "mid.block_2")
    found += _attention("mid/attn_1", "mid.attn_1") + norm("norm_out", "norm_out")
    if way == "down":
        found += conv("conv_out", "conv_out")
    else:
        found += leaf("conv_out/kernel", "conv_out.weight", PIXELS) + leaf("conv_out/bias", "conv_out.bias", LEVELS)
    for level in range(len(network.widths)):
        ours, theirs = f"{way}_{level}", f"{way}.{level}"
        found += conv(f"{way}sample_{level}", f"{theirs}.{way}sample.conv")
        for i in range(blocks):
            found += _block(f"{ours}/block_{i}", f"{theirs}.block.{i}")
            found += _attention(f"{ours}/attn_{i}", f"{theirs}.attn.{i}")
    return found
