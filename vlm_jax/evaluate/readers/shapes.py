"""Compositional tests, groups and several labels an image on drawn shapes, in the forms of the public sets."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar, Literal

import numpy as np

from vlm_jax.data.sources.shapes.draw import render
from vlm_jax.data.sources.shapes.questions import OPPOSITE
from vlm_jax.data.sources.shapes.scene import COLOURS, OUTLINES, Object, Scene, relations
from vlm_jax.data.sources.shapes.source import Shapes
from vlm_jax.errors import UserError
from vlm_jax.evaluate.readers.aro import order_choice
from vlm_jax.evaluate.readers.base import Choice

Pair = tuple[str, str]


def listing(objects: tuple[Object, ...], form: str = "{o.colour} {o.shape}") -> str:
    """ "a red circle and a blue square", as captions of `Shapes` have it."""
    *first, last = ["a " + form.format(o=o) for o in objects]
    return f"{', '.join(first)} and {last}"


def can_swap(scene: Scene) -> bool:
    """Whether two objects are alone, and differ in colour and in shape: exchanging colours makes other objects."""
    if len(scene.objects) != 2:
        return False
    a, b = scene.objects
    return a.colour != b.colour and a.shape != b.shape


def swapped(scene: Scene) -> Scene:
    """The scene with the colours of its two objects exchanged."""
    a, b = scene.objects
    objects = (dataclasses.replace(a, colour=b.colour), dataclasses.replace(b, colour=a.colour))
    return dataclasses.replace(scene, objects=objects)


def _swap_att(scene: Scene, rng: np.random.Generator) -> Pair | None:
    return (listing(scene.objects), listing(swapped(scene).objects)) if can_swap(scene) else None


def exchanged(scene: Scene) -> Scene:
    """The scene with its two objects in each other's places, where they take each other's size."""
    a, b = scene.objects
    names = [dict(colour=o.colour, shape=o.shape) for o in (b, a)]
    return dataclasses.replace(scene, objects=tuple(dataclasses.replace(o, **n) for o, n in zip((a, b), names)))


def _related(scene: Scene, rng: np.random.Generator) -> tuple[Object, str, Object] | None:
    a, b = scene.objects[:2]
    held = relations(a, b)
    return (a, held[rng.integers(len(held))], b) if held else None


def _swap_obj(scene: Scene, rng: np.random.Generator) -> Pair | None:
    if (found := _related(scene, rng)) is None:
        return None
    a, relation, b = found
    return f"a {a.name} {relation} a {b.name}", f"a {b.name} {relation} a {a.name}"


def _replace_rel(scene: Scene, rng: np.random.Generator) -> Pair | None:
    if (found := _related(scene, rng)) is None:
        return None
    a, relation, b = found
    return f"a {a.name} {relation} a {b.name}", f"a {a.name} {OPPOSITE[relation]} a {b.name}"


def _other(scene: Scene, rng: np.random.Generator, field: str, choices: dict) -> str:
    """A colour or shape that no object of the scene has."""
    return str(rng.choice([c for c in choices if c not in {getattr(o, field) for o in scene.objects}]))


def _replaced(field: str, choices: dict) -> Callable[[Scene, np.random.Generator], Pair]:
    def make(scene: Scene, rng: np.random.Generator) -> Pair:
        objects = list(scene.objects)
        k = rng.integers(len(objects))
        objects[k] = dataclasses.replace(objects[k], **{field: _other(scene, rng, field, choices)})
        return listing(scene.objects), listing(tuple(objects))

    return make


def _add_att(scene: Scene, rng: np.random.Generator) -> Pair:
    k = rng.integers(len(scene.objects))
    size = "large" if scene.objects[k].size == "small" else "small"
    objects = [
        dataclasses.replace(o, colour=f"{size} {o.colour}") if i == k else o for i, o in enumerate(scene.objects)
    ]
    return listing(scene.objects), listing(tuple(objects))


def _add_obj(scene: Scene, rng: np.random.Generator) -> Pair:
    new = dict(colour=_other(scene, rng, "colour", COLOURS), shape=_other(scene, rng, "shape", OUTLINES))
    return listing(scene.objects), listing((*scene.objects, dataclasses.replace(scene.objects[0], **new)))


CHANGES: dict[str, Callable[[Scene, np.random.Generator], Pair | None]] = {
    "add_obj": _add_obj,
    "add_att": _add_att,
    "replace_obj": _replaced("shape", OUTLINES),
    "replace_att": _replaced("colour", COLOURS),
    "replace_rel": _replace_rel,
    "swap_obj": _swap_obj,
    "swap_att": _swap_att,
}


@dataclasses.dataclass(frozen=True)
class _OfScenes:
    """A source of scenes of several objects.

    Attributes:
      shapes: where the scenes come from; of scenes="several".
    """

    shapes: Shapes = Shapes(size=200, split="test", scenes="several")

    class_names: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises: UserError."""
        if self.shapes.scenes != "several" or self.shapes.words:
            raise UserError(f"{type(self).__name__}.shapes: wanted are scenes='several' and words=0.")

    @property
    def name(self) -> str:
        return f"{self.shapes.name}/{type(self).__name__}"

    @property
    def fingerprint(self) -> str:
        return self.shapes.fingerprint


@dataclasses.dataclass(frozen=True)
class ShapesChoices(_OfScenes):
    """The seven subsets of SugarCrepe, and ARO's order, by rule: what the wrong caption says is never so.

    Attributes:
      subsets: the changes to make, of `CHANGES`, and "order", which is text alone. All that a scene allows are made.
    """

    subsets: tuple[str, ...] = tuple(CHANGES)

    def validate(self) -> None:
        super().validate()
        if bad := [name for name in self.subsets if name not in (*CHANGES, "order")]:
            raise UserError(f"ShapesChoices.subsets: {bad[0]!r} is none of {', '.join((*CHANGES, 'order'))}.")

    def __len__(self) -> int:
        return len(self.shapes)

    def choices(self, index: int) -> tuple[Choice, ...]:
        """The choices of a scene, without drawing it."""
        return self._choices[index]

    @functools.cached_property
    def _choices(self) -> list[tuple[Choice, ...]]:
        return [tuple(self._make(index)) for index in range(len(self))]

    def _make(self, index: int):
        scene = self.shapes.scene(index)
        for number, subset in enumerate(self.subsets):
            rng = np.random.Generator(np.random.Philox(key=[self.shapes.seed, number], counter=[0, 0, 0, index]))
            if subset == "order":
                if (choice := order_choice(listing(scene.objects), rng)) is not None:
                    yield choice
            elif (pair := CHANGES[subset](scene, rng)) is not None:
                yield Choice(pair, subset)

    def __getitem__(self, index: int) -> dict:
        """`image` and `text`, captions that are true of it."""
        scene = self.shapes.scene(index)
        return {"image": render(scene, self.shapes.image_size), "text": [listing(scene.objects)]}


@dataclasses.dataclass(frozen=True)
class ShapesWinoground(_OfScenes):
    """Pairs of scenes that differ in which object has which colour ("Attribute"), or which place ("Relation").

    The scenes of `shapes` that allow it are taken: two objects of different colours and shapes, not side by side.
    """

    def __len__(self) -> int:
        return 2 * len(self._pairs)

    @functools.cached_property
    def _pairs(self) -> list[tuple[str, tuple[Scene, Scene], tuple[str, str]]]:
        pairs = []
        for index in range(len(self.shapes)):
            scene = self.shapes.scene(index)
            if not can_swap(scene):
                continue
            if index % 2:
                other = swapped(scene)
                pairs.append(("Attribute", (scene, other), (listing(scene.objects), listing(other.objects))))
            elif held := relations(*scene.objects):
                a, b = scene.objects
                captions = f"a {a.name} {held[0]} a {b.name}", f"a {b.name} {held[0]} a {a.name}"
                pairs.append(("Relation", (scene, exchanged(scene)), captions))
        if not pairs:
            raise UserError(f"ShapesWinoground: none of {len(self.shapes)} scenes makes a pair; give shapes.size=50.")
        return pairs

    def caption(self, index: int) -> str:
        return self._pairs[index // 2][2][index % 2]

    def tag(self, pair: int) -> str:
        return self._pairs[pair][0]

    def __getitem__(self, index: int) -> dict:
        """`image` uint8, `text` its caption."""
        scene = self._pairs[index // 2][1][index % 2]
        return {"image": render(scene, self.shapes.image_size), "text": [self.caption(index)]}


@dataclasses.dataclass(frozen=True)
class ShapesLabels(Shapes):
    """`Shapes` with all classes of a scene as `labels`, and a `group`.

    Attributes:
      group: "objects", how many there are, or the "size" of the only one.
    """

    group: Literal["objects", "size"] = "objects"

    @property
    def group_names(self) -> tuple[str, ...]:
        return ("one", "two", "three") if self.group == "objects" else ("small", "large")

    def __getitem__(self, index: int) -> dict:
        """Beside what `Shapes` gives, `labels` int [48], and `group`, -1 where it has none."""
        objects = self.scene(index).objects
        labels = np.zeros(len(self.class_names), np.int32)
        labels[[o.label for o in objects]] = 1
        size = self.group_names.index(objects[0].size) if self.group == "size" and len(objects) == 1 else -1
        return super().__getitem__(index) | {
            "labels": labels,
            "group": len(objects) - 1 if self.group == "objects" else size,
        }
