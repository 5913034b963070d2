"""Protocol cards: each is whole, names what disagrees, and is found for the weights that it is for."""

from __future__ import annotations

import dataclasses

import pytest

from vlm_jax.data.image import ImageTransform
from vlm_jax.data.sources.shapes import Shapes
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError
from vlm_jax.evaluate import cards
from vlm_jax.evaluate.zero_shot import ZeroShot
from vlm_jax.models.text import TextTransformer
from vlm_jax.models.two_tower import TwoTower
from vlm_jax.models.vit import ViT

CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def first(value):
    """Of alternatives the first one."""
    several = isinstance(value, list) and isinstance(value[0], str | list)
    return first(value[0]) if several else tuple(value) if isinstance(value, list) else value


def as_expected(card: cards.Card) -> tuple[ImageTransform, Text | None, dict]:
    """Preprocessing and towers that agree with a card."""
    values = {key: first(value) for key, value in card.image.items()}
    pixels = {key: values.pop(key) for key in ("mean", "std")}
    tower = dict(width=16, depth=1, num_heads=2, mlp_dim=32, **card.model)
    network = ViT(**tower, patch_size=8, image_size=16)
    if not card.text:
        return ImageTransform(**values), None, {**pixels, "network": network}
    text = {key: first(value) for key, value in card.text.items()}
    network = TwoTower(network, TextTransformer(**tower, vocab_size=300, length=text["length"], out_dim=16))
    return ImageTransform(**values), Text(**text), {**pixels, "network": network}


@pytest.mark.parametrize("name", cards.names())
def test_every_card_says_all_and_is_found(name):
    card = cards.load(name)
    assert {"resize", "interpolation", "convention", "decoder", "mean", "std"} <= set(card.image)
    assert bool(card.text) == bool(card.templates) and all(t.count("{}") == 1 for t in card.templates)
    image, text, options = as_expected(card)
    assert cards.check(card, image, text, **options) == []
    for family in card.families:
        assert cards.find(family, image, text, **options) == card


def test_every_disagreement_is_named():
    card = cards.load("openai_clip")
    image, text, options = as_expected(card)
    image = dataclasses.replace(image, resize="squash", decoder="pillow", convention="vlm_jax")
    text = dataclasses.replace(text, pad="pad", length=64)
    options = {"network": ViT(width=16, depth=1, num_heads=2, mlp_dim=32), "mean": (0.5, 0.5, 0.5), "std": CLIP_STD}
    assert cards.check(card, image, text, **options) == [
        "image.resize is 'squash', openai_clip expects 'crop'",
        "image.decoder is 'pillow', openai_clip expects 'full'",
        "image.convention is 'vlm_jax', openai_clip expects 'open_clip' or 'transformers'",
        "image.mean is (0.5, 0.5, 0.5), openai_clip expects [0.48145466, 0.4578275, 0.40821073]",
        "text.length is 64, openai_clip expects 77",
        "text.pad is 'pad', openai_clip expects 'zero' or 'eos'",
        "model.image.activation is 'gelu_tanh', openai_clip expects 'quick_gelu'",
        "model.image.norm_eps is 1e-06, openai_clip expects 1e-05",
    ]
    assert len(cards.check(card, image)) == 3


def test_the_activation_tells_openai_from_open_clip():
    for name in ("openai_clip", "open_clip_laion"):
        image, text, options = as_expected(cards.load(name))
        for family in ("clip", "open_clip"):
            assert cards.find(family, image, text, **options).name == name
    assert cards.find("no such family", image, text) is None


def test_a_card_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('title = "mine"\ntemplates = ["{}"]\n[image]\nresize = "pad"\n')
    card = cards.load(str(path))
    assert (card.name, card.templates) == ("mine", ("{}",))
    assert cards.check(card, ImageTransform()) == ["image.resize is 'squash', mine expects 'pad'"]


@pytest.mark.parametrize(
    "content, why",
    [
        ("titel = 'x'", "a card has no 'titel'; did you mean 'title'"),
        ("[image]\nresise = 'pad'", "ImageTransform has no 'resise'; did you mean 'resize'"),
        ("[text]\nbox = true", "Text has no 'box'; did you mean 'bos'"),
        ("image = 3", "image=3 is not of its kind"),
        ("[image", "is no card"),
    ],
)
def test_mistakes_in_cards_are_one_line(tmp_path, content, why):
    path = tmp_path / "mine.toml"
    path.write_text(content)
    with pytest.raises(UserError, match=why) as error:
        cards.load(str(path))
    assert "\n" not in str(error.value)


def test_unknown_cards_and_files_are_named(tmp_path):
    with pytest.raises(UserError, match="no card 'siglib'; did you mean 'siglip'"):
        cards.load("siglib")
    with pytest.raises(UserError, match="cannot be read"):
        cards.read_lines(tmp_path / "missing.txt")
    path = tmp_path / "names.txt"
    path.write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        cards.read_lines(path)
    path.write_text("tench\n\n great white shark \n")
    assert cards.read_lines(path) == ("tench", "great white shark")


def test_names_and_templates_of_files_and_cards(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("a drawn {}\n{}\n")
    assert cards.expand(("a {}", f"@{path}")) == ("a {}", "a drawn {}", "{}")
    assert cards.expand(("@card:siglip",)) == cards.load("siglip").templates
    options = dict(source=Shapes(size=4), image=ImageTransform(), text=Text())
    assert ZeroShot(**options, templates=(f"@{path}",)).prompts == ("a drawn {}", "{}")
    path.write_text("red circle\n")
    assert ZeroShot(**options, class_names=(f"@{path}",)).names == ("red circle",)
    with pytest.raises(UserError, match=r"\['red circle'\]"):
        ZeroShot(**options, templates=(f"@{path}",))
