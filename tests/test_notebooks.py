"""Runs the notebooks of the docs, cell by cell, and renders what each cell shows."""

import ast
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

FOLDER = Path(__file__).parent.parent / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
#: What stands where a notebook names a model that must be downloaded.
STAND_IN = """
import neuroscope as ns
pipe = ns.testbed.load("sd1-natural")
style, prompts = "stipple", "testbed"
run = {"num_inference_steps": 2, "guidance_scale": 3.0}
"""


def cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["cells"]


def source(cell: dict[str, Any]) -> str:
    return STAND_IN if "your-model" in cell["metadata"].get("tags", ()) else "".join(cell["source"])


def shown(code: str, names: dict[str, Any]) -> Any:
    """Runs a cell; gives the value of its last line where that is an expression, as a notebook shows it."""
    tree = ast.parse(code)
    last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(last, "cell", "eval"), names) if last else None


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == ["find-and-remove-a-style", "where-is-a-fact", "your-own-model"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_has_no_output(path):
    assert path.stat().st_size < 50_000
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells(path) if cell["cell_type"] == "code")
    assert cells(path)[0]["cell_type"] == "markdown"
    assert len({cell["id"] for cell in cells(path)}) == len(cells(path))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    html = 0
    for cell in cells(path):
        if cell["cell_type"] == "code":
            result = shown(source(cell), names)
            html += bool(hasattr(result, "_repr_html_") and result._repr_html_().startswith("<div"))
    assert html >= 4
    plt.close("all")
