"""Results are stored and read back, and what is no file of results is told in one line."""

import json

import numpy as np
import pytest

from vlm_jax import config as configs
from vlm_jax.errors import UserError
from vlm_jax.evaluate import results
from vlm_jax.evaluate.base import Result
from vlm_jax.evaluate.failures import galleries

ROWS = {"images": {"index": np.arange(3), "top1": np.array([True, False, True]), "truth": np.array(["a", "bb", "c"])}}


def test_written_and_read_back(tmp_path):
    for step, top1 in ((9, 0.5), (10, 0.75)):  # in the order of numbers, not of names
        folder = tmp_path / "evaluations" / str(step)
        results.write(folder, "zero", Result({"top1": top1}, rows=ROWS), evaluator={}, weights="here", step=step)
    results.write(tmp_path / "evaluations/9", "other", Result({"x": np.nan}), evaluator={}, weights="here", step=9)
    found = results.read(tmp_path)
    assert found["zero"].metrics == {"top1": 0.75} and found["zero"].step == 10
    assert np.isnan(found["other"].metrics["x"]) and found["other"].rows() == {}
    assert results.read(tmp_path / "evaluations/9/results.json")["zero"].metrics == {"top1": 0.5}
    rows = results.read(tmp_path / "evaluations/10")["zero"].rows()["images"]
    assert rows["truth"].tolist() == ["a", "bb", "c"] and rows["top1"].mean() == pytest.approx(2 / 3)


def test_secrets_of_urls_are_not_kept(tmp_path):
    node = {"source": configs.bind("data.sources.webdataset.WebDataset", path="https://me:pw@host/a.tar?sig=0123")}
    results.write(tmp_path, "zero", Result({"top1": 0.5}, rows=ROWS), evaluator=node, weights="here", step=1)
    found = results.read(tmp_path)
    assert found["zero"].evaluator["source"]["path"] == "https://***@host/a.tar?sig=***"
    assert "0123" not in (tmp_path / "results.json").read_text()
    _, notes = galleries(["a"], [found])
    assert "which results do not keep" in notes[0]


def test_a_second_result_replaces_the_first(tmp_path):
    for value in (0.1, 0.2):
        results.write(tmp_path, "zero", Result({"top1": value}), evaluator={}, weights="here", step=None)
    assert results.read(tmp_path)["zero"].metrics == {"top1": 0.2}


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"format": 0, "evaluations": {}}), '{"evaluations": 1}'])
def test_what_is_no_file_of_results(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match="is no file of results"):
        results.read(tmp_path)


def test_nothing_there_and_damaged_rows(tmp_path):
    with pytest.raises(UserError, match="no evaluations in it"):
        results.read(tmp_path)
    with pytest.raises(UserError, match="no such file or folder"):
        results.read(tmp_path / "nowhere")
    results.write(tmp_path, "zero", Result({"top1": 1.0}, rows=ROWS), evaluator={}, weights="here", step=1)
    whole = (tmp_path / "zero.npz").read_bytes()
    (tmp_path / "zero.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"zero\.npz can't be read"):
        results.read(tmp_path)["zero"].rows()
