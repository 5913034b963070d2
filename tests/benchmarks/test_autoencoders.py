"""Baselines of autoencoders: exact where they can be, and their figures beside those of a run."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks import autoencoders


def images(count, seed=0, size=8):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def test_patches_come_together_again():
    whole = images(3)
    patches = autoencoders.cut(whole, 4)
    assert patches.shape == (12, 48) and (patches[1].reshape(4, 4, 3) == whole[0, :4, 4:]).all()
    assert (autoencoders.joined(patches, whole.shape, 4) == whole).all()


def test_as_many_numbers_as_an_image_varies_in_are_enough_for_pca():
    basis = np.random.default_rng(1).normal(size=(3, 192)) * 10
    drawn = np.random.default_rng(0).uniform(-1, 1, (60, 3)) @ basis + 128
    drawn = drawn.round().astype(np.uint8).reshape(60, 8, 8, 3)
    enough, few = (autoencoders.pca(drawn[:40], drawn[40:], numbers)[0] for numbers in (3, 1))
    assert enough["mse"] < 1 / 255**2 < few["mse"] and enough["numbers"] == 3


def test_as_many_codes_as_patches_are_enough_for_kmeans():
    tiles = images(4, size=4)
    which = np.random.default_rng(2).integers(0, 4, (20, 4))
    drawn = autoencoders.joined(tiles[which].reshape(80, 48), (20, 8, 8, 3), 4)
    found, again = autoencoders.kmeans(drawn[:10], drawn[10:], codes=4, patch=4, patches=1000)
    assert found["mse"] == 0 and found["bits"] == 4 * 2 and found["codes_used"] == 1
    assert (again == drawn[10:]).all()
    assert autoencoders.kmeans(drawn[:10], drawn[10:], codes=2, patch=4, patches=1000)[0]["mse"] > 0.01


def test_command(tmp_path, monkeypatch):
    def png(image):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": None}

    for name, count in {"train": 30, "test": 10}.items():
        rows = [{"image": png(image), "class_name": "noise"} for image in images(count)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    (tmp_path / "run").mkdir()
    lines = [{"step": 1, "eval/reconstructions/mse": 0.5}, {"step": 2, "eval/reconstructions/mse": 0.25}, {"step": 3}]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = [f"--{name}={tmp_path}/{name}.parquet" for name in ("train", "test")]
    arguments += ["--size=8", "--numbers=10", "--codes=8", f"--workdir={tmp_path}/run", f"--output={tmp_path}/out.json"]
    monkeypatch.setattr("sys.argv", ["autoencoders", *arguments])
    autoencoders.main()
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["train"], found["test"], found["run"]) == (30, 10, {"mse": 0.25})
    assert found["kmeans"]["bits"] == 12
    # The test images are among the training ones: ten directions of thirty leave some error, and less than their mean.
    mean = images(30).mean(0)
    assert 0 < found["pca"]["mse"] < ((images(10) - mean) ** 2).mean() / 255**2
    assert found["pca"]["psnr"] == pytest.approx(-10 * np.log10(found["pca"]["mse"]), abs=1)


def test_a_picture_has_a_row_for_each(tmp_path):
    rows = [images(3, seed) for seed in range(2)]
    autoencoders.draw(rows, tmp_path / "a.png")
    shown = np.asarray(Image.open(tmp_path / "a.png"))[:: autoencoders.SCALE, :: autoencoders.SCALE]
    assert shown.shape == (16, 24, 3) and (shown[8:, 16:] == rows[1][2]).all()
