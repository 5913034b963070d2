"""Models that embed images and texts, compare them, and classify."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32

from vlm_jax import mesh as meshes
from vlm_jax import tree
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError
from vlm_jax.evaluate import cards
from vlm_jax.evaluate.calibration import softmax
from vlm_jax.evaluate.cards import Card
from vlm_jax.library.batches import Batches, Images, listed, read
from vlm_jax.models.two_tower import TwoTower, normalize, unit_norm
from vlm_jax.models.vit import ViT
from vlm_jax.nn import shard
from vlm_jax.tasks.contrastive import Contrastive

Texts = Any  # a string or several, or token ids [n, length]
TEMPLATES = ("a photo of a {}.",)


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
        return self._embed(self.predict["image_embedding"], listed(images), self._read)

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
        """`function` of what `prepare` makes of the items, in batches."""
        if not len(items):
            return np.zeros((0, self.dim), np.float32)
        return self._batches.run(lambda batch, start: function(batch), items, prepare)

    @property
    def _batches(self) -> Batches:
        return Batches(self.mesh, self.batch_size)

    def _read(self, pictures: Sequence) -> np.ndarray | dict[str, np.ndarray]:
        return read(self.image, pictures)

    def _number(self, name: str) -> float:
        return float(meshes.gather(getattr(self.network, name)(self.variables), self.mesh))


def _embedded(value: Any, dim: int) -> bool:
    """Whether it is what `encode_image` or `encode_text` returned."""
    return (
        hasattr(value, "dtype")
        and value.ndim == 2
        and value.shape[1] == dim
        and np.issubdtype(value.dtype, np.floating)
    )


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
