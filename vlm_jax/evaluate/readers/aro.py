"""ARO, attribution, relation and order: does word order matter to the model? (Yuksekgonul et al. 2023)

Layouts and rules are those of the authors' code (github.com/mertyg/vision-language-models-are-bows).
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from vlm_jax.data.errors import UnreadableImage, UnreadableRecord
from vlm_jax.data.image import open_image
from vlm_jax.evaluate.readers.base import Choice, Choices, checked, checked_list, load_json

# Relations that hold the other way round as well or hardly could; the authors leave them out of the mean.
SYMMETRIC = """
adjusting, around, attached to, beside, between, bigger than, biting, boarding, brushing, by, chewing, cleaning,
climbing, close to, coming from, coming out of, contain, crossing, dragging, draped over, drinking, drinking from,
driving, driving down, driving on, eating from, eating in, enclosing, exiting, facing, filled with, floating in,
floating on, flying, flying above, flying in, flying over, flying through, full of, going down, going into, going
through, grazing in, growing in, growing on, guiding, hanging from, hanging in, hanging off, hanging over, higher
than, holding onto, hugging, in between, jumping off, jumping on, jumping over, kept in, larger than, leading,
leaning over, leaving, licking, longer than, looking in, looking into, looking out, looking over, looking through,
lying next to, lying on top of, making, mixed with, mounted on, moving, near, next to, of, on the back of, on the
edge of, on the front of, on the other side of, on the side of, opening, painted on, parked at, parked beside,
parked by, parked in, parked in front of, parked near, parked next to, perched on, petting, piled on, playing,
playing in, playing on, playing with, pouring, reaching for, reading, reflected on, riding on, running in, running
on, running through, seen through, sitting behind, sitting beside, sitting by, sitting in front of, sitting near,
sitting next to, sitting under, skiing down, skiing on, sleeping in, sleeping on, smiling at, sniffing, splashing,
sprinkled on, stacked on, standing against, standing around, standing behind, standing beside, standing in front of,
standing near, standing next to, staring at, stuck in, surrounding, swimming in, swinging, talking to, topped with,
touching, traveling down, traveling on, tying, typing on, underneath, wading in, waiting for, walking across,
walking by, walking down, walking next to, walking through, with, working in, working on, worn on, wrapped around,
wrapped in
"""
LEFT_OUT = tuple(re.split(r",\s*", SYMMETRIC.strip()))
NUMBER = (int, float)


@dataclasses.dataclass(frozen=True)
class VisualGenome(Choices):
    """`path` is `visual_genome_relation.json` or `visual_genome_attribution.json`, `images` the folder beside it.

    Each case names an image and a box of it, which alone is shown, a `true_caption` and a `false_caption`. Its subset
    is its `relation_name`, or its two `attributes`. The published numbers are `macro`: the mean over relations but
    `LEFT_OUT`, or over pairs of attributes with at least 25 cases (`Choose(left_out=..., least=...)`).
    """

    KIND: ClassVar[str] = "aro"

    def files(self) -> Sequence[Path]:
        return [Path(self.path).expanduser()]

    @functools.cached_property
    def _cases(self) -> list[dict]:
        kinds = dict(image_path=str, true_caption=str, false_caption=str)
        kinds |= {f"bbox_{side}": NUMBER for side in "xywh"}
        entries = checked_list(load_json(self.path), self.path)
        for number, entry in enumerate(entries):
            own = {"attributes": list} if isinstance(entry, dict) and "attributes" in entry else {"relation_name": str}
            checked(entry, kinds | own, f"{self.path}, case {number},")
        return entries

    def __len__(self) -> int:
        return len(self._cases)

    def image_path(self, index: int) -> str:
        return f"{self.images}/{self._cases[index]['image_path']}"

    def choices(self, index: int) -> tuple[Choice, ...]:
        case = self._cases[index]
        subset = case["relation_name"] if "relation_name" in case else "_".join(map(str, case["attributes"][:2]))
        return (Choice((case["true_caption"], case["false_caption"]), subset),)

    def __getitem__(self, index: int) -> dict:
        """`image` uint8 [h, w, 3], the case's box; `text` the right caption."""
        case = self._cases[index]
        x, y, w, h = (case[f"bbox_{side}"] for side in "xywh")
        try:
            image = open_image(self.image(index), None, "full").crop((x, y, x + w, y + h))
        except UnreadableImage as error:
            raise UnreadableRecord(self.name, str(index), str(error)) from error
        return {"image": np.asarray(image), "text": [case["true_caption"]]}


@dataclasses.dataclass(frozen=True)
class Order(Choices):
    """`path` is `coco_karpathy_test.json` or `flickr30k_test.json`, `images` where the names in it begin.

    The file is a list of `image` and `caption`, a list. Every caption stands against itself with the words of each
    trigram shuffled, and with its trigrams shuffled. The authors have two more, which shuffle nouns and adjectives, or
    all but those, and need spaCy's tagger: they are not made here, and the numbers are higher than the published ones.
    Shuffles are drawn anew until they change something; captions too short for that are left out.

    Attributes:
      words: captions are cut to so many.
    """

    words: int = 30
    seed: int = 0

    KIND: ClassVar[str] = "aro_order"

    def files(self) -> Sequence[Path]:
        return [Path(self.path).expanduser()]

    @functools.cached_property
    def _cases(self) -> list[dict]:
        entries = checked_list(load_json(self.path), self.path)
        return [checked(e, dict(image=str, caption=list), f"{self.path}, image {k},") for k, e in enumerate(entries)]

    def __len__(self) -> int:
        return len(self._cases)

    def image_path(self, index: int) -> str:
        return f"{self.images}/{self._cases[index]['image']}"

    def choices(self, index: int) -> tuple[Choice, ...]:
        rng = np.random.Generator(np.random.Philox(key=[self.seed, index]))
        made = (order_choice(caption, rng, self.words) for caption in self._cases[index]["caption"])
        return tuple(choice for choice in made if choice is not None)


def order_choice(caption: str, rng: np.random.Generator, words: int = 30) -> Choice | None:
    """The caption against its shuffles, all normalised; None where none differs from it."""
    tokens = re.findall(r"\w+(?:['-]\w+)*|[^\w\s]", caption)
    trigrams = [tokens[k : k + 3] for k in range(0, len(tokens), 3)]
    within = lambda: [word for trigram in trigrams for word in rng.permutation(trigram)]
    across = lambda: [word for k in rng.permutation(len(trigrams)) for word in trigrams[k]]
    right, wrong = normalised(caption, words), []
    for shuffle in (within, across):
        for _ in range(10):
            if (text := normalised(" ".join(shuffle()), words)) != right:
                wrong.append(text)
                break
    return Choice((right, *wrong), "order") if wrong else None


def normalised(caption: str, words: int) -> str:
    """Lower case, without `.!"()*#:;~`, single spaces, cut: as BLIP prepares captions."""
    kept = re.sub(r"\s+", " ", re.sub(r'[.!"()*#:;~]', " ", caption.lower())).strip()
    return " ".join(kept.split(" ")[:words])
