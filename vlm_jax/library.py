"""Models to be used: `vlm_jax.load(PATH)` embeds images and texts, compares them, and classifies."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32

from vlm_jax import config as configs
from vlm_jax import interop, tree
from vlm_jax import mesh as meshes
from vlm_jax.checkpoint import load_params
from vlm_jax.data.errors import UnreadableImage
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError
from vlm_jax.evaluate import cards
from vlm_jax.evaluate.calibration import softmax
from vlm_jax.evaluate.cards import Card
from vlm_jax.interop import ours
from vlm_jax.models.two_tower import TwoTower, normalize, unit_norm
from vlm_jax.models.vit import ViT
from vlm_jax.nn import shard
from vlm_jax.tasks.contrastive import Contrastive

Images = Any  # a picture or several: `PIL.Image`, path, encoded bytes, uint8 array [h, w, 3]; or [n, h, w, 3]
Texts = Any  # a string or several, or token ids [n, length]
TEMPLATES = ("a photo of a {}.",)


def load(
    path: str | os.PathLike,
    weights: Literal["params", "ema"] = "params",
    *,
    step: int | None = None,
    tokenizer: str | None = None,
    devices: Sequence[Any] | None = None,
    layout: meshes.Layout | None = None,
    batch_size: int = 64,
) -> Model:
    """The model of a workdir, of an export, or of a folder or file of another library (see `vlm_jax.interop.read`).

    Args:
      path: a workdir, an export, a Hugging Face or open_clip folder, big_vision's `.npz`, or `hf:ORG/NAME`.
      weights: of a workdir: the parameters, or their moving average.
      step: of a workdir: the checkpoint; the last good one unless given.
      tokenizer: the file, where the weights came without it (see `vlm_jax.data.tokenizers.load`).
      devices: all of them unless given, each with a copy of the model.
      layout: of the mesh over the devices; with `fsdp` or `tensor` the parameters are split over it.
      batch_size: images or texts that are embedded at a time, at most; it changes the speed and never the numbers.

    Raises:
      UserError: in one line; nothing is half-loaded.
    """
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} must be at least 1.")
    found = _foreign(path) if interop.is_foreign(path) else _of_run(Path(path), weights, step)
    text, reason = found.text, found.reason
    if text is not None and tokenizer is not None:
        text = dataclasses.replace(text, tokenizer=tokenizer)
    elif text is not None and text.tokenizer == "":
        text, reason = None, f"{path} came without its tokenizer; give load(PATH, tokenizer=FILE), or token ids."
    layout = layout or meshes.Layout()
    mesh = layout.make(jax.devices() if devices is None else devices)
    params = tree.stack(found.params, found.network.stacks)
    params = jax.device_put(params, meshes.shardings(params, layout, mesh, found.network.stacks))
    return Model(
        source=str(path),
        family=found.family,
        step=found.step,
        network=found.network,
        variables={"params": params},
        image=found.image,
        image_mean=found.mean,
        image_std=found.std,
        text=text,
        mesh=mesh,
        batch_size=batch_size,
        no_text=reason,
    )


@dataclasses.dataclass(frozen=True)
class _Found:
    """What a path holds."""

    family: str
    step: int | None
    network: TwoTower | ViT
    params: dict
    image: ImageTransform
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    text: Text | None
    reason: str


def _foreign(path: str | os.PathLike) -> _Found:
    found = interop.read(path)
    text = None
    if found.text is not None:
        text = dataclasses.replace(configs.build(found.text), tokenizer=found.tokenizer or "")
    network, image = configs.build(found.model), configs.build(found.image)
    reason = f"{path} embeds images alone: {found.family!r} has no text tower."
    return _Found(found.family, None, network, found.params, image, found.image_mean, found.image_std, text, reason)


def _of_run(path: Path, weights: str, step: int | None) -> _Found:
    if not configs.is_workdir(str(path)):
        raise UserError(
            f"{path} is no workdir (it has no config.json), and no export, Hugging Face or open_clip folder or "
            "big_vision .npz."
        )
    run = ours.open_run(path)
    network = configs.build(run.model)
    if not isinstance(network, TwoTower | ViT):
        raise UserError(f"{path}: a {type(network).__name__} embeds neither images nor texts.")
    params, meta = load_params(path, weights, step)
    mean, std = getattr(network, "image_mean", (0.5,) * 3), getattr(network, "image_std", (0.5,) * 3)
    reason = f"{path} embeds images alone: its run had no text."
    image = configs.build(run.image)
    return _Found("vlm_jax", meta["step"], network, params, image, mean, std, run.text, reason)


class Classes(NamedTuple):
    """The likeliest class of each image, and the probability [n, classes] of each class."""

    names: list[str]
    probabilities: Float[np.ndarray, "n classes"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Model:
    """A model on its devices. Lists may have any length: they are embedded in batches of a few fixed sizes.

    Attributes:
      source: where it came from. family: whose it is (`vlm_jax.interop.Imported.family`).
      step: of the checkpoint; None for what is not from a workdir.
      network, variables: the pure functions, and what they take, on the devices.
      image, text: the preprocessing, which `encode_image` and `encode_text` apply; `text` is None without a text tower.
      mesh: of the devices.
    """

    source: str
    family: str
    step: int | None
    network: TwoTower | ViT
    variables: dict[str, Any]
    image: ImageTransform
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    text: Text | None
    mesh: Mesh
    batch_size: int
    no_text: str

    def __repr__(self) -> str:
        size = sum(leaf.size for leaf in jax.tree.leaves(self.variables))
        towers = "images and texts" if isinstance(self.network, TwoTower) else "images"
        return f"<{self.family} model of {self.source}: {size:,} parameters, {towers} to {self.dim} dimensions>"

    @property
    def params(self) -> dict[str, Any]:
        """Nested dicts of f32 numpy arrays under per-layer names, as on disk."""
        whole = jax.tree.map(lambda leaf: meshes.gather(leaf, self.mesh), self.variables["params"])
        return tree.unstack(whole, self.network.stacks)

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return self.network.dim

    @functools.cached_property
    def predict(self) -> dict[str, Callable]:
        """Jitted functions by name, as evaluators take them.

        Images are what `ImageTransform.batch` gives, or floats [n, h, w, 3] as the network sees them.
        """
        if isinstance(self.network, TwoTower):
            found = Contrastive(self.network, objective="infonce").predict(self.variables)
            if self.image.resize != "naflex":
                return found
            native = functools.partial(_native_embedding, self.network, self.mesh, self.variables)
            square = found["image_embedding"]
            return found | {"image_embedding": lambda x: native(x) if isinstance(x, Mapping) else square(x)}
        pixels = self.image_mean, self.image_std
        return {"image_embedding": functools.partial(_features, self.network, self.mesh, pixels, self.variables)}

    def protocol(self, name: str | None = None) -> tuple[Card | None, list[str]]:
        """The protocol card of that name, or that of the model's family, and where the model disagrees with it."""
        about = {"mean": self.image_mean, "std": self.image_std, "network": self.network}
        card = cards.load(name) if name else cards.find(self.family, self.image, self.text, **about)
        return card, [] if card is None else cards.check(card, self.image, self.text, **about)

    # Embedding

    def encode_image(self, images: Images, preprocessed: bool = False) -> Float[np.ndarray, "n dim"]:
        """Unit-norm embeddings.

        Args:
          images: one picture or several, of any sizes: `PIL.Image`, path, encoded bytes, or uint8 array.
          preprocessed: they are float arrays [n, h, w, 3] as the network sees them, scaled and normalised.

        Raises:
          UserError: it names the picture that cannot be read.
        """
        if preprocessed:
            array = np.asarray(images)
            if array.ndim != 4 or array.shape[-1] != 3 or not np.issubdtype(array.dtype, np.floating):
                raise UserError(
                    f"encode_image(preprocessed=True) takes floats [n, h, w, 3], not {array.dtype} {array.shape}."
                )
            return self._embed(self.predict["image_embedding"], array, lambda part: part.astype(np.float32))
        return self._embed(self.predict["image_embedding"], _listed(images), self._read)

    def encode_text(self, texts: Texts) -> Float[np.ndarray, "n dim"]:
        """Unit-norm embeddings of one string or several, or of token ids [n, length].

        Raises:
          UserError: the model has no text tower, or came without its tokenizer, or the ids are not its own.
        """
        if not isinstance(self.network, TwoTower):
            raise UserError(self.no_text)
        return self._embed(self.predict["text_embedding"], self.tokens(texts), lambda part: part)

    def tokens(self, texts: Texts) -> Int32[np.ndarray, "n length"]:
        """Rows of token ids, as the text tower takes them. Raises UserError."""
        texts = texts if isinstance(texts, str) or hasattr(texts, "dtype") else list(texts)
        if isinstance(texts, str) or all(isinstance(text, str) for text in texts):
            if self.text is None:
                raise UserError(self.no_text)
            rows = self.text(texts)
        else:
            rows = np.asarray(texts)
        vocab = self.network.text.vocab_size
        if rows.ndim != 2 or not np.issubdtype(rows.dtype, np.integer):
            raise UserError(f"encode_text takes strings, or whole numbers [n, length], not {rows.dtype} {rows.shape}.")
        if rows.shape[1] != self.network.text.length:
            raise UserError(f"token ids are [n, {self.network.text.length}] for this model, not {list(rows.shape)}.")
        if rows.size and not 0 <= rows.min() <= rows.max() < vocab:
            raise UserError(f"token ids {rows.min()} to {rows.max()}: the model knows 0 to {vocab - 1}.")
        return rows.astype(np.int32)

    # Comparing

    def similarity(
        self, images: Images, texts: Texts, probabilities: bool = False
    ) -> Float[np.ndarray, "images texts"]:
        """Logits, `scale * cosine + bias` with the model's own, of every image with every text.

        Args:
          images, texts: as for `encode_image` and `encode_text`, or what these returned.
          probabilities: instead, of each pair by itself, its sigmoid, where the model has a bias (SigLIP); else the
            softmax over the texts (CLIP).
        """
        if not isinstance(self.network, TwoTower):
            raise UserError(self.no_text)
        pictures = images if _embedded(images, self.dim) else self.encode_image(images)
        sentences = texts if _embedded(texts, self.dim) else self.encode_text(texts)
        with_bias = self.network.logit_bias_init is not None
        logits = self._number("scale") * (pictures @ sentences.T) + self._number("bias")
        if not probabilities:
            return logits
        return 1 / (1 + np.exp(-logits)) if with_bias else softmax(logits)

    def classify(self, images: Images, class_names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Classes:
        """The class whose prompts lie nearest to each image (Radford et al. 2021, section 3.1).

        Probabilities are the softmax over the classes of `scale * cosine`: of these classes, which one.

        Args:
          images: as for `encode_image`.
          class_names: at least one; they take the place of `{}` in the templates.
          templates: a class is the mean of its prompts' embeddings, made unit-norm.
        """
        names = [class_names] if isinstance(class_names, str) else list(class_names)
        classes = self.encode_classes(names, templates)
        pictures = images if _embedded(images, self.dim) else self.encode_image(images)
        probabilities = softmax(self._number("scale") * (pictures @ classes.T))
        return Classes([names[i] for i in probabilities.argmax(1)], probabilities)

    def encode_classes(
        self, class_names: Sequence[str], templates: Sequence[str] = TEMPLATES
    ) -> Float[np.ndarray, "classes dim"]:
        """The unit-norm embedding of each class. Raises UserError for templates without one `{}`."""
        templates = (templates,) if isinstance(templates, str) else tuple(templates)
        if bad := [template for template in templates if template.count("{}") != 1] or not (templates and class_names):
            what = f"templates {bad}" if bad is not True else "none given"
            raise UserError(f"{what}: wanted are class names, and templates with one {{}} each: 'a photo of a {{}}.'")
        prompts = [template.format(name) for name in class_names for template in templates]
        means = self.encode_text(prompts).reshape(len(class_names), len(templates), -1).mean(1)
        return means / np.linalg.norm(means, axis=-1, keepdims=True).clip(1e-12)

    # Batches

    def _embed(self, function: Callable, items: Sequence, prepare: Callable) -> Float[np.ndarray, "n dim"]:
        """`function` of what `prepare` makes of the items, in padded batches; shapes do not depend on their number."""
        if not len(items):
            return np.zeros((0, self.dim), np.float32)
        size = self._batch(len(items))
        mine = meshes.local_rows(self.mesh, size)
        out = []
        parts = [items[start : start + size] for start in range(0, len(items), size)]
        with ThreadPoolExecutor(1) as ahead:  # the next batch is prepared while the devices have this one
            coming = ahead.submit(prepare, parts[0])
            for part, following in itertools.zip_longest(parts, parts[1:]):
                batch = coming.result()
                if following is not None:
                    coming = ahead.submit(prepare, following)
                several = isinstance(batch, dict)
                arrays = batch if several else {"x": batch}
                pad = lambda array: np.concatenate([array, np.repeat(array[:1], size - len(array), axis=0)])
                placed = meshes.put({k: pad(v)[mine] for k, v in arrays.items()}, mine, size, self.mesh)
                out.append(meshes.gather(function(placed if several else placed["x"]), self.mesh)[: len(part)])
        return np.concatenate(out)

    def _batch(self, count: int) -> int:
        """A power of two for each device, or `batch_size`, rounded up to what the devices divide."""
        ways = meshes.batch_devices(self.mesh)
        most = -(-self.batch_size // ways)
        return ways * min(most, 1 << (-(-count // ways) - 1).bit_length())

    def _read(self, pictures: Sequence) -> np.ndarray | dict[str, np.ndarray]:
        """A batch, decoded by as many threads as there are cores."""
        seen: set[int] = set()
        for picture in pictures:
            if id(picture) in seen and hasattr(picture, "load"):
                picture.load()  # a `PIL.Image` that is given twice, and that two threads must not decode at once
            seen.add(id(picture))
        with ThreadPoolExecutor(min(len(pictures), os.cpu_count() or 1)) as pool:
            return self.image.batch(list(pool.map(self._one, pictures)))

    def _one(self, picture: Any) -> np.ndarray:
        name = picture if isinstance(picture, str | os.PathLike) else type(picture).__name__
        try:
            return self.image(_content(picture))
        except UnreadableImage as error:
            raise UserError(f"{name}: {error}.") from error

    def _number(self, name: str) -> float:
        return float(meshes.gather(getattr(self.network, name)(self.variables), self.mesh))


def _listed(images: Images) -> Sequence:
    """Several pictures, of one or several."""
    if hasattr(images, "__array__") and not hasattr(images, "mode"):  # an array, of numpy or jax, but no `PIL.Image`
        array = np.asarray(images)
        return array if array.ndim == 4 else array[None]
    return list(images) if isinstance(images, Sequence | Iterator) and not isinstance(images, str | bytes) else [images]


def _embedded(value: Any, dim: int) -> bool:
    """Whether it is what `encode_image` or `encode_text` returned."""
    return (
        hasattr(value, "dtype")
        and value.ndim == 2
        and value.shape[1] == dim
        and np.issubdtype(value.dtype, np.floating)
    )


def _content(picture: Any) -> Any:
    """What `ImageTransform` takes: the bytes of a file, anything else as it is."""
    if isinstance(picture, str | os.PathLike):
        from etils import epath  # also reads gs://

        try:
            return epath.Path(picture).read_bytes()
        except OSError as error:
            raise UserError(f"{picture} cannot be read: {error.strerror or type(error).__name__}.") from None
    return np.asarray(picture) if isinstance(picture, jax.Array) else picture


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _features(network: ViT, mesh: Mesh, pixels: tuple, variables: Mapping, image: Array) -> Float[Array, "n dim"]:
    with shard.under(mesh):
        image = shard.constrain(image, "batch", None, None, None)
        image = normalize(image, *pixels) if image.dtype == np.uint8 else image
        return unit_norm(network.apply(variables["params"], image)[0])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _native_embedding(network: TwoTower, mesh: Mesh, variables: Mapping, rows: Mapping) -> Float[Array, "n dim"]:
    with shard.under(mesh):
        return network.encode_packed_images(variables, **rows)[:, 0]
