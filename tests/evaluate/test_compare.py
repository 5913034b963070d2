"""Intervals against what is known of them, the table, the page, and what the command line refuses."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vlm_jax
from tests.evaluate import toy
from vlm_jax.config import bind
from vlm_jax.data.image import ImageTransform
from vlm_jax.evaluate import results
from vlm_jax.evaluate.base import Result
from vlm_jax.evaluate.bootstrap import intervals
from vlm_jax.evaluate.command import main
from vlm_jax.evaluate.compare import cells, compare, table
from vlm_jax.evaluate.failures import galleries
from vlm_jax.mesh import Layout

SOURCE = bind("data.sources.shapes.Shapes", size=40, image_size=16, split="test")


def store(folder, right, *, name="zero", truth=None, source=SOURCE, **more):
    """A result of 0s and 1s in a folder."""
    right = np.asarray(right, bool)
    rows = {"index": np.arange(len(right)), "truth": truth or [f"t{k}" for k in range(len(right))]}
    rows = {key: np.array(column) for key, column in rows.items()} | {"answer": rows["truth"], "top1": right}
    result = Result({"top1": float(right.mean()), "examples": float(len(right)), **more}, rows={"images": rows})
    node = bind("evaluate.zero_shot.ZeroShot", source=source)
    results.write(folder, name, result, evaluator=node, weights="w", step=1)
    return results.read(folder)


def test_an_interval_is_as_wide_as_the_binomial_says():
    values = np.arange(1000)[None] < 300
    ((mean, low, high),), ((change, *same),) = intervals(values, np.arange(1000), samples=4000)
    half = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert mean == pytest.approx(0.3) and low == pytest.approx(0.3 - half, abs=0.004)
    assert high == pytest.approx(0.3 + half, abs=0.004) and change == 0 and same == [0, 0]


def test_rows_of_one_image_are_drawn_together():
    """Five rows an image that are all right or all wrong say no more than one row."""
    right = np.arange(200) < 60
    one, _ = intervals(right[None], np.arange(200))
    five, _ = intervals(np.repeat(right, 5)[None], np.repeat(np.arange(200), 5))
    assert five == one
    apart, _ = intervals(np.repeat(right, 5)[None], np.arange(1000))
    assert apart[0].high - apart[0].low < 0.6 * (one[0].high - one[0].low)


def test_a_difference_on_the_same_examples_is_known_better_than_either():
    rng = np.random.default_rng(0)
    first = rng.random(500) < 0.5
    second = first | (np.arange(500) < 40)
    spread, change = intervals(np.stack([first, second]), np.arange(500))
    assert change[1].high - change[1].low < 0.6 * (spread[1].high - spread[1].low)
    assert change[1].mean == pytest.approx(second.mean() - first.mean()) and change[1].low > 0


@given(st.integers(1, 40), st.integers(0, 1000))
def test_the_same_seed_gives_the_same_interval_around_the_mean(n, seed):
    values = np.random.default_rng(seed).random((2, n))
    spread, change = intervals(values, np.arange(n), samples=50, seed=seed)
    assert (spread, change) == intervals(values, np.arange(n), samples=50, seed=seed)
    for interval, row in zip(spread, values):
        assert interval.mean == pytest.approx(row.mean()) and interval.low <= interval.high
        assert row.min() - 1e-9 <= interval.low and interval.high <= row.max() + 1e-9


def test_lines_and_what_has_no_interval(tmp_path):
    first = store(tmp_path / "a", np.arange(40) < 20, ece=0.25)
    second = store(tmp_path / "b", np.arange(40) < 36)
    other = store(tmp_path / "c", np.arange(30) < 10, name="zero")
    lines = {line.metric: line for line in compare([first, second, other], samples=200)}
    assert lines["top1"].values == [0.5, 0.9, pytest.approx(1 / 3)] and None not in lines["top1"].spread
    assert lines["top1"].change[0] is None and lines["top1"].change[2] is None  # other examples
    assert lines["top1"].change[1].mean == pytest.approx(0.4)
    assert lines["ece"].values == [0.25, None, None] and lines["ece"].spread == [None] * 3
    shown = cells(lines["top1"])
    assert (
        shown[0].startswith("0.5000 [") and "+0.4000 [" in shown[1] and shown[1].endswith("*") and "+" not in shown[2]
    )
    assert cells(lines["ece"]) == ["0.2500", "-", "-"] and cells(lines["examples"]) == ["40", "40", "30"]
    text = table(["a", "b", "c"], list(lines.values()))
    assert text[1] == "zero" and text[2].split()[0] == "top1" and len({line.find("0.5000") for line in text[2:3]}) == 1


def test_other_truths_are_other_examples(tmp_path):
    first = store(tmp_path / "a", [1, 0, 1])
    second = store(tmp_path / "b", [1, 0, 1], truth=["x", "y", "z"])
    assert next(iter(compare([first, second], samples=10))).change == [None, None]


def test_pictures_of_failures(tmp_path):
    right = np.arange(40) % 4
    models = [store(tmp_path / "a", right % 2 == 1), store(tmp_path / "b", right >= 2)]
    found, notes = galleries(["A", "B"], models)
    assert not notes
    rows = dict(found["zero/images"].rows)
    assert [heading.split(":")[0] for heading in rows] == [
        "wrong by A and B",
        "right by A, wrong by B",
        "wrong by A, right by B",
    ]
    image, text, good = rows["wrong by A and B: 10 of 40"][0]
    assert text == "t0; A: t0; B: t0" and good is False and image.shape == (16, 16, 3)


def test_retrieval_shows_what_was_found_instead(tmp_path):
    rows = {
        "index": np.array([3]),
        "truth": np.array(["a cat"]),
        "answer_index": np.array([7]),
        "r1": np.array([False]),
    }
    result = Result({"r1": 0.0}, rows={"text_to_image": rows})
    results.write(tmp_path, "retrieval", result, evaluator={"source": SOURCE}, weights="w", step=None)
    (gallery,) = galleries(["A"], [results.read(tmp_path)])[0].values()
    ((_, pictures),) = gallery.rows
    assert [(text, good) for _, text, good in pictures] == [("a cat", None), ("A found this", False)]


def test_a_source_that_is_not_here_or_not_ours_shows_no_pictures(tmp_path):
    elsewhere = bind("data.sources.folder.Folder", path=str(tmp_path / "nowhere"))
    found, notes = galleries(["A"], [store(tmp_path / "a", [0, 1], source=elsewhere)])
    assert not found and "its source can't be opened here" in notes[0]
    store(tmp_path / "b", [0, 1])
    file = tmp_path / "b/results.json"
    for target in ("os.system", "main.run"):
        file.write_text(file.read_text().replace("data.sources.shapes.source.Shapes", target))
        file.write_text(file.read_text().replace("data.sources.shapes.Shapes", target))
        found, notes = galleries(["A"], [results.read(tmp_path / "b")])
        assert not found and f"{target} is no source of vlm_jax" in notes[0]
        file.write_text(file.read_text().replace(target, "data.sources.shapes.Shapes"))


# The command line


@pytest.fixture
def model(monkeypatch):
    """A collapsed model in place of whatever path is loaded."""
    loaded = types.SimpleNamespace(
        predict=toy.collapsed(),
        mesh=Layout().make(jax.devices()[:1]),
        image=ImageTransform(size=16),
        text=toy.TEXT,
        step=None,
        protocol=lambda card: (types.SimpleNamespace(name=card), ["image.resize is squash"]) if card else (None, []),
    )
    monkeypatch.setattr(vlm_jax, "load", lambda path, weights: loaded, raising=False)
    return loaded


SMALL = ["--bind=Shapes.size=60", "--bind=ShapesLabels.size=20", "--bind=Shapes.image_size=16"]


def test_every_evaluator_of_the_suite_gives_a_collapsed_model_nothing(tmp_path, model, capsys):
    names = "zero_shot,retrieval,choices,winoground,knn"
    assert main(["run", "some/weights", f"--only={names}", f"--output={tmp_path}", *SMALL]) == 0
    stored = results.read(tmp_path)
    assert list(stored) == names.split(",")
    for name, evaluation in stored.items():
        scores = {k: v for k, v in evaluation.metrics.items() if k != "examples"}
        assert set(scores.values()) == {0.0}, name
    assert f"results  {tmp_path / 'results.json'}" in capsys.readouterr().out
    page = tmp_path / "page.html"
    assert main(["compare", str(tmp_path), str(tmp_path / "results.json"), "--samples=20", f"--html={page}"]) == 0
    assert "winoground" in capsys.readouterr().out and page.read_text().count("<img") >= 5


def test_a_model_without_text(tmp_path, model, monkeypatch, capsys):
    image_alone = types.SimpleNamespace(**{**vars(model), "text": None})
    monkeypatch.setattr(vlm_jax, "load", lambda path, weights: image_alone, raising=False)
    assert main(["run", "some/weights", "--only=knn,retrieval", f"--output={tmp_path}", *SMALL]) == 0
    assert "retrieval: left out, the model reads no text" in capsys.readouterr().out
    assert list(results.read(tmp_path)) == ["knn"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["run"], "PATH"),
        (["run", "w", "--only=zero"], "--only=zero: no evaluator 'zero'; did you mean"),
        (["run", "w", "--outptu=x"], "unknown argument '--outptu=x'; did you mean"),
        (["run", "w", "--config.evals.knn.k=0"], "wanted are k >= 1"),
        (["run", "w", "--suite", "--config=siglip_tiny"], "give one of them"),
        (["compare", "nowhere"], "nowhere: no such file or folder"),
        (["compare", "a", "--samples=0"], "wanted are N >= 1"),
        (["compare", "a", "--config.x=1"], "compare has no config"),
        (["campare"], "campare"),
    ],
)
def test_mistakes_are_one_line(argv, message, model, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_results_name_the_evaluator_and_the_weights(tmp_path, model):
    main(["run", "some/weights", "--only=knn", f"--output={tmp_path}", *SMALL, "--config.evals.knn.k=3"])
    stored = json.loads((tmp_path / "results.json").read_text())["evaluations"]["knn"]
    assert stored["evaluator"]["k"] == 3 and stored["protocol"] == {"card": None, "differs": []}
    assert stored["weights"] == "some/weights (params)"
    assert dataclasses.asdict(results.read(tmp_path)["knn"])["step"] is None


def test_what_differs_from_the_protocol_is_said_and_kept(tmp_path, model, capsys):
    assert main(["run", "some/weights", "--only=knn", "--card=clip", f"--output={tmp_path}", *SMALL]) == 0
    assert "protocol  clip\nwarning: image.resize is squash" in capsys.readouterr().out
    assert results.read(tmp_path)["knn"].protocol == {"card": "clip", "differs": ["image.resize is squash"]}
    assert main(["compare", str(tmp_path), "--samples=9"]) == 0
    assert f"warning: {tmp_path}: differs from clip: image.resize is squash" in capsys.readouterr().out
