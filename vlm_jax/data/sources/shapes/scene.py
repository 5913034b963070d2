"""Scenes of one to three coloured shapes, and how they are drawn at random."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

# Every name starts with a consonant: prompts such as "a picture of a {}" stay grammatical.
COLOURS = {
    "red": (214, 39, 40),
    "green": (34, 139, 34),
    "blue": (31, 72, 214),
    "yellow": (242, 206, 22),
    "purple": (140, 40, 180),
    "brown": (128, 72, 24),
    "cyan": (20, 196, 214),
    "black": (16, 16, 16),
}
SIZES = {"small": 0.14, "large": 0.24}  # radius, in units of the image side
WORDS = ("ball", "bird", "book", "cake", "door", "fish", "gold", "hand", "lamp", "leaf", "milk", "moon", "rain", "rose",
         "salt", "ship", "snow", "tree", "wind", "wolf")  # fmt: skip


def _star(points: int, inner: float) -> np.ndarray:
    angle = np.arange(2 * points) * math.pi / points - math.pi / 2
    radius = np.where(np.arange(2 * points) % 2, inner, 1.0)
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


def _cross(arm: float) -> np.ndarray:
    corner = np.array([[arm, -1], [arm, -arm], [1, -arm], [1, arm]])
    turns = [corner]
    for _ in range(3):
        turns.append(turns[-1] @ np.array([[0, 1], [-1, 0]]))
    return np.concatenate(turns)


# Corners [n, 2] in units of the radius, y downwards. The scales make the six areas alike, so that area tells the size.
OUTLINES = {
    "circle": np.stack([np.cos(t := np.arange(48) * math.pi / 24), np.sin(t)], 1),
    "square": 0.88 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]),
    "triangle": np.array([[0, -1.1], [1.1, 0.9], [-1.1, 0.9]]),
    "star": 1.2 * _star(points=5, inner=0.42),
    "diamond": np.array([[0, -1.2], [0.85, 0], [0, 1.2], [-0.85, 0]]),
    "cross": 1.05 * _cross(arm=0.34),
}
CLASS_NAMES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in OUTLINES)

# One shape a colour, and shapes recur: every colour is trained with five shapes, every shape with six or seven colours.
HELD_OUT = (
    "red triangle",
    "green square",
    "blue circle",
    "yellow diamond",
    "purple cross",
    "brown square",
    "cyan triangle",
    "black star",
)

REACH = {shape: float(np.hypot(*outline.T).max()) for shape, outline in OUTLINES.items()}
BOXES = {shape: (*outline.min(0).tolist(), *outline.max(0).tolist()) for shape, outline in OUTLINES.items()}
GAP = 0.02  # between objects, and to the edge of the image
CLEAR = 0.1  # an offset of the centres below this says neither left nor right
WORD_BAND = 0.2  # height kept free for a word, at the bottom


@dataclasses.dataclass(frozen=True)
class Object:
    """A coloured shape; `x`, `y` and `box` are in units of the image side, y downwards."""

    colour: str
    shape: str
    size: str
    x: float
    y: float

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def label(self) -> int:
        return CLASS_NAMES.index(self.name)

    @property
    def box(self) -> tuple[float, float, float, float]:
        radius = SIZES[self.size]
        x0, y0, x1, y1 = BOXES[self.shape]
        return self.x + radius * x0, self.y + radius * y0, self.x + radius * x1, self.y + radius * y1


@dataclasses.dataclass(frozen=True)
class Scene:
    """Objects from left to right, all of different classes, on a grey background, over a word or none."""

    objects: tuple[Object, ...]
    background: int
    word: str = ""


def relations(a: Object, b: Object) -> list[str]:
    """What is certainly true of `a` seen from `b`; two of the four hold where they stand diagonally."""
    held = []
    if abs(a.x - b.x) > CLEAR:
        held.append("left of" if a.x < b.x else "right of")
    if abs(a.y - b.y) > CLEAR:
        held.append("above" if a.y < b.y else "below")
    return held


def draw_scene(rng: np.random.Generator, count: int, labels: Sequence[int], word: str = "") -> Scene:
    """Draws `count` objects of different classes out of `labels`, apart from one another and inside the image."""
    background = int(rng.integers(200, 256))
    shapes, colours, sizes = tuple(OUTLINES), tuple(COLOURS), tuple(SIZES)
    while True:
        chosen = rng.choice(labels, count, replace=False)
        sized = [sizes[k] for k in rng.integers(0, len(sizes), count)]
        kinds = [(colours[label // len(shapes)], shapes[label % len(shapes)]) for label in chosen]
        centres = _place(rng, [shape for _, shape in kinds], [SIZES[size] for size in sized], bool(word))
        if centres is not None:  # else these sizes hardly fit together: other objects
            objects = [Object(*kind, size, float(x), float(y)) for kind, size, (x, y) in zip(kinds, sized, centres)]
            return Scene(tuple(sorted(objects, key=lambda o: o.x)), background, word)


def _place(rng: np.random.Generator, shapes: list[str], radii: list[float], word: bool) -> np.ndarray | None:
    """Centres [n, 2] of objects that are apart and inside the image; None if some dozens of draws find none."""
    radius = np.array(radii)
    box = radius[:, None] * np.array([BOXES[shape] for shape in shapes])
    reach = radius * np.array([REACH[shape] for shape in shapes])
    low, high = GAP - box[:, :2], 1 - GAP - box[:, 2:]
    high[:, 1] -= WORD_BAND * word
    tries = 1 if len(shapes) == 1 else 48
    centres = low + (high - low) * rng.random((tries, len(shapes), 2))
    fits = np.ones(tries, bool)
    for i in range(len(shapes)):
        for j in range(i):
            a, b = centres[:, i], centres[:, j]
            circles = np.hypot(*(a - b).T) >= reach[i] + reach[j] + GAP
            ahead = (a + box[i, :2] >= b + box[j, 2:] + GAP) | (b + box[j, :2] >= a + box[i, 2:] + GAP)
            fits &= circles | ahead.any(1)
    return centres[fits.argmax()] if fits.any() else None
