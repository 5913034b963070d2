"""A workdir's model, or an export of it: `config.json` and `assets/` of the run beside `model.safetensors`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vlm_jax import config as configs
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError
from vlm_jax.experiment import fused
from vlm_jax.interop.imported import Imported, Source, complete, template
from vlm_jax.interop.table import leaf
from vlm_jax.interop.tensors import open_tensors

WEIGHTS = "model.safetensors"
HALVES = (0.5, 0.5, 0.5)


@dataclasses.dataclass(frozen=True)
class Run:
    """What the config of a run says of its model, late values filled in.

    Attributes:
      model: a bound node.
      image: a bound node of `data.image.ImageTransform`.
      text: a bound node of `data.text.Text`, and what it builds; None for images alone.
      conversations, sampling: bound nodes; None where the run has none.
      late: values of the config's late ones, as far as no data is needed for them.
    """

    config: ConfigDict
    model: ConfigDict
    image: ConfigDict
    text_node: ConfigDict | None
    text: Text | None
    conversations: ConfigDict | None = None
    sampling: ConfigDict | None = None
    late: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def is_export(path: Path) -> bool:
    """Whether it is a folder that `vlm_jax.export --to=safetensors` wrote."""
    return (path / WEIGHTS).is_file() and is_config(path / "config.json")


def is_config(path: Path) -> bool:
    """Whether a `config.json` is a run's, and not of another library."""
    try:
        return configs.TARGET in json.loads(path.read_text())
    except (OSError, ValueError, TypeError):
        return False


def open_run(folder: Path) -> Run:
    """The model of a workdir or an export. Raises UserError where its task has none."""
    config = configs.load(str(folder))
    model = config.get("task", {}).get("model")
    if model is None:
        raise UserError(f"{folder}: its task {config.task[configs.TARGET]} has no model to take out.")
    late: dict[str, Any] = {}
    text = None
    if config.get("text") is not None:
        text = configs.build(config.text, tokenizer=config.get("tokenizer", "bytes"))
        text = text.resolve(_lost(folder), folder / "assets")
        late = {"tokenizer": text.tokenizer, "vocab_size": text.vocab_size}
        late |= {"pad_id": text.pad_id, "eos_id": text.eos_id, "bos_id": text.bos_id}
    late |= fused(config, late)
    part = lambda node: None if node is None else complete(_filled(node, late))
    return Run(
        config=config,
        model=complete(_filled(model, late)),
        image=complete(_filled(config.image, late)),
        text_node=part(config.get("text")),
        text=text,
        conversations=part(config.get("conversations")),
        sampling=part(config.task.get("sampling")),
        late=late,
    )


def _lost(folder: Path):
    def captions(limit: int):
        raise UserError(f"{folder} has lost the tokenizer that was trained for it (assets/); bring the folder back.")

    return captions


def _filled(node: Mapping, late: Mapping[str, Any]) -> ConfigDict:
    """The tree with late values in their places."""
    out = {}
    for key in node:
        value = node[key]
        if configs.is_late(value):
            value = late[value[configs.LATE]]
        out[key] = _filled(value, late) if configs.is_node(value) else value
    return ConfigDict(out, type_safe=False)


def source(folder: Path) -> Source:
    """The model of an export, its arrays not yet read."""
    run = open_run(folder)
    names = template(configs.build(run.model))
    table = tuple(rule for name in names for rule in leaf(name, name))
    return Source("vlm_jax", run.model, table, open_tensors(folder / WEIGHTS))


def read(folder: Path, found: Source) -> Imported:
    """An export, with its preprocessing."""
    run = open_run(folder)
    return Imported(
        family=found.family,
        model=found.model,
        params=found.params(),
        image=run.image,
        text=run.text_node,
        tokenizer=None if run.text is None else run.text.tokenizer,
        source=str(folder),
        image_mean=tuple(found.model.get("image_mean", HALVES)),
        image_std=tuple(found.model.get("image_std", HALVES)),
        conversations=run.conversations,
        sampling=run.sampling,
    )
