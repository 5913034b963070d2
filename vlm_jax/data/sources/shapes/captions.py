"""Sentences that are true of a scene. The longest has 57 letters, or 75 where it names a word."""

from __future__ import annotations

import numpy as np

from vlm_jax.data.sources.shapes.scene import Object, Scene, relations


def captions(scene: Scene, rng: np.random.Generator, *, relations: bool = True) -> list[str]:
    """Five captions; the first one names every object, and one drawn uniformly is about attributes two times in five.

    Without `relations` the first one comes in place of those of two objects.

    Captions without colour are what makes small models look at the shape: otherwise colour alone explains
    most of a batch, and shape stays at chance for long.
    """
    objects = scene.objects
    named = _listing(objects, "{o.colour} {o.shape}")
    if len(objects) == 1:
        # Twice, since this is the form of zero-shot prompts.
        full = [named, named, _listing(objects, "{o.size} {o.colour} {o.shape}")]
    else:
        two = [_relation(objects, rng) if relations else "" for _ in range(2)]
        full = [named, *(caption or named for caption in two)]
    attributes = [_listing(objects, "{o.shape}"), _listing(objects, "{o.size} {o.shape}")]
    if scene.word:
        full = [f"{caption} and the word {scene.word}" for caption in full]
    return full + attributes


def description(scene: Scene) -> str:
    """All objects, from left to right, with what is to be known of each but its place."""
    return _listing(scene.objects, "{o.size} {o.colour} {o.shape}")


def _listing(objects: tuple[Object, ...], form: str) -> str:
    *first, last = ["a " + form.format(o=o) for o in objects]
    if not first:
        return f"a picture of {last}"
    return f"{', '.join(first)} and {last}"


def _relation(objects: tuple[Object, ...], rng: np.random.Generator) -> str:
    """A true relation of two of the objects, "" where neither axis tells them apart."""
    i, j = rng.choice(len(objects), 2, replace=False)
    held = relations(objects[i], objects[j])
    if not held:
        return ""
    return f"a {objects[i].name} {held[rng.integers(len(held))]} a {objects[j].name}"
