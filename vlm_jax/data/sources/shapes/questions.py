"""Questions about a scene, each with its one-word answer."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np

from vlm_jax.data.sources.shapes.scene import COLOURS, OUTLINES, Scene, relations

NUMBERS = ("zero", "one", "two", "three")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
TYPES = ("count", "count_colour", "colour", "size", "shape", "exist_colour", "exist_shape", "relation")


class Question(NamedTuple):
    question: str
    answer: str
    type: str  # one of TYPES


def questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """One question of every type that has a unique answer in `scene`; yes and no come equally often."""
    objects = scene.objects
    colours, shapes = Counter(o.colour for o in objects), Counter(o.shape for o in objects)
    asked = [Question("how many objects are there?", NUMBERS[len(objects)], "count")]

    colour = _one(rng, colours) if rng.random() < 0.7 else _one(rng, COLOURS)
    asked.append(Question(f"how many {colour} objects are there?", NUMBERS[colours[colour]], "count_colour"))

    if single := [o for o in objects if shapes[o.shape] == 1]:
        o = _one(rng, single)
        asked.append(Question(f"what colour is the {o.shape}?", o.colour, "colour"))
        o = _one(rng, single)
        asked.append(Question(f"what size is the {o.shape}?", o.size, "size"))
    if single := [o for o in objects if colours[o.colour] == 1]:
        o = _one(rng, single)
        asked.append(Question(f"what shape is the {o.colour} object?", o.shape, "shape"))

    there = rng.random() < 0.5
    colour = _one(rng, [c for c in COLOURS if (c in colours) == there])
    asked.append(Question(f"is there a {colour} object?", _yes(there), "exist_colour"))
    there = rng.random() < 0.5
    shape = _one(rng, [s for s in OUTLINES if (s in shapes) == there])
    asked.append(Question(f"is there a {shape}?", _yes(there), "exist_shape"))

    if len(objects) > 1:
        a, b = (objects[k] for k in rng.choice(len(objects), 2, replace=False))
        if held := relations(a, b):
            true = rng.random() < 0.5
            relation = _one(rng, held)  # its opposite is certainly false, a diagonal neighbour would not be
            relation = relation if true else OPPOSITE[relation]
            asked.append(Question(f"is the {a.name} {relation} the {b.name}?", _yes(true), "relation"))
    return asked


def _one(rng: np.random.Generator, choices):
    choices = tuple(choices)
    return choices[rng.integers(len(choices))]


def _yes(true: bool) -> str:
    return "yes" if true else "no"
