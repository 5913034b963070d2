"""Workdirs of small models that write, with the parameters that they begin with, moved a little."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from vlm_jax import config as configs
from vlm_jax.checkpoint import Store
from vlm_jax.interop import ours
from vlm_jax.overrides import override

DECODER = {"width": "32", "depth": "2", "mlp_dim": "48", "num_heads": "4", "num_kv_heads": "2", "length": "128"}
TOWER = {"width": "24", "depth": "1", "mlp_dim": "32", "num_heads": "2", "stem_channels": "()"}
CONVERSING = {f"task.model.decoder.{k}": v for k, v in DECODER.items()} | {"tokenizer": "bytes", "text.length": "104"}
ROOMY = {"task.model.decoder.length": "328", "text.length": "304", "task.length": "304"}
LLAVA = {f"task.model.image.{k}": v for k, v in TOWER.items()}
EVE = {f"task.model.teacher.image.{k}": v for k, v in TOWER.items()} | {"task.model.width": "16"}


def workdir(folder: Path, recipe: str, *changes: dict, **nodes) -> Path:
    """One of a recipe; `nodes` take the places of parts of the task, and of `conversations`."""
    config = configs.load(recipe)
    for name, node in nodes.items():
        if name == "conversations":
            config.conversations = node
        else:
            config.task[name] = node
    return written(folder, config, *changes)


def written(folder: Path, config, *changes: dict) -> Path:
    """One of a config."""
    config.stages = {}
    for change in changes:
        for key, value in change.items():
            override(config, key, value)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(configs.to_json(config))
    model = configs.build(ours.open_run(folder).model)
    variables = model.init(jax.random.key(0))
    noise = lambda x: x + 0.2 * np.random.default_rng(x.size).normal(size=x.shape).astype(np.float32)
    with Store(folder, stacks=model.stacks) as store:
        store.save(3, {"params": jax.tree.map(noise, variables["params"])}, {"config": configs.plain(config)})
        store.wait()
    return folder


def conversing(folder: Path, kind: str, *changes: dict) -> Path:
    """LLaVA, at one size or in "tiles", Fuyu, EVE with its teacher, a language model of conversations ("chat") or of
    documents ("documents")."""
    if kind == "llava":
        return workdir(folder, "llava_tiny", CONVERSING, LLAVA)
    if kind == "tiles":
        recipe = configs.load("llava_tiny")
        recipe.task.model.tiles = 5
        recipe.conversations.images = configs.bind("data.conversation_images.TiledImages", side=4)
        return written(folder, recipe, CONVERSING, LLAVA, ROOMY, *changes)
    if kind == "fuyu":
        return workdir(folder, "fuyu_tiny", CONVERSING)
    if kind == "eve":
        return workdir(folder, "eve_tiny", CONVERSING, EVE)
    recipe = configs.load("llava_tiny")
    model = configs.bind("models.multimodal.TextDecoder", decoder=recipe.task.model.decoder)
    plain = None if kind == "documents" else configs.bind("data.conversations.Conversations", images=None)
    return workdir(folder, "llava_tiny", CONVERSING, model=model, conversations=plain)
