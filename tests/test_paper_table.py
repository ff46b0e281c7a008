"""The script that repeats the literature's table runs on models of every published topology as on a published checkpoint."""

import sys

import pytest
from PIL import Image

from benchmarks import paper_table
from neuroscope import InvalidInput
from neuroscope.testbed.construction.pipelines import build_unplanted
from neuroscope.testbed.plant import PLANT


def table(capsys, monkeypatch, model: str, *options: str) -> list[list[str]]:
    """The rows that the script prints for a model."""
    monkeypatch.setattr(sys, "argv", ["paper_table", model, "--pairs", "1", "--seeds", "1", *options])
    paper_table.main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith(f"| {model}")]
    assert [row[1] for row in rows] == ["style", "object", "fact"]
    return rows


@pytest.mark.slow
def test_on_the_bundled_model_it_finds_what_is_planted(capsys, monkeypatch):
    """By CLIP's cosine alone, in the model's own twelve steps."""
    rows = table(capsys, monkeypatch, "testbed:sd1", "--pairs", "3", "--num-inference-steps", "12")
    assert [row[2] for row in rows] == [str(layer) for layer in (PLANT.style, PLANT.object, PLANT.fact)]


def test_its_rows_say_what_is_published(capsys, monkeypatch):
    rows = table(capsys, monkeypatch, "testbed:sd1", "--num-inference-steps", "2")
    assert [row[5] for row in rows] == ["8", "6 (v1.5)", "6 (v1.5)"]
    assert all("transformer_blocks.0" in row[3] for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "published", "module"),
    [("if-1", ["depends on the prompt"] * 3, "attentions"), ("sdxl", ["45", "not given", "45"], "transformer_blocks")],
)
def test_other_families_are_compared_with_their_own_layers(capsys, monkeypatch, family, published, module):
    """Constructed models draw nothing that CLIP knows, so that which layer is found means nothing here."""
    rows = table(capsys, monkeypatch, f"testbed:{family}/layer", "--num-inference-steps", "2")
    assert [row[5] for row in rows] == published
    assert all(module in row[3] or "add_embedding" in row[3] for row in rows)


def test_a_model_for_enlarging_asks_for_a_picture(capsys, monkeypatch):
    monkeypatch.setattr(paper_table, "load_pipeline", lambda _model: build_unplanted("if-2", 0))
    with pytest.raises(InvalidInput, match="testbed:if-2/layer enlarges an image; give a small one with --image"):
        table(capsys, monkeypatch, "testbed:if-2/layer")


@pytest.mark.slow
def test_a_model_for_enlarging_starts_from_a_picture(capsys, monkeypatch, tmp_path):
    Image.new("RGB", (8, 8), "orange").save(tmp_path / "small.png")
    rows = table(capsys, monkeypatch, "testbed:if-2/layer", "--num-inference-steps", "1", "--image", str(tmp_path / "small.png"))
    assert [row[5] for row in rows] == ["not given"] * 3
