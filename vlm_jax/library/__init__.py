"""Models to be used: `vlm_jax.load(PATH)` embeds images and texts, compares and classifies, or writes."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax

from vlm_jax import interop, tree
from vlm_jax import mesh as meshes
from vlm_jax.data.chat_template import Template
from vlm_jax.errors import UserError
from vlm_jax.library.autoencoding import AutoencoderModel
from vlm_jax.library.captions import CaptionModel, writes_captions
from vlm_jax.library.conversing import ConversationModel, conversing
from vlm_jax.library.found import foreign, of_run
from vlm_jax.library.fused import FusedModel
from vlm_jax.library.model import Model
from vlm_jax.models.autoencoder import Autoencoder
from vlm_jax.models.chameleon import Chameleon
from vlm_jax.models.multimodal import MultimodalDecoder

__all__ = ["AutoencoderModel", "CaptionModel", "ConversationModel", "FusedModel", "Model", "load"]


def load(
    path: str | os.PathLike,
    weights: Literal["params", "ema"] = "params",
    *,
    step: int | None = None,
    tokenizer: str | None = None,
    template: str | Template | None = None,
    devices: Sequence[Any] | None = None,
    layout: meshes.Layout | None = None,
    batch_size: int = 64,
) -> Model | CaptionModel | ConversationModel | AutoencoderModel | FusedModel:
    """The model of a workdir, of an export, or of a folder or file of another library (see `vlm_jax.interop.read`).

    What it is depends on what the path holds: a `Model` embeds; a `CaptionModel` (CoCa, captioners) also writes what
    images show; a `ConversationModel` (language models, LLaVA, Fuyu, EVE) answers prompts; an `AutoencoderModel` turns
    images into tokens and back; a `FusedModel` (Chameleon) writes about images and draws images of captions.

    Args:
      path: a workdir, an export, a Hugging Face or open_clip folder, big_vision's `.npz`, or `hf:ORG/NAME`.
      weights: of a workdir: the parameters, or their moving average.
      step: of a workdir: the checkpoint; the last good one unless given.
      tokenizer: the file, where the weights came without it (see `vlm_jax.data.tokenizers.load`).
      template: of a model that answers: the chat template, in place of the run's or the one that was guessed from
        another library's files (see `vlm_jax.interop.chats`).
      devices: all of them unless given, each with a copy of the model.
      layout: of the mesh over the devices; with `fsdp` or `tensor` the parameters are split over it.
      batch_size: images, texts or prompts that are taken at a time, at most; it changes the speed and never the
        numbers, but for what is drawn at a temperature.

    Raises:
      UserError: in one line; nothing is half-loaded.
    """
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} must be at least 1.")
    found = foreign(path) if interop.is_foreign(path) else of_run(Path(path), weights, step)
    text, reason = found.text, found.reason
    if text is not None and tokenizer is not None:
        text = dataclasses.replace(text, tokenizer=tokenizer)
    elif text is not None and text.tokenizer == "":
        text, reason = None, f"{path} came without its tokenizer; give load(PATH, tokenizer=FILE), or token ids."
    fused = isinstance(found.network, Chameleon)
    converses = isinstance(found.network, MultimodalDecoder) and not fused
    if fused and found.task is None:
        raise UserError(f"{path}: exports hold no codebooks of images and no vocabulary; give the workdir of the run.")
    if template is not None and not converses:
        raise UserError(f"template={template!r}: {path} holds no model that answers prompts.")
    network, params, extra = found.network, found.params, {}
    if converses:
        network, params, extra = conversing(found, text, template, str(path))
    layout = layout or meshes.Layout()
    mesh = layout.make(jax.devices() if devices is None else devices)
    params = tree.stack(params, network.stacks)
    params = jax.device_put(params, meshes.shardings(params, layout, mesh, network.stacks))
    if fused or isinstance(network, Autoencoder):
        variables = {"params": params, "state": jax.device_put(found.state, meshes.replicated(mesh))}
        own = {"source": str(path), "step": found.step, "image": found.image, "mesh": mesh, "batch_size": batch_size}
        kind = functools.partial(FusedModel, text=text) if fused else AutoencoderModel
        return kind(task=found.task, variables=variables, **own)
    captions = writes_captions(network)
    if captions:
        extra = {"sampling": found.sampling, "begin_id": found.begin_id}
    if not converses:
        extra["no_text"] = reason
    kind = ConversationModel if converses else CaptionModel if captions else Model
    return kind(
        source=str(path),
        family=found.family,
        step=found.step,
        network=network,
        variables={"params": params},
        image=found.image,
        image_mean=found.mean,
        image_std=found.std,
        text=text,
        mesh=mesh,
        batch_size=batch_size,
        **extra,
    )
