"""What a path holds, before it is put on devices."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax

from vlm_jax import config as configs
from vlm_jax import interop
from vlm_jax.checkpoint import load_params
from vlm_jax.data.conversations import Conversations
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError
from vlm_jax.generate import Sampling
from vlm_jax.interop import ours
from vlm_jax.interop.imported import RGB
from vlm_jax.models.autoencoder import PARTS, Autoencoder
from vlm_jax.models.captioner import Captions
from vlm_jax.models.chameleon import Chameleon
from vlm_jax.models.decoder import LanguageModel
from vlm_jax.models.multimodal import MultimodalDecoder, TextDecoder
from vlm_jax.models.two_tower import TwoTower
from vlm_jax.models.vit import ViT

HALVES = (0.5, 0.5, 0.5)


@dataclasses.dataclass(frozen=True)
class Found:
    """A model and its preprocessing.

    Attributes:
      text: None where there is none, with the `reason`; its tokenizer is "" where that did not come along.
      conversations: how prompts are written; None for those that are continued as they stand, or never.
      sampling: how the run writes. begin_id: the token that captions begin with.
      task, state: of the run of an autoencoder, or of a decoder of image tokens.
    """

    family: str
    step: int | None
    network: Any
    params: dict
    image: ImageTransform
    mean: RGB
    std: RGB
    text: Text | None
    reason: str
    conversations: Conversations | None = None
    sampling: Sampling = Sampling()
    begin_id: int | None = None
    task: Any = None
    state: dict = dataclasses.field(default_factory=dict)


def foreign(path: str | os.PathLike) -> Found:
    """Of an export, or of another library's folder or file. Raises UserError."""
    found = interop.read(path)
    text = None
    if found.text is not None:
        text = dataclasses.replace(configs.build(found.text), tokenizer=found.tokenizer or "")
    network, params = configs.build(found.model), found.params
    if isinstance(network, LanguageModel):
        network, params = TextDecoder(network), {"decoder": params}
    built = lambda node, default=None: default if node is None else configs.build(node)
    begin = found.begin_id
    if begin is None and text is not None and text.tokenizer:
        begin = text.bos_id
    return Found(
        family=found.family,
        step=None,
        network=network,
        params=params,
        image=built(found.image, ImageTransform()),
        mean=found.image_mean,
        std=found.image_std,
        text=text,
        reason=f"{path} embeds images alone: {found.family!r} has no text tower.",
        conversations=built(found.conversations),
        sampling=built(found.sampling, Sampling()),
        begin_id=begin,
    )


def of_run(path: Path, weights: str, step: int | None) -> Found:
    """Of a workdir. Raises UserError."""
    if not configs.is_workdir(str(path)):
        raise UserError(
            f"{path} is no workdir (it has no config.json), and no export, Hugging Face or open_clip folder or "
            "big_vision .npz."
        )
    run = ours.open_run(path)
    network = configs.build(run.model)
    if not isinstance(network, TwoTower | ViT | Captions | MultimodalDecoder | Autoencoder):
        raise UserError(f"{path}: a {type(network).__name__} embeds neither images nor texts, and writes nothing.")
    params, meta = load_params(path, weights, step)
    task, state = None, {}
    if isinstance(network, Autoencoder | Chameleon):
        task = configs.build(run.config.task, **run.late)
        if jax.tree.leaves(jax.eval_shape(task.init, jax.random.key(0))["state"]):
            state, _ = load_params(path, "state", meta["step"])
    if isinstance(network, Autoencoder):  # to be used, without its judges
        task = dataclasses.replace(task, perceptual=None, adversary=None)
        params = {name: params[name] for name in PARTS}
    return Found(
        family="vlm_jax",
        step=meta["step"],
        network=network,
        params=params,
        image=configs.build(run.image),
        mean=getattr(network, "image_mean", HALVES),
        std=getattr(network, "image_std", HALVES),
        text=run.text,
        reason=f"{path} embeds images alone: its run had no text.",
        conversations=None if run.conversations is None else configs.build(run.conversations),
        sampling=Sampling() if run.sampling is None else configs.build(run.sampling),
        begin_id=None if run.text is None else run.text.bos_id,
        task=task,
        state=state,
    )
