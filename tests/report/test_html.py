"""The page of a run: well formed, closed to the network, and there whatever is missing."""

from __future__ import annotations

import html.parser
import math
import re
import subprocess
import sys

import numpy as np
import pytest

from vlm_jax.report import Gallery, JsonlWriter, Matrix, Table, read_metrics, write_report
from vlm_jax.report.html import MOST_PANELS

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(html.parser.HTMLParser):
    """Elements and text of a page; fails where tags do not nest."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def page(workdir, **arguments) -> Page:
    path = write_report(workdir, **{"title": "run", "config_text": "depth = 4"} | arguments)
    assert path == workdir / "report.html"
    assert [file.name for file in workdir.glob("report*")] == ["report.html"]
    return Page(path.read_text())


def write(workdir, lines):
    writer = JsonlWriter(workdir / "metrics.jsonl")
    for step, metrics in lines:
        writer.write(step, metrics)
    writer.close()


@pytest.fixture
def workdir(tmp_path):
    """A short run with everything in it."""
    lines = []
    for step in range(10, 101, 10):
        lines.append((step, {"train/loss": 10.0 / step, "train/grad_norm": 1.0, "train/examples_seen": 64.0 * step}))
        if step % 50 == 0:
            lines.append((step, {"eval/zero_shot/top1": 0.9 - step / 1000, "eval/zero_shot/examples": 1000.0}))
    write(tmp_path, lines)
    return tmp_path


def artifacts():
    image = np.zeros((32, 32, 3), np.uint8)
    return {
        "retrieval/similarity": Matrix("similarity", np.eye(4), list("abcd"), list("abcd")),
        "retrieval/top": Gallery("best images", [("a red circle", [(image, "0.4", True), (image, "0.3", False)])]),
        "zero_shot/confused": Table("confused", ["class", "count"], [["cat", 3], ["dog", math.nan]]),
    }


def test_a_whole_page(workdir):
    found = page(workdir, artifacts=artifacts(), notes=["2 records were unreadable"], facts={"Device": "8 x cpu"})
    for words in ("Step 100", "Examples seen 6,400", "Device 8 x cpu", "2 records were unreadable", "depth = 4"):
        assert words in found.words
    assert "zero_shot 1,000 examples" in found.words
    assert re.search(r"top1 0\.8000 100 0\.8500 50", found.words), "last and best values with their steps"
    assert "The same at every step: grad_norm 1" in found.words
    assert "4 rows, 4 columns; mean of the diagonal 1, of the rest 0." in found.words
    assert "Similarity retrieval" in found.words and "cat 3" in found.words and "dog NaN" in found.words
    assert [image["alt"] for image in found.all("img")] == ["right: 0.4", "wrong: 0.3"]
    assert {figure.get("class") for figure in found.all("figure")} >= {"good", "bad", "matrix"}


def test_it_asks_nothing_of_the_network(workdir):
    found = page(workdir, artifacts=artifacts(), notes=["see https://example.com"])
    for tag, attributes in found.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base")
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href"):
                assert value.startswith(("data:", "#")), f"<{tag} {name}={value[:40]}>"
            assert not name.startswith("on")
    text = (workdir / "report.html").read_text()
    assert "@import" not in text and re.findall(r"url\((?!#)", text) == [] and "http://" not in text
    (policy,) = [meta["content"] for meta in found.all("meta") if "http-equiv" in meta]
    assert "default-src 'none'" in policy


def test_every_picture_has_words(workdir):
    found = page(workdir, artifacts=artifacts())
    for svg in found.all("svg"):
        assert svg.get("aria-hidden") == "true" or len(svg["aria-label"]) > 10
    assert all(image["alt"] for image in found.all("img"))
    (root,) = found.all("html")
    assert root["lang"] == "en" and len(found.all("title")) == 1


def test_markup_is_shown_not_run(tmp_path):
    evil = "<script>alert(1)</script>\"'&"
    write(tmp_path, [(s, {f"train/{evil}": s / 2, f"eval/{evil}/{evil}": s / 4}) for s in (1, 2)])
    pictures = {
        evil: Matrix(evil, np.eye(2), [evil, evil], [evil, evil]),
        "gallery": Gallery(evil, [(evil, [(np.zeros((8, 8, 3), np.uint8), evil, None)])]),
        "table": Table(evil, [evil], [[evil]]),
    }
    found = page(tmp_path, title=evil, config_text=evil, notes=[evil], facts={evil: evil}, artifacts=pictures)
    assert found.all("script") == []
    assert found.words.count(evil) > 12
    assert found.all("img")[0]["alt"] == evil


@pytest.mark.parametrize("content", [None, "", "{}\n", '{"step": 1', '{"step": 1, "train/loss": 2}\n'])
def test_missing_and_short_metrics(tmp_path, content):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    found = page(tmp_path)
    assert ("No training metrics" in found.words) == (read_metrics(tmp_path / "metrics.jsonl") == [])


def test_non_finite_values_are_named(tmp_path):
    write(tmp_path, [(s, {"train/loss": math.nan if s == 3 else float(s), "eval/e/top1": math.nan}) for s in range(6)])
    found = page(tmp_path)
    assert "Not finite at step 3" in found.words
    assert re.search(r"top1 NaN 5 (?!\d)", found.words), "a metric that was never finite has no best"


def test_many_keys_are_bounded(tmp_path):
    many = [f"train/metric{i:03d}" for i in range(MOST_PANELS + 20)]
    write(tmp_path, [(s, {name: s * 1.0 for name in many}) for s in range(3)])
    found = page(tmp_path)
    assert len([svg for svg in found.all("svg") if svg.get("role") == "img"]) == MOST_PANELS
    assert "Not drawn, but in metrics.jsonl: metric048, metric049" in found.words


def test_artifacts_are_bounded_and_tolerant(tmp_path):
    image = np.zeros((8, 8, 3), np.uint8)
    found = page(
        tmp_path,
        artifacts={
            "big": Gallery("big", [(f"row {i}", [(image, "x", None)] * 50) for i in range(100)]),
            "long": Table("long", ["n"], [[i] for i in range(1000)]),
            "empty": Matrix("empty", np.zeros((0, 0))),
            "odd": object(),
            "none": Gallery("none", []),
        },
    )
    assert len(found.all("img")) == 24 * 12
    for words in (
        "first 24 of 100",
        "first 200 of 1,000",
        "The matrix is empty",
        "Artifacts of type object are not shown",
    ):
        assert words in found.words


def test_equal_runs_give_equal_pages(workdir):
    first = write_report(workdir, title="run", config_text="", artifacts=artifacts()).read_bytes()
    assert write_report(workdir, title="run", config_text="", artifacts=artifacts()).read_bytes() == first


def test_a_failed_write_leaves_the_old_page(workdir, monkeypatch):
    before = write_report(workdir, title="old", config_text="").read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_report(workdir, title="new", config_text="")
    assert (workdir / "report.html").read_bytes() == before


def test_no_global_state_of_matplotlib_is_touched(workdir):
    code = (
        "import sys, vlm_jax.report as report\n"
        "assert not {'matplotlib', 'rich', 'PIL', 'jax'} & set(sys.modules), 'importing the package stays cheap'\n"
        "import matplotlib; before = matplotlib.rcParams.copy()\n"
        f"report.write_report({str(workdir)!r}, title='t', config_text='')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert matplotlib.rcParams.copy() == before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
