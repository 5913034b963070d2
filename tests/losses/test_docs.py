"""The page on losses runs as it stands."""

from __future__ import annotations

import pathlib
import re

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "losses.md"


def test_snippets_run_top_to_bottom():
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(snippets) >= 3
    names = {}
    for snippet in snippets:
        exec(compile(snippet, PAGE.name, "exec"), names)
    assert names["value"].shape == () and names["d_embedding"].shape == (1000, 16)
