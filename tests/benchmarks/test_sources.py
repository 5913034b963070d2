from __future__ import annotations

import re

from benchmarks import sources


def test_every_format_is_measured(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["sources", "--records=230", "--bytes=100", "--index=1000"])
    sources.main()
    out = capsys.readouterr().out
    rows = re.findall(r"^\| ([A-Z][\w, ]+) \| \d+ \| [\d.]+ \| (\d+) \|$", out, re.MULTILINE)
    assert [name for name, _ in rows] == ["WebDataset", "ArrayRecord", "Parquet, groups of 100", "Listing"]
    assert all(int(rate) > 0 for _, rate in rows)
    assert "an index of 1000 samples opened" in out
