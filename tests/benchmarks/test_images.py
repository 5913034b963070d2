from __future__ import annotations

import re

from benchmarks import images


def test_every_decoder_and_augmentation_is_measured(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["images", "--seconds=0.001", "--rounds=1"])
    monkeypatch.setattr(images, "SIZES", ((240, 320),))
    images.main()
    out = capsys.readouterr().out
    lines = re.findall(r"^\| 320 x 240, \d+ kB \| (.*) \|$", out, re.MULTILINE)
    rows = [line.split(" | ") for line in lines]
    assert [row[0] for row in rows] == ["bilinear", "bicubic"]
    assert all(len(row) == 1 + len(images.WAYS) for row in rows)
    assert all(int(rate) > 0 for row in rows for rate in row[1:])
    assert len(re.findall(r"^\| `\w+\(.*\)` \| [\d.]+ \|$", out, re.MULTILINE)) == len(images.AUGMENTATIONS)


def test_pictures_have_the_bytes_of_photographs():
    data = images.jpeg(images.photograph(480, 640))
    assert 30_000 < len(data) < 80_000
