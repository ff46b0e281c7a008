"""The page of a run: every section when its data is there, self-contained, escaped, and with the tables' own numbers."""

import re
from html.parser import HTMLParser

import pandas as pd
import pytest
import torch
from PIL import Image

from neuroscope import (
    Cost,
    Effects,
    InvalidFile,
    LayerScores,
    LocoEdit,
    NeuronMask,
    Probe,
    Provenance,
    Welch,
    edit,
    plots,
    report,
    save,
    score,
    summarize,
)

VOID = {"meta", "img", "br", "link"}
SECTIONS = {
    "Which layers": "layers.safetensors",
    "Which neurons": "neurons.safetensors",
    "What was changed": "mask.safetensors",
    "Does it hold?": "evaluation.csv",
}


class Page(HTMLParser):
    """Checks that tags are balanced, and gathers texts, sources and headings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and data.strip():
            self.texts.append((self.open[-1], data.strip()))

    def of(self, tag: str) -> list[str]:
        return [text for found, text in self.texts if found == tag]


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    rows = [
        (name, f"prompt {p}", seed, "style is stipple", (p + seed + len(name)) / 9)
        for name in ("none", "mask")
        for p in range(4)
        for seed in (0, 1)
    ]
    return pd.DataFrame(rows, columns=["intervention", "prompt", "seed", "metric", "score"])


@pytest.fixture(scope="module")
def layers() -> LayerScores:
    values = torch.zeros(3, 2, 2, dtype=torch.float64)
    values[1] = 0.75
    effects = Effects((Probe((0,)), Probe((1,)), Probe((2,))), ("a red star", "a blue star"), (0, 1), values, torch.ones(2, 2).double())
    sheet = torch.zeros(1, 5, 8, 8, 3, dtype=torch.uint8)
    provenance = Provenance("stable-diffusion-unet", "testbed:sd1", "stipple", "LocoGen(), LatentShare()")
    return LayerScores.of(effects, provenance=provenance, cost=Cost(1234, 5.0, 2**30), columns=("base", "0", "1", "2", "goal"), sheet=sheet)


@pytest.fixture
def run(tmp_path, graph, concept, recording, layers, table):
    scores = score(recording, Welch())
    save(layers, tmp_path / "layers.safetensors")
    save(scores, tmp_path / "neurons.safetensors")
    save(NeuronMask(scores.top(5)), tmp_path / "mask.safetensors")
    save(edit(graph, concept, LocoEdit(), 8), tmp_path / "edit.safetensors")
    table.to_csv(tmp_path / "evaluation.csv", index=False)
    plots.write(plots.images({"before": [Image.new("RGB", (8, 8))]}), tmp_path / "images.png")
    return tmp_path


def page_of(run) -> Page:
    return Page(report(run).read_text())


def test_the_whole_story_is_on_one_page(run):
    page = page_of(run)
    expected = ["What was asked", *SECTIONS, "What it cost", "Where it comes from"]
    assert page.of("h2") == expected
    assert page.of("h1") == ["stipple: where a model keeps it"]
    assert "All 2 prompts agree on layer 1." in page.of("p")
    assert "1,234 denoiser rows, 5.0 s, peak 1.00 GiB" in page.of("dd")


def test_it_needs_nothing_beside_itself(run):
    page = page_of(run)
    assert len(page.sources) == 1 + 1 + 5 + 1  # the layers' heatmap, the neurons', the contact sheet, the picture
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not re.search(r"https?://|<script|<link|@import|url\(", report(run).read_text())


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_without_data_is_left_out(run, section):
    for name in [SECTIONS[section]] + ({"What was changed": ["edit.safetensors"], "Does it hold?": ["images.png"]}.get(section, [])):
        (run / name).unlink()
    assert section not in page_of(run).of("h2")


def test_the_tables_hold_the_numbers(run, layers, table):
    cells = page_of(run).of("td")
    for name, metric, mean, low, high, images in summarize(table).itertuples(index=False):
        row = [name, metric, f"{mean:.3f}", f"{low:.3f}", f"{high:.3f}", str(images)]
        assert any(cells[start : start + 6] == row for start in range(len(cells)))
    assert ["1", "layer 1", "0.750", "0.750", "0.750", "0.750"] in [cells[start : start + 6] for start in range(len(cells))]


def test_what_people_wrote_is_escaped(tmp_path, layers):
    from dataclasses import replace

    name = '<b>&"x"</b>'
    save(replace(layers, provenance=replace(layers.provenance, concept=name)), tmp_path / "layers.safetensors")
    page = page_of(tmp_path)
    assert page.of("h1") == [f"{name}: where a model keeps it"]
    assert page.of("b") == []


def test_what_cannot_be_read_is_named_and_left_out(run):
    (run / "broken.safetensors").write_bytes(b"no")
    (run / "other.csv").write_text("a,b\n1,2\n")
    said = " ".join(page_of(run).of("dd"))
    assert "broken.safetensors is damaged or not a safetensors file" in said
    assert "it is no evaluation; one has the columns intervention, prompt, seed, metric, score" in said


def test_nothing_to_report_is_an_error(tmp_path):
    with pytest.raises(InvalidFile, match="there is no folder .*nowhere; give one with results, such as `neuroscope demo` writes"):
        report(tmp_path / "nowhere")
    with pytest.raises(InvalidFile, match="holds no results to report; save some there with -o"):
        report(tmp_path)
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(InvalidFile, match="holds no results to report; broken.safetensors: .* is damaged"):
        report(tmp_path)


def test_it_goes_where_it_is_told(run, tmp_path):
    assert report(run) == run / "report.html"
    assert report(run, tmp_path / "page.html").read_text() == (run / "report.html").read_text()
