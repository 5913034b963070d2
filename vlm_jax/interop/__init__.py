"""Weights of other libraries in and out: Hugging Face, open_clip and big_vision, by tables of names.

imported = read("path/to/siglip-base-patch16-224")
model = vlm_jax.config.build(imported.model)
embeddings, _ = model.encode_image({"params": imported.params}, images)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vlm_jax.config import bind
from vlm_jax.errors import UserError
from vlm_jax.interop import (
    big_vision,
    chats,
    encoder_decoder,
    hub,
    hugging_face,
    language,
    multimodal,
    open_clip,
    open_clip_coca,
    ours,
    processing,
    tensors,
    texts,
)
from vlm_jax.interop.imported import Imported as Imported
from vlm_jax.interop.imported import Source, read_json

OPEN_CLIP, HUGGING_FACE = "open_clip_config.json", "config.json"
LLAVA = ("llava", multimodal.NEXT)


def is_foreign(path: str | Path) -> bool:
    """Whether `read` is to be asked, and not the loader of workdirs and their checkpoints."""
    if hub.is_name(path):
        return True
    path = _folder(Path(path))
    return path.suffix == ".npz" or _kind(path) is not None


def _folder(path: Path) -> Path:
    """Of a file of weights the folder, where its config is."""
    return path.parent if path.suffix in (".safetensors", ".bin") and path.is_file() else path


def _kind(path: Path) -> str | None:
    if ours.is_export(path):
        return "vlm_jax"
    theirs = (path / HUGGING_FACE).is_file() and not ours.is_config(path / HUGGING_FACE)
    if (path / OPEN_CLIP).is_file() and not (theirs and any((path / name).is_file() for name in tensors.HUGGING_FACE)):
        return "open_clip"
    return "hugging_face" if theirs else None


def source(path: str | Path) -> Source:
    """The model and where its arrays are, which `Source.params` reads; preprocessing files are not needed.

    Args:
      path: a folder of Hugging Face, open_clip or our own export, or its file of weights; big_vision's `.npz`; or
        `hf:ORG/NAME`.

    Raises:
      UserError: it is none of these, or one that has no equal here.
    """
    path = _folder(hub.fetch(path))
    if path.suffix == ".npz":
        return big_vision.source(path)
    readers = {"open_clip": open_clip.source, "vlm_jax": ours.source, "hugging_face": hugging_face.source}
    kind = _kind(path)
    if kind is None:
        raise UserError(
            f"{path} is no folder of a model ({HUGGING_FACE} or {OPEN_CLIP} with weights), and no big_vision .npz."
        )
    if kind == "open_clip" and open_clip_coca.is_coca(path):
        return open_clip_coca.source(path)
    return readers[kind](path)


def read(path: str | Path) -> Imported:
    """A model with its arrays and its preprocessing. `path` is what `source` takes.

    Language models have no images. Theirs and LLaVA's chat template is guessed, see `chats.conversations`.

    Raises:
      UserError: in one line, also where tensors are missing, of another shape, or not used; nothing is half-read.
    """
    path = _folder(hub.fetch(path))
    found = source(path)
    if found.family == "vlm_jax":
        return ours.read(path, found)
    if found.family in language.KINDS:
        return _language_model(path, found)
    images_alone = found.model["_target"].endswith("ViT")
    words = texts.Words(None, None)
    if found.family in ("open_clip", "coca"):
        pixels, words = open_clip.processing(path, found.model)
    elif found.family == "big_vision":
        pixels, words = big_vision.processing(found.model)
    else:
        pixels = processing.from_hugging_face(path)
        if not images_alone:
            reads = found.model.get("text") or found.model.decoder
            read_words = texts.of_language_model if found.family in LLAVA else texts.from_hugging_face
            words = read_words(path, reads.length)
    if not images_alone:
        found.model.image_mean, found.model.image_std = pixels.mean, pixels.std
    return Imported(
        family=found.family,
        model=found.model,
        params=found.params(),
        image=pixels.image,
        text=words.text,
        tokenizer=words.tokenizer,
        source=str(path),
        image_mean=pixels.mean,
        image_std=pixels.std,
        **_writing(path, found),
    )


def _language_model(path: Path, found: Source) -> Imported:
    words = texts.of_language_model(path, found.model.length)
    params, writing = found.params(), _writing(path, found)
    return Imported(found.family, found.model, params, None, words.text, words.tokenizer, str(path), **writing)


def _writing(path: Path, found: Source) -> dict[str, Any]:
    """Fields of `Imported` of models that write."""
    if found.family == encoder_decoder.KIND:
        return {"begin_id": chats.begin_id(path)}
    images = None
    if found.family in LLAVA:
        images = _images(path, found.model)
    elif found.family not in language.KINDS:
        return {}
    return {"conversations": chats.conversations(path, found.family, images), "sampling": chats.sampling(path)}


def _images(path: Path, model: ConfigDict) -> ConfigDict:
    """How images of LLaVA become tokens."""
    side = model.image.image_size // model.image.patch_size
    if model.tiles is None:
        return bind("data.conversation_images.FixedImages", tokens=side**2)
    file = path / HUGGING_FACE
    grids = multimodal.tile_grids(read_json(file), model.image.image_size, str(file))
    return bind("data.conversation_images.TiledImages", tiles=model.tiles, side=side, grids=grids)
