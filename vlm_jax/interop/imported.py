"""What reading a foreign model gives: first where its arrays are and what they are called, then the arrays."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from vlm_jax import config as configs
from vlm_jax import tree
from vlm_jax.errors import UserError
from vlm_jax.interop import table as tables
from vlm_jax.interop.table import Table
from vlm_jax.interop.tensors import Tensors

RGB = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Imported:
    """A model of another library as this one's.

    Attributes:
      family: "siglip", "siglip2_naflex", "clip", "vit", "dinov2", "vision-encoder-decoder", "open_clip", "coca",
        "llama", "mistral", "qwen2", "qwen3", "chameleon", "llava", "llava_next", "fuyu", "big_vision" or "vlm_jax".
      model: a bound node, every value set, that builds a `TwoTower`, a `Captioner`, a `LanguageModel`, a `Llava`, or a
        `ViT` where there are images alone.
      params: nested dicts of f32 arrays under per-layer names, those of the model's `init`.
      image: a bound node of `data.image.ImageTransform`, as the source's preprocessor says; None for text alone.
      image_mean, image_std: of pixels in [0, 1].
      text: a bound node of `data.text.Text`; None for images alone.
      tokenizer: what the config key `tokenizer` takes; None where the source has none.
      source: where it came from, for messages.
      conversations: a bound node of `data.conversations.Conversations`, of models that answer prompts; see `chats`.
      sampling: a bound node of `generate.Sampling`, with the tokens that end what the model writes.
      begin_id: the token that captions begin with, where it is not the tokenizer's begin token.
    """

    family: str
    model: ConfigDict
    params: dict
    image: ConfigDict | None
    text: ConfigDict | None
    tokenizer: str | None
    source: str
    image_mean: RGB = (0.5, 0.5, 0.5)
    image_std: RGB = (0.5, 0.5, 0.5)
    conversations: ConfigDict | None = None
    sampling: ConfigDict | None = None
    begin_id: int | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """A foreign model before its arrays are read; `table` and `ignored` are those of `table.load`."""

    family: str
    model: ConfigDict
    table: Table
    tensors: Tensors
    ignored: tuple[str, ...] = ()

    def params(self) -> dict:
        """Nested dicts of f32 arrays. Raises UserError where the tensors are not the model's."""
        try:
            model = configs.build(self.model)
        except UserError as error:
            raise UserError(f"{self.tensors.where}: its config describes no model: {error}") from error
        return tree.unflatten(tables.load(self.table, template(model), self.tensors, self.ignored))


def template(model: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters of a `TwoTower` or a tower, per layer."""
    params = jax.eval_shape(model.init, jax.random.key(0))
    params = params["params"] if "params" in params else params
    return {name: leaf.shape for name, leaf in tree.flatten(tree.unstack(params, model.stacks)).items()}


def complete(node: ConfigDict) -> ConfigDict:
    """The node with every default written out."""
    return ConfigDict(configs.fill(node), type_safe=False)


def read_json(path: Path) -> dict:
    """A JSON file that holds a dict. Raises UserError."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path.parent} lacks {path.name}.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no JSON: {str(error).splitlines()[0]}.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is no JSON object.")
    return value


class Fields:
    """A part of a foreign config: a value that it lacks is the format's own default, as its library fills it in."""

    def __init__(self, values: Mapping[str, Any] | None, defaults: Mapping[str, Any], where: str):
        self._values, self._defaults, self._where = dict(values or {}), defaults, where

    def __getitem__(self, key: str) -> Any:
        value = self._values.get(key)
        if value is None:
            value = self._defaults.get(key)
        if value is None:
            raise UserError(f"{self._where} lacks {key}.")
        return value

    def get(self, key: str) -> Any:
        return self._values.get(key, self._defaults.get(key))

    def choose(self, key: str, choices: Mapping[str, str]) -> str:
        """The value by our name for it. Raises UserError for one that we have no name for."""
        value = self[key]
        if value not in choices:
            raise UserError(f"{self._where}: {key}={value!r} is not supported; known are {', '.join(choices)}.")
        return choices[value]

    def whole(self, key: str) -> int:
        """A positive number, also one that is given for each of two sides. Raises UserError."""
        value = self[key]
        sides = value if isinstance(value, (list, tuple)) else [value]
        if len(set(sides)) != 1 or not isinstance(sides[0], int) or sides[0] < 1:
            raise UserError(f"{self._where}: {key}={value!r} is not supported; wanted is one positive whole number.")
        return sides[0]

    def require(self, **values: Any) -> None:
        """Raises UserError unless these keys have these values."""
        for key, value in values.items():
            if self.get(key) != value:
                raise UserError(f"{self._where}: {key}={self.get(key)!r} is not supported; only {value!r} is.")
