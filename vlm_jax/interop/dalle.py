"""DALL-E's discrete VAE by the names of its published encoder and decoder (state dicts of the package `dall_e`).

The encoder's last convolution and the decoder's first one are the bottleneck's here. The latter's bias has no place of
its own: weights over codes sum to 1, so that it is added to the vector of each code, and written as zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vlm_jax import tree
from vlm_jax.errors import UserError
from vlm_jax.interop import table as tables
from vlm_jax.interop.table import OIHW, Layout, Table, leaf
from vlm_jax.interop.tensors import Tensors
from vlm_jax.models.autoencoder import Autoencoder, Variables
from vlm_jax.models.bottlenecks.gumbel import Gumbel
from vlm_jax.models.codecs import DalleDecoder, DalleEncoder
from vlm_jax.nn.dalle import WIDTHS

INPUT = "blocks.input.b"  # of the decoder
ROWS = Layout(lambda x: x[:, :, None, None], lambda x, shape: x[:, :, 0, 0])
COLUMNS = Layout(lambda x: x.T[:, :, None, None], lambda x, shape: x[:, :, 0, 0].T)


def read(model: Autoencoder, encoder: Tensors, decoder: Tensors) -> Variables:
    """The variables from the arrays of both networks.

    Raises:
      UserError: tensors are missing, of another shape, or not used; or the published model is not this one.
    """
    ours = _sides(model, jax.eval_shape(model.init, jax.random.key(0))["params"])
    shapes = [{name: value.shape for name, value in side.items()} for side in ours]
    params = tables.load(_encoder(model), shapes[0], encoder)
    params |= tables.load(_decoder(model), shapes[1], decoder, (INPUT.replace(".", r"\."),))
    if decoder.shapes.get(INPUT) != (model.decoder.dim,):
        raise UserError(f"{decoder.where} has no {INPUT} of {model.decoder.dim} numbers.")
    params["bottleneck/codebook"] = params["bottleneck/codebook"] + decoder.read(INPUT)
    return {"params": tree.unflatten(params), "state": {}}


def write(model: Autoencoder, variables: Variables) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The arrays of encoder and decoder by their names. Raises UserError where the published model is not this one."""
    encoder, decoder = _sides(model, jax.tree.map(np.asarray, variables["params"]))
    found = tables.export(_decoder(model), decoder)
    return tables.export(_encoder(model), encoder), {**found, INPUT: np.zeros(model.decoder.dim, np.float32)}


def _sides(model: Autoencoder, params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Our arrays of each of their networks."""
    kinds = {"encoder": DalleEncoder, "bottleneck": Gumbel, "decoder": DalleDecoder}
    for part, kind in kinds.items():
        if not isinstance(getattr(model, part), kind):
            wanted = ", ".join(kind.__name__ for kind in kinds.values())
            raise UserError(f"DALL-E's is made of {wanted}; this model's {part} is {getattr(model, part)!r}.")
    flat = tree.flatten(params)
    decoder = {name: x for name, x in flat.items() if name.startswith("decoder/") or name == "bottleneck/codebook"}
    return {name: x for name, x in flat.items() if name not in decoder}, decoder


def _encoder(model: Autoencoder) -> Table:
    found = _conv("encoder/input", "blocks.input") + _groups("encoder", model.encoder.blocks)
    found += leaf("bottleneck/head", "blocks.output.conv.w", ROWS)
    return found + leaf("bottleneck/bias", "blocks.output.conv.b")


def _decoder(model: Autoencoder) -> Table:
    found = leaf("bottleneck/codebook", "blocks.input.w", COLUMNS) + _groups("decoder", model.decoder.blocks)
    return found + _conv("decoder/output", "blocks.output.conv")


def _groups(side: str, blocks: int) -> Table:
    found: Table = ()
    for group in range(1, len(WIDTHS) + 1):
        for block in range(1, blocks + 1):
            ours, theirs = f"{side}/group_{group}/block_{block}", f"blocks.group_{group}.block_{block}"
            found += _conv(f"{ours}/id_path", f"{theirs}.id_path")
            for i in range(1, 5):
                found += _conv(f"{ours}/res_path/conv_{i}", f"{theirs}.res_path.conv_{i}")
    return found


def _conv(ours: str, theirs: str) -> Table:
    return leaf(f"{ours}/kernel", f"{theirs}.w", OIHW) + leaf(f"{ours}/bias", f"{theirs}.b")
