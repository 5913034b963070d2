"""MetaCLIP's balancing: what matches, and how likely it stays."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from vlm_jax.data.tools.balance import Matcher, Matches, balance_report, keep_probability, read_entries, words_of
from vlm_jax.errors import UserError


def found(matcher: Matcher, text: str) -> set[str]:
    return {matcher.entries[number] for number in matcher(text)}


def test_entries_match_as_whole_words_whatever_their_case():
    matcher = Matcher(["art", "New York", "York", "t-shirt", "红色", "รถ", "", "ART"])
    assert matcher.entries == ["art", "New York", "York", "t-shirt", "红色", "รถ"]
    assert found(matcher, "Art of a party in NEW  york.") == {"art", "New York", "York"}
    assert found(matcher, "a T-shirt, a t shirt") == {"t-shirt"}
    assert found(matcher, "一辆红色的车") == {"红色"} and found(matcher, "รถบัส") == {"รถ"}
    assert found(matcher, "\uff41\uff52\uff54") == {"art"}
    assert found(matcher, "") == set()


def test_every_substring_of_words_is_tried():
    vocabulary = ["a", "b", "c"]
    entries = [" ".join(words) for n in (1, 2, 3) for words in itertools.product(vocabulary, repeat=n)]
    matcher, rng = Matcher(entries), np.random.default_rng(0)
    for _ in range(50):
        text = " ".join(rng.choice(vocabulary, 6))
        assert found(matcher, text) == {entry for entry in entries if f" {entry} " in f" {text} "}


def test_the_probability_is_that_of_any_success():
    matches = Matches.of([[0], [0, 1], [], [1, 0], [0], [2]])
    chance = {0: 1 / 4, 1: 1 / 2, 2: 1.0}  # t = 1, and four, two and one records
    wanted = [
        1 - np.prod([1 - chance[e] for e in texts]) if texts else 0 for texts in ([0], [0, 1], [], [1, 0], [0], [2])
    ]
    np.testing.assert_allclose(keep_probability(matches, 3, 1), wanted, rtol=1e-12)
    assert keep_probability(matches, 3, 4).tolist() == [1, 1, 0, 1, 1, 1]
    assert keep_probability(Matches.of([]), 3, 4).tolist() == []
    assert keep_probability(Matches.of([[], []]), 3, 4).tolist() == [0, 0]


def test_the_report_counts_before_and_after():
    matches = Matches.of([[0], [0, 1], [], [0]])
    report = balance_report(Matcher(["x", "y", "z"]), matches, np.array([True, False, False, True]), 2)
    assert report["most_matched"] == [["x", 3, 2], ["y", 1, 0]]
    assert (report["entries_matched"], report["entries_above_t"], report["unmatched_records"]) == (2, 1, 1)


def test_entries_from_files(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo words\n")
    (tmp_path / "a.json").write_text(json.dumps(["one", "two words"]))
    assert read_entries(str(tmp_path / "a.txt")) == read_entries(str(tmp_path / "a.json")) == ["one", "two words"]
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(UserError, match="JSON list of strings"):
        read_entries(str(tmp_path / "b.json"))
    with pytest.raises(UserError, match="cannot be read"):
        read_entries(str(tmp_path / "c.txt"))
    with pytest.raises(UserError, match="no entries"):
        Matcher(["", "--"])


def test_words():
    assert words_of("It's 2 RED_buses!") == ["it", "s", "2", "red", "buses"]
