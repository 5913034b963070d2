"""Models as folders that other libraries load, written whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vlm_jax import tree
from vlm_jax.data.conversations import Conversations
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError
from vlm_jax.interop import described, open_clip, open_clip_coca, processing, table, tokenizer_json
from vlm_jax.interop.imported import RGB
from vlm_jax.models.captioner import Captioner
from vlm_jax.models.chameleon import Chameleon
from vlm_jax.models.coca import CoCa
from vlm_jax.models.llava import Llava
from vlm_jax.models.multimodal import MultimodalDecoder, TextDecoder
from vlm_jax.models.siglip2 import SigLIP2
from vlm_jax.models.two_tower import TwoTower
from vlm_jax.models.vit import ViT


@dataclasses.dataclass(frozen=True)
class Folder:
    """Files by name, and arrays of the one that holds the weights; `notes` say what they cannot express."""

    files: dict[str, bytes]
    weights: str
    arrays: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()


def to_hugging_face(
    model: TwoTower | ViT | Captioner | MultimodalDecoder,
    params: Mapping[str, Any],
    image: ImageTransform,
    text: Text | None,
    mean: RGB,
    std: RGB,
    conversations: Conversations | None = None,
) -> Folder:
    """What `transformers.AutoModel` and `AutoProcessor` load; of decoders `AutoModelForCausalLM` and `AutoTokenizer`,
    of LLaVA `AutoModelForImageTextToText`.

    Args:
      conversations: how a decoder's prompts were written, which says what ends its answers.

    Raises:
      UserError: no class of transformers is this model.
    """
    model, params = _bare(model, params)
    if isinstance(model, MultimodalDecoder):
        return _decoder(model, params, image, text, mean, std, conversations)
    config, names = described.describe(model, naflex=image.resize == "naflex")
    files = {
        "config.json": _json({**config, "dtype": "float32"}),
        "preprocessor_config.json": _json(processing.to_hugging_face(image, mean, std, config["model_type"])),
    }
    notes: tuple[str, ...] = ()
    if text is not None:
        written = tokenizer_json.write(text)
        files |= written.files
        notes = written.notes
    arrays = table.export(names, _flat(params))
    if config["model_type"] == "dinov2_with_registers":  # which has one that nothing here uses
        arrays["embeddings.mask_token"] = np.zeros((1, model.dim), np.float32)
    return Folder(files, "model.safetensors", arrays, notes + _differences(image, "transformers"))


def _decoder(
    model: MultimodalDecoder,
    params: Mapping[str, Any],
    image: ImageTransform,
    text: Text | None,
    mean: RGB,
    std: RGB,
    conversations: Conversations | None,
) -> Folder:
    """Of a language model, LLaVA or Fuyu. No token is added: the one at places of images is the unknown one."""
    ids = {f"{name}_token_id": getattr(text and text.model, f"{name}_id", None) for name in ("bos", "eos", "pad")}
    unknown = getattr(text and text.model, "unk_id", None)
    if conversations is not None and text is not None:
        ids["eos_token_id"] = conversations.chat(text).end_id
    grids = getattr(conversations and conversations.images, "grids", ())
    config, names = described.describe(model, image_id=unknown or 0, grids=grids)
    config |= ids
    if "text_config" in config:
        config["text_config"] |= ids
    files = {"config.json": _json({**config, "dtype": "float32"}), "generation_config.json": _json(ids)}
    notes: tuple[str, ...] = ()
    if text is not None:
        written = tokenizer_json.write(dataclasses.replace(text, eos="none"))
        files, notes = files | written.files, written.notes
    if conversations is not None:
        name = conversations.template if isinstance(conversations.template, str) else "of the run"
        notes += (f"the chat template {name!r} is not written: prompts are to be written as it has them",)
    if isinstance(model, Llava):
        pixels = processing.to_hugging_face(image, mean, std, config["model_type"], grids)
        files["preprocessor_config.json"] = _json(pixels)
        places = f"{model.image_tokens} times the token {unknown or 0} stand at the place of an image"
        if grids:
            places += ", and more for its tiles, as LlavaNextProcessor has it"
            if image.fill != processing.BLACK:
                notes += (f"the padding of tiles was {image.fill}, there it is black",)
        notes += (places, *_differences(image, "transformers"))
    elif config["model_type"] == "chameleon":
        notes += ("the tokenizer of images is not written: transformers begins with random weights of its own",)
    elif config["model_type"] == "fuyu":
        notes += ("how images become patches is not written",)
    return Folder(files, "model.safetensors", table.export(names, _flat(params)), notes)


def to_open_clip(
    model: TwoTower, params: Mapping[str, Any], image: ImageTransform, text: Text | None, mean: RGB, std: RGB
) -> Folder:
    """What `open_clip.create_model_and_transforms("local-dir:FOLDER")` loads.

    Raises:
      UserError: open_clip has no such model.
    """
    model, params = _bare(model, params)
    if isinstance(model, MultimodalDecoder):
        raise UserError(f"open_clip has no model that is {type(model).__name__}.")
    library = open_clip_coca if isinstance(model, CoCa) else open_clip
    config, names = library.describe(model)
    files, notes = {}, ()
    if text is not None:
        written = tokenizer_json.write(text)
        files, notes = dict(written.files), written.notes
        config["text_cfg"] |= {"hf_tokenizer_name": "local", "tokenizer_kwargs": {"clean": "whitespace"}}
    whole = {"model_cfg": config, "preprocess_cfg": processing.to_open_clip(image, mean, std)}
    files[open_clip.CONFIG] = _json(whole)
    arrays = table.export(names, _flat(params))
    notes += open_clip.differences(model, config) + _differences(image, "open_clip")
    return Folder(files, "open_clip_model.safetensors", arrays, notes)


def _bare(model: Any, params: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """Of SigLIP 2 the towers, and of Chameleon the decoder, which are what other libraries have of them."""
    if isinstance(model, Chameleon):
        return TextDecoder(model.decoder), {"decoder": params["decoder"]}
    if not isinstance(model, SigLIP2):
        return model, params
    names = {"image", "text", "logit_scale", "logit_bias"}
    return model.towers, {name: value for name, value in params.items() if name in names}


def _differences(image: ImageTransform, library: str) -> tuple[str, ...]:
    if image.convention == library and image.decoder == "full":
        return ()
    return (f"images were prepared as {image.convention} does it, decoder={image.decoder!r}: pixels differ a little",)


def _flat(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf, np.float32) for name, leaf in tree.flatten(params).items()}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def save(folder: Folder, path: Path) -> None:
    """Writes it beside `path` and moves it there at the end. Raises UserError where something is there already."""
    try:
        from safetensors.numpy import save_file
    except ImportError:
        raise UserError("writing weights needs the package safetensors: pip install 'vlm_jax[hf]'") from None

    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} is there already; give a folder that is not.")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        for name, content in folder.files.items():
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            (part / name).write_bytes(content)
        arrays = {name: np.asarray(array, order="C") for name, array in folder.arrays.items()}
        save_file(arrays, part / folder.weights, metadata={"format": "pt"})
        part.rename(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
