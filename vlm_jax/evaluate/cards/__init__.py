"""Protocol cards: how each public family of models is evaluated, and where a model disagrees with that.

A card is a file `NAME.toml` beside this one, or one of your own. Its `[image]`, `[text]` and `[model]` are values of
`ImageTransform` (and `mean`, `std`), of `Text`, and of the towers; a list of strings, or of lists, means any of them.
What a card does not name is not checked.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_jax.data.image import ImageTransform
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError, closest

HERE = Path(__file__).parent
PARTS = ("image", "text", "model")


@dataclasses.dataclass(frozen=True)
class Card:
    """A protocol.

    Attributes:
      name: of the file. title: for people.
      families: of weights that it is for (`vlm_jax.interop.Imported.family`).
      image, text, model: values that are expected; `text` is empty for images alone.
      templates: prompts of a zero-shot classifier.
    """

    name: str
    title: str
    families: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    image: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    text: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def names() -> list[str]:
    """Of the cards that come with the package."""
    return sorted(path.stem for path in HERE.glob("*.toml"))


def load(name: str) -> Card:
    """The card of that name, or in the file `NAME.toml` that is given with its path.

    Raises:
      UserError: there is none, or it is not one.
    """
    path = Path(name) if name.endswith(".toml") else HERE / f"{name}.toml"
    try:
        values = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"no card {name!r}; {closest(name, names())}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no card: {error}.") from error
    known = [field.name for field in dataclasses.fields(Card) if field.name != "name"]
    for key, value in values.items():
        if key not in known:
            raise UserError(f"{path}: a card has no {key!r}; {closest(key, known)}")
        if isinstance(value, Mapping) != (key in PARTS):
            raise UserError(f"{path}: {key}={value!r} is not of its kind.")
    for part, component in (("image", ImageTransform), ("text", Text)):
        fields = [field.name for field in dataclasses.fields(component)] + ["mean", "std"] * (part == "image")
        if unknown := next((key for key in values.get(part, {}) if key not in fields), None):
            raise UserError(f"{path}: {component.__name__} has no {unknown!r}; {closest(unknown, fields)}")
    lists = {key: tuple(values.get(key, ())) for key in ("families", "templates")}
    return Card(**{"title": path.stem, **values, **lists, "name": path.stem})


def check(
    card: Card,
    image: ImageTransform,
    text: Text | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    network: Any = None,
) -> list[str]:
    """What of a model is not as the card has it: a line each, with the key, its value, and the expected one.

    Args:
      mean, std: of pixels in [0, 1]; not checked unless given.
      network: a `TwoTower` or a tower, whose towers are held against the card's `[model]`; not checked unless given.
    """
    pixels = {"mean": mean, "std": std}
    found = [(f"image.{key}", pixels.get(key, getattr(image, key, None)), card.image[key]) for key in card.image]
    if text is not None:
        found += [(f"text.{key}", getattr(text, key), card.text[key]) for key in card.text]
    towers = [("model.image", getattr(network, "image", network)), ("model.text", getattr(network, "text", None))]
    for where, tower in towers:
        if tower is not None:
            found += [(f"{where}.{key}", getattr(tower, key), card.model[key]) for key in card.model]
    return [
        f"{where} is {value!r}, {card.name} expects {_words(wanted)}"
        for where, value, wanted in found
        if value is not None and not _agrees(value, wanted)
    ]


def find(family: str, *preprocessing: Any, **options: Any) -> Card | None:
    """The card for weights of a family: of several the one that disagrees least; the arguments are those of `check`."""
    cards = [card for card in map(load, names()) if family in card.families]
    return min(cards, key=lambda card: len(check(card, *preprocessing, **options)), default=None)


def read_lines(path: str | Path) -> tuple[str, ...]:
    """Class names or templates of your own: the lines of a file that are not empty. Raises UserError."""
    try:
        lines = tuple(line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}); wanted is text, one name or template a line.") from None
    if not lines:
        raise UserError(f"{path} is empty; wanted is one name or template a line.")
    return lines


def expand(items: Sequence[str]) -> tuple[str, ...]:
    """Names or templates, with "@FILE" as the lines of a file and "@card:NAME" as the templates of a card."""
    found: list[str] = []
    for item in items:
        if item.startswith("@card:"):
            found += load(item.removeprefix("@card:")).templates
        else:
            found += read_lines(item[1:]) if item.startswith("@") else [item]
    return tuple(found)


def _alternatives(wanted: Any) -> list[Any] | None:
    """What a list means, unless it is one value: three numbers, of red, green and blue."""
    return wanted if isinstance(wanted, list) and all(isinstance(item, str | list) for item in wanted) else None


def _agrees(value: Any, wanted: Any) -> bool:
    if (several := _alternatives(wanted)) is not None:
        return any(_agrees(value, one) for one in several)
    if isinstance(wanted, list):
        return len(value) == len(wanted) and all(map(_agrees, value, wanted))
    if isinstance(wanted, float) and not isinstance(value, str):
        return abs(value - wanted) <= 1e-6 * abs(wanted)
    return value == wanted


def _words(wanted: Any) -> str:
    return " or ".join(map(repr, _alternatives(wanted) or [wanted]))
