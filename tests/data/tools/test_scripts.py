"""Scripts of texts."""

import itertools

import pytest

from vlm_jax.data.tools.scripts import BLOCKS, script_of


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("A red bus, 2 doors", "latin"),
        ("größere Häuser", "latin"),
        ("красный автобус", "cyrillic"),
        ("红色的公共汽车", "han"),
        ("赤いバスが駅に止まる", "japanese"),
        ("빨간 버스", "korean"),
        ("حافلة حمراء", "arabic"),
        ("लाल बस", "devanagari"),
        ("รถบัสสีแดง", "thai"),
        ("iPhone 12 红色手机壳保护套", "han"),
        ("12345 !!", "none"),
        ("😀", "none"),
        ("", "none"),
        ("ⴰⵎⴰⵣⵉⵖ", "other"),
    ],
)
def test_the_script_of_most_letters(text, script):
    assert script_of(text) == script


def test_blocks_are_in_order_and_do_not_overlap():
    assert all(first <= last for first, last, _ in BLOCKS)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(BLOCKS))
