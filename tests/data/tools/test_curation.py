"""`curate`: each rule removes what it says and nothing else, and the choice can be used."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.data.tools.images import Records, encoded, pairs, picture
from vlm_jax.data.tools import curation
from vlm_jax.data.tools.command import main, parser
from vlm_jax.data.tools.keep import Kept


def curate(source, folder, *flags: str) -> tuple[list[int], dict]:
    """The records that are kept, and the report."""
    parsed = parser().parse_args(["curate", "x", f"--output={folder}", *flags])
    curation.check(parsed)
    list(curation.run(source, parsed))
    report = json.loads((folder / "curate.json").read_text())
    removed = [int(line.split("\t")[0]) for line in (folder / "removed.tsv").read_text().splitlines()]
    kept = sorted(set(range(len(source))) - set(removed))
    assert report["kept"] == len(kept) and sum(rule["removed"] for rule in report["rules"]) == len(removed)
    if kept:
        wanted = [source[k]["key"] for k in kept]
        chosen = Kept(source, str(folder / "keep.index"))
        assert [chosen[k]["key"] for k in range(len(chosen))] == wanted
    return kept, report


CAPTIONS = ["ok", "a red bus", "A RED  bus", "красный автобус", "a red bus", "a long caption of many words"]


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        ([], [0, 1, 2, 3, 4, 5]),
        (["--min_chars=3"], [1, 2, 3, 4, 5]),
        (["--max_chars=15"], [0, 1, 2, 3, 4]),
        (["--min_words=3"], [1, 2, 4, 5]),
        (["--scripts=cyrillic,greek"], [3]),
        (["--same_caption=1"], [0, 1, 3, 5]),
        (["--same_caption=2"], [0, 1, 2, 3, 5]),
        (["--scripts=latin", "--min_chars=3", "--same_caption=1"], [1, 5]),
    ],
)
def test_rules_on_captions(flags, kept, tmp_path):
    assert curate(pairs(CAPTIONS), tmp_path, *flags)[0] == kept


def test_a_record_stays_while_one_caption_passes_all_rules(tmp_path):
    source = pairs([])
    source.records = [
        {"image": encoded(picture(0)), "text": ["ok", "автобус красный"]},  # one too short, one of another script
        {"image": encoded(picture(1)), "text": ["ok", "a red bus"]},
        {"image": encoded(picture(2)), "text": []},
    ]
    assert curate(source, tmp_path, "--min_chars=3", "--scripts=latin")[0] == [1]


def test_rules_on_images(tmp_path):
    base = picture(0, 300, 200)
    images = [encoded(base), encoded(base, quality=25), encoded(picture(1, 300, 90)), encoded(picture(2, 20, 20)), b"x"]
    source = Records([{"image": image, "text": "t"} for image in images])
    assert curate(source, tmp_path)[0] == [0, 1, 2, 3]
    assert curate(source, tmp_path, "--min_side=100")[0] == [0, 1]
    assert curate(source, tmp_path, "--max_aspect=1.5")[0] == [0, 1, 3]
    kept, report = curate(source, tmp_path, "--duplicate_bits=8")
    assert kept == [0, 2, 3]
    assert [(rule["rule"], rule["reached"], rule["removed"], rule["examples"]) for rule in report["rules"]] == [
        ("unreadable", 5, 1, ["file:4"]),
        ("duplicate_bits", 4, 1, ["file:1"]),
    ]


def test_scores(tmp_path):
    source = pairs(["a", "b", "c", "d", "e"])
    rows = [{"key": f"file:{k}", "score": score} for k, score in ((0, 0.1), (1, 0.4), (3, 0.3), (4, 0.4))]
    (tmp_path / "scores.jsonl").write_text("\n".join(map(json.dumps, rows)))
    scores = f"--scores={tmp_path}/scores.jsonl"
    assert curate(source, tmp_path, scores, "--min_score=0.3")[0] == [1, 3, 4]
    assert curate(source, tmp_path, scores, "--top_fraction=0.25")[0] == [1]
    kept, report = curate(source, tmp_path, scores, "--min_score=0.2", "--top_fraction=0.67")
    assert kept == [1, 4]
    assert [rule["removed"] for rule in report["rules"]] == [0, 1, 1, 1]


def test_balance_thins_out_what_is_frequent(tmp_path):
    source = pairs(["a dog"] * 60 + ["a rare okapi and a dog"] * 3 + ["nothing of it"] * 2)
    (tmp_path / "entries.txt").write_text("dog\nokapi\nbird")
    balance = [f"--balance={tmp_path}/entries.txt", "--balance_t=10"]
    kept, report = curate(source, tmp_path, *balance)
    assert set(range(60, 63)) <= set(kept) and not {63, 64} & set(kept)
    assert 3 <= len([k for k in kept if k < 60]) <= 20  # 60 x 10/63 = 9.5, s.d. 2.8
    assert report["balance"]["most_matched"][0][:2] == ["dog", 63]
    assert curate(source, tmp_path, *balance)[0] == kept
    assert curate(source, tmp_path, *balance, "--seed=1")[0] != kept


def test_the_draw_of_a_record_does_not_depend_on_the_others(tmp_path):
    many = pairs(["a dog"] * 40)
    (tmp_path / "entries.txt").write_text("dog")
    kept = curate(many, tmp_path / "a", f"--balance={tmp_path}/entries.txt", "--balance_t=20")[0]
    reversed_keys = Records([{**many.records[k], "key": f"file:{39 - k}"} for k in range(40)])
    other = curate(reversed_keys, tmp_path / "b", f"--balance={tmp_path}/entries.txt", "--balance_t=20")[0]
    assert sorted(39 - k for k in other) == kept and 0 < len(kept) < 40


def test_nothing_left_is_told_where_it_is_used(tmp_path):
    kept, report = curate(pairs(["a", "b"]), tmp_path, "--min_chars=5")
    assert kept == [] and report["kept"] == 0


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--min_side=0"], "--min_side=0: wanted is at least 1"),
        (["--max_aspect=0.5"], "--max_aspect=0.5"),
        (["--scripts=latn"], "no script 'latn'; did you mean 'latin'"),
        (["--top_fraction=2", "--scores=x"], "--top_fraction=2.0"),
        (["--top_fraction=0.5"], "--scores=FILE goes with"),
        (["--scores=x"], "--scores=FILE goes with"),
        (["--scores=x", "--min_score=0"], "--scores=x cannot be read"),
        (["--scores=bad", "--min_score=0"], "--scores=bad, line 2: '0.3', wanted is"),
        (["--scores=other", "--min_score=0"], "no key of this source"),
        (["--balance=x"], "--balance=x cannot be read"),
        (["--balance=x", "--balance_t=0"], "--balance_t=0"),
    ],
)
def test_mistakes_are_one_line(flags, line, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad").write_text('{"key": "a", "score": 1}\n0.3\n')
    (tmp_path / "other").write_text('{"key": "a", "score": 1}\n')
    assert main(["curate", "shapes", "--source.size=3", *flags]) == 2
    (said,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    assert line in said
    assert not list(tmp_path.glob("reports/*/keep.index"))


def test_the_choice_from_end_to_end(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    argv = ["shapes", "--source.size=50"]
    assert main(["curate", *argv, "--output=r", "--same_caption=1"]) == 0
    printed = capsys.readouterr().out.splitlines()
    left = int(printed[2].split()[-1])
    assert main(["convert", *argv, "--output=out", "--format=parquet", "--keep=r/keep.index"]) == 0
    assert f"out: {left} records" in capsys.readouterr().out
    assert 0 < left < 50 and np.isfinite(left)
