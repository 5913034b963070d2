"""The figures and the picture of what a decoder of image tokens writes and draws."""

import json
import sys

from PIL import Image

from benchmarks import fused
from tests.library.test_fused import small, workdir


def test_a_run_is_shown(tmp_path, monkeypatch, capsys):
    run = workdir(tmp_path / "run", small())
    lines = [
        {"step": 2, "eval/drawn_seen/right": 0.25},
        {"step": 3, "train/loss": 1.0},
        {"step": 4, "eval/drawn_seen/right": 0.5},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = [f"--output={tmp_path}/found.json", f"--picture={tmp_path}/found.png"]
    monkeypatch.setattr(sys, "argv", ["fused", str(run), *files])
    monkeypatch.setattr(fused, "SHOWN", 3)
    fused.main()
    assert json.loads((tmp_path / "found.json").read_text()) == {"run": {"steps": 4, "drawn_seen/right": 0.5}}
    page = Image.open(tmp_path / "found.png")
    assert page.height == fused.HEAD + 8 * (2 * 32 + fused.GAP) and len(page.getcolors(10**6)) > 100
