"""The folder can be lifted out: put anywhere, under any name, it needs jax alone."""

from __future__ import annotations

import ast
import pathlib
import sys

FOLDER = pathlib.Path(__file__).parents[2] / "vlm_jax" / "losses"


def imported(node: ast.AST) -> set[str]:
    if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
        return set()
    if isinstance(node, ast.Import):
        return {name.name.split(".")[0] for name in node.names}
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return {node.module.split(".")[0]}
    assert not (isinstance(node, ast.ImportFrom) and node.level > 1), "reaches out of the folder"
    return set().union(*(imported(child) for child in ast.iter_child_nodes(node)))


def test_imports_jax_alone():
    files = sorted(FOLDER.glob("*.py"))
    names = set().union(*(imported(ast.parse(file.read_text())) for file in files))
    assert "jax" in names
    assert names - set(sys.stdlib_module_names) <= {"jax", "numpy"}
