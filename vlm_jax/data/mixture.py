"""Several sources as one, each with its weight, its image transform and its choice of captions."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from vlm_jax.data.apportion import WINDOW, Apportionment
from vlm_jax.data.image import ImageTransform
from vlm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Part:
    """A source in a mixture.

    Attributes:
      source: random access, as `Pipeline.source`.
      weight: rows of it, in proportion to the weights of the others; 0 leaves it out.
      image: its own image transform, of the same size; None takes the pipeline's.
      caption: of several captions "sample" draws one for each row, "first" takes the first, "join" all as one.
      templates: makes the captions of class names; "{}" is the name. () takes the captions of the source.
    """

    source: Any
    weight: float = 1.0
    image: ImageTransform | None = None
    caption: Literal["sample", "first", "join"] = "sample"
    templates: tuple[str, ...] = ()

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises: UserError for a weight that is none, or templates that have nothing to stand in them."""
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise UserError(f"Part.weight={self.weight} of {self.source.name!r}: wanted is a number of at least 0.")
        if any(template.count("{}") != 1 for template in self.templates):
            raise UserError(f"Part.templates={self.templates}: each template needs one '{{}}' for the class name.")
        if self.templates and not self.source.class_names:
            raise UserError(f"Part.templates: {self.source.name!r} has no class names that could stand in them.")

    def captions(self, limit: int | None = None) -> Iterator[str]:
        """Captions, at most `limit`, to train a tokenizer on; of templates, with every class name once."""
        if not self.templates:
            return self.source.captions(limit)
        names = self.source.class_names
        return itertools.islice((t.format(name) for name in names for t in self.templates), limit)

    def choose(self, texts: tuple[str, ...], draw: float) -> str:
        """The caption of a row; `draw` is a random number in [0, 1)."""
        if self.caption == "join":
            return " ".join(texts)
        return texts[int(draw * len(texts)) if self.caption == "sample" else 0]


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Rows of several sources, in proportion to their weights.

    Each source goes through its own epochs: a permutation of (seed, its name here, its epoch), every record of it
    once. Which row is whose is `vlm_jax.data.apportion.Apportionment`, a function of the row alone.

    Attributes:
      parts: by name: `parts=dict(web=bind("data.mixture.Part", source=..., weight=3), ...)`.
    """

    parts: Mapping[str, Part]

    name = "mixture"

    def __post_init__(self):
        object.__setattr__(self, "parts", {name: self.parts[name] for name in sorted(self.parts)})
        self.validate()

    def validate(self) -> None:
        """Raises: UserError for a mixture of nothing, an empty source, or weights that give no rows."""
        if not self.parts:
            raise UserError("Mixture.parts is empty; name at least one data.mixture.Part.")
        for name, part in self.parts.items():
            if not re.fullmatch(r"\w[\w-]*", name):
                raise UserError(f"Mixture.parts: {name!r} is no name of letters, digits, '_' and '-'.")
            if not isinstance(part, Part):
                raise UserError(f"Mixture.parts.{name} is a {type(part).__name__}; bind data.mixture.Part around it.")
            if len(part.source) == 0:
                raise UserError(f"Mixture.parts.{name}: source {part.source.name!r} is empty.")
        if not any(part.weight for part in self.parts.values()):
            raise UserError(f"Mixture.parts: the weights of {', '.join(self.parts)} are all zero.")
        for (name, part), share in zip(self.parts.items(), self.apportionment().shares):
            if part.weight and not share:
                raise UserError(
                    f"Mixture.parts.{name}.weight={part.weight} is not one row in {WINDOW}; raise it, or set it to 0."
                )

    def apportionment(self, **options) -> Apportionment:
        """Which row is whose; `options` are those of `Apportionment`."""
        return Apportionment(tuple(self.parts), tuple(part.weight for part in self.parts.values()), **options)

    def __len__(self) -> int:
        """Rows of an epoch, as durations count it: the examples of all sources that have a weight."""
        return sum(len(part.source) for part in self.parts.values() if part.weight)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Those of the sources that have any, where they agree; labels would mean nothing where they do not."""
        named = {tuple(part.source.class_names) for part in self.parts.values()} - {()}
        return named.pop() if len(named) == 1 else ()

    @functools.cached_property
    def fingerprint(self) -> str:
        content = [[name, part.source.fingerprint, part.weight] for name, part in self.parts.items()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def captions(self, limit: int | None = None) -> Iterator[str]:
        """Captions, at most `limit`, to train a tokenizer on: of each source in proportion to its weight."""
        return itertools.islice(self._captions(limit), limit)

    def _captions(self, limit: int | None) -> Iterator[str]:
        total = sum(part.weight for part in self.parts.values())
        for part in self.parts.values():
            if part.weight:
                most = None if limit is None else math.ceil(limit * part.weight / total)
                yield from itertools.islice(part.captions(most), most)
