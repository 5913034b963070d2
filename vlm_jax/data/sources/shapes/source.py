"""`Shapes`: images, captions and exact ground truth out of nothing but (seed, split, index)."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator

import numpy as np

from vlm_jax.data.sources.shapes.captions import captions
from vlm_jax.data.sources.shapes.draw import render
from vlm_jax.data.sources.shapes.questions import Question, questions
from vlm_jax.data.sources.shapes.scene import CLASS_NAMES, HELD_OUT, WORDS, Scene, draw_scene
from vlm_jax.errors import UserError, closest

SPLITS = ("train", "val", "test")
# Probabilities of one, two and three objects. Scenes of one object teach what the names mean: they are oversampled.
SCENES = {"mixed": (0.6, 0.2, 0.2), "uniform": (1 / 3, 1 / 3, 1 / 3), "single": (1, 0, 0), "several": (0, 0.5, 0.5)}
PAIRS = {
    "seen": tuple(k for k, name in enumerate(CLASS_NAMES) if name not in HELD_OUT),
    "held_out": tuple(k for k, name in enumerate(CLASS_NAMES) if name in HELD_OUT),
    "all": tuple(range(len(CLASS_NAMES))),
}
_SCENE, _CAPTIONS, _QUESTIONS, _ORDER = range(4)  # streams of random numbers, so that one does not disturb the other
_VERSION = 1  # part of the fingerprint: raise it whenever the same index gives another record


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Scenes of one to three coloured shapes: 8 colours x 6 shapes x 2 sizes, with captions that are true of them.

    It needs no file and gives exact ground truth, so a run can be judged on any machine. Eight colour x shape pairs
    never occur in training, in images or captions: whether they are recognised shows that colour and shape were
    learnt apart. Score them against all 48 classes; among themselves their colours alone tell them apart.

    Attributes:
      size: number of examples.
      image_size: side of the images, in pixels.
      split: "train" | "val" | "test"; no scene is in two of them.
      scenes: "mixed" (1-3 objects, single ones oversampled) | "uniform" (1-3) | "single" | "several" (2-3).
      pairs: "seen" | "held_out" | "all": the colour x shape pairs that objects are drawn from; "seen" in training.
      relations: captions of several objects say how two of them stand to one another, two times in five; without, they
        all list the objects from left to right.
      words: fraction of the scenes with a word written below the objects; legible from 64 pixels on.
      seed: of everything that is random.
    """

    size: int = 60_000
    image_size: int = 32
    split: str = "train"
    scenes: str = "mixed"
    pairs: str = "seen"
    relations: bool = True
    words: float = 0.0
    seed: int = 0

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises: UserError for a value that is none of the listed ones, or held-out pairs in training."""
        for field, choices in (("split", SPLITS), ("scenes", SCENES), ("pairs", PAIRS)):
            if (value := getattr(self, field)) not in choices:
                raise UserError(f"Shapes.{field}={value!r}: {closest(str(value), choices)}")
        if self.split == "train" and self.pairs != "seen":
            raise UserError(f"Shapes.pairs={self.pairs!r} in training: held-out pairs are for split='val' or 'test'.")
        if self.size < 1 or self.image_size < 8 or self.seed < 0 or not 0 <= self.words <= 1:
            raise UserError(
                f"Shapes(size={self.size}, image_size={self.image_size}, seed={self.seed}, words={self.words}): "
                "wanted are size >= 1, image_size >= 8, seed >= 0 and 0 <= words <= 1."
            )

    @property
    def name(self) -> str:
        return f"shapes/{self.split}"

    @property
    def class_names(self) -> tuple[str, ...]:
        return CLASS_NAMES

    @functools.cached_property
    def fingerprint(self) -> str:
        content = repr((_VERSION, self))
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        """`image` uint8 [image_size, image_size, 3], `text` five captions, `label` class of the only object or -1."""
        scene = self.scene(index)
        return {
            "image": render(scene, self.image_size),
            "text": self._captions(index),
            "label": scene.objects[0].label if len(scene.objects) == 1 else -1,
        }

    def _captions(self, index: int) -> list[str]:
        return captions(self.scene(index), self._rng(_CAPTIONS, index), relations=self.relations)

    def scene(self, index: int) -> Scene:
        """Everything that is in image `index`, without drawing it."""
        return _scene(self, index)

    def objects(self, index: int) -> list[dict]:
        """Objects of image `index`, left to right: `label`, `name`, `colour`, `shape`, `size`, `box`.

        The box is [x0, y0, x1, y1] in pixels, a float; pixel column k spans [k, k + 1].
        """
        return [
            {
                "label": o.label,
                "name": o.name,
                "colour": o.colour,
                "shape": o.shape,
                "size": o.size,
                "box": [self.image_size * edge for edge in o.box],
            }
            for o in self.scene(index).objects
        ]

    def regions(self, index: int) -> list[tuple[str, tuple[float, float, float, float]]]:
        """Names of the objects of image `index` and their boxes, [x0, y0, x1, y1] as fractions of the side."""
        return [(o.name, o.box) for o in self.scene(index).objects]

    def questions(self, index: int) -> list[Question]:
        """Questions with one-word answers about image `index`: (question, answer, type) each."""
        return questions(self.scene(index), self._rng(_QUESTIONS, index))

    def shuffled_questions(self, index: int) -> list[Question]:
        """Those of `questions`, in an order drawn at random."""
        asked = self.questions(index)
        return [asked[k] for k in self._rng(_ORDER, index).permutation(len(asked))]

    def captions(self, limit: int | None = None) -> Iterator[str]:
        """The captions of the first scenes, at most `limit`, to train a tokenizer on."""
        given = 0
        for index in range(self.size):
            for caption in self._captions(index):
                if given == limit:
                    return
                given += 1
                yield caption

    def _rng(self, stream: int, index: int) -> np.random.Generator:
        if not 0 <= index < self.size:
            raise IndexError(f"{self.name} has {self.size} examples, asked for number {index}.")
        key = np.array([self.seed, SPLITS.index(self.split)], np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, stream, index], np.uint64)))


@functools.lru_cache(maxsize=64)  # a record asks for its scene more than once
def _scene(shapes: Shapes, index: int) -> Scene:
    rng = shapes._rng(_SCENE, index)
    count = 1 + int(np.searchsorted(np.cumsum(SCENES[shapes.scenes][:2]), rng.random(), side="right"))
    word = WORDS[rng.integers(len(WORDS))] if rng.random() < shapes.words else ""
    return draw_scene(rng, count, PAIRS[shapes.pairs], word)
