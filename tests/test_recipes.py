"""Every shipped recipe: it is checked, its text is golden, and what it says it can do exists.

A change of a default in the code shows here as a diff. `python tests/test_recipes.py` writes the files anew.
"""

import pathlib
import re

import pytest

from vlm_jax import config as configs

GOLDEN = pathlib.Path(__file__).parent / "golden"
SPECS = [
    f"{name}{variant}"
    for name in configs.recipes()
    for variant in ("", *(f":{v}" for v in configs.variants_of(configs.recipe_module(name)) if v != "full"))
]


def text(spec: str) -> str:
    config = configs.load(spec)
    configs.check(config)
    return "\n".join(configs.lines(configs.fill(config))) + "\n"


def golden(spec: str) -> pathlib.Path:
    return GOLDEN / f"{spec.replace(':', '-')}.txt"


@pytest.mark.parametrize("spec", SPECS)
def test_golden_text(spec):
    assert text(spec) == golden(spec).read_text(), f"python {__file__} writes the golden texts anew"


def test_no_golden_text_is_left_over():
    assert {p.stem for p in GOLDEN.glob("*.txt")} == {golden(spec).stem for spec in SPECS}


@pytest.mark.parametrize("name", list(configs.recipes()))
def test_recipes_are_short_and_begin_with_a_line_for_help(name):
    source = configs.recipes()[name].read_text()
    assert source.count("\n") < 100
    assert re.match(r'"""[A-Z].+\.?', source)


def test_full_is_the_recipe_itself():
    assert text("siglip_b16:full") == text("siglip_b16")


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for path in GOLDEN.glob("*.txt"):
        path.unlink()
    for spec in SPECS:
        golden(spec).write_text(text(spec))
