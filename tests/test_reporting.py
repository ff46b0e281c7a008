"""The page of a run: every section when its results exist, self-contained, escaped, and with the tables' own numbers."""

import itertools
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from neuroscope import (
    Auroc,
    ContextSwap,
    Cost,
    Effects,
    InvalidFile,
    InvalidInput,
    LayerScores,
    LocoEdit,
    NeuronMask,
    Patch,
    Provenance,
    Welch,
    edit,
    load,
    record,
    report,
    save,
    score,
    summarize,
)
from neuroscope.cli import main
from neuroscope.report import plots, sections, tables
from neuroscope.report import scores as rankings
from neuroscope.report.figures import EmbeddedImage, Figure
from tests import browsing

BLANK = EmbeddedImage("data:image/png;base64,", 1, 1)
VOID = {"meta", "img", "source", "br"}
SECTIONS = {
    "Setup": ["*"],
    "Model": ["*.safetensors"],
    "Which layers": ["layers.*"],
    "Which neurons": ["neurons.safetensors"],
    "Interventions": ["mask.*", "edit.*", "swap.*"],
    "Evaluation on held-out prompts": ["evaluation.csv", "images.png"],
    "Other images": ["other.png"],
    "Cost": ["layers.safetensors"],
    "Provenance": ["*.safetensors"],
}


class Page(HTMLParser):
    """Checks that tags are balanced, and gathers texts, sources, headings and tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.alts: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.sources += [value for name, value in attributes if name in ("src", "srcset", "href")]
        if tag == "img":
            self.alts.append(given["alt"])
            assert int(given["width"]) > 0
            assert int(given["height"]) > 0
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and data.strip():
            self.texts.append((self.open[-1], data.strip()))
            if self.open[-1] in ("td", "th"):
                self.rows[-1][-1] += data.strip()

    def of(self, tag: str) -> list[str]:
        return [text for found, text in self.texts if found == tag]


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    cells = [(name, f"prompt {p}", seed, metric) for name in ("none", "mask") for p in range(4) for seed in (0, 1) for metric in ("a", "b")]
    scores = np.random.default_rng(0).normal(size=len(cells))
    return pd.DataFrame(cells, columns=["intervention", "prompt", "seed", "metric"]).assign(score=scores)


@pytest.fixture(scope="module")
def layers() -> LayerScores:
    values = torch.zeros(3, 2, 2, dtype=torch.float64)
    values[1] = 0.75
    effects = Effects((Patch((0,)), Patch((1,)), Patch((2,))), ("a red star", "a blue star"), (0, 1), values, torch.ones(2, 2).double())
    sheet = torch.zeros(1, 5, 8, 8, 3, dtype=torch.uint8)
    provenance = Provenance("stable-diffusion-unet", "testbed:sd1", "stipple", "LocoGen(), LatentShare()")
    return LayerScores.of(
        effects, provenance=provenance, cost=Cost(1234, 5.0, 2**30), columns=("source", "0", "1", "2", "target"), sheet=sheet
    )


@pytest.fixture(scope="module")
def recording(graph, concept):
    """Of four sites, which are drawn quickly."""
    return record(graph, concept, graph.sites.where(layer=[3, 8], role=["key", "value"]), keep_samples=True, quiet=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, graph, concept, recording, layers, table):
    """A run with something for every section."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    folder.mkdir()
    scores = score(recording, Welch())
    save(layers, folder / "layers.safetensors")
    save(scores, folder / "neurons.safetensors")
    save(NeuronMask(scores.top(5)), folder / "mask.safetensors")
    save(edit(graph, concept, LocoEdit(), 8), folder / "edit.safetensors")
    save(ContextSwap.of(graph, graph.sites.where(layer=3, role="key"), "a red star", steps=(0.0, 0.5)), folder / "swap.safetensors")
    table.to_csv(folder / "evaluation.csv", index=False)
    plots.write(plots.images({"before": [Image.new("RGB", (8, 8))]}), folder / "images.png")
    Image.new("RGB", (8, 8)).save(folder / "other.png")
    return folder


@pytest.fixture(scope="module")
def page(whole, tmp_path_factory) -> Page:
    return Page(report(whole, tmp_path_factory.mktemp("page") / "report.html").read_text())


@pytest.fixture
def run(whole, tmp_path, monkeypatch):
    """A copy of the run that a test may spoil, with blank plots."""
    monkeypatch.setattr(rankings, "drawn", lambda _plot, alt, caption: Figure(BLANK, alt, caption, BLANK))
    return shutil.copytree(whole, tmp_path / "run")


def page_of(run) -> Page:
    return Page(report(run).read_text())


def test_all_sections_are_on_one_page_in_order(page):
    assert page.of("h2") == list(SECTIONS)
    assert page.of("h1")[0].startswith("stipple in ")
    assert "All 2 prompts agree on layer 1." in page.of("p")
    assert {"LocoGen", "Welch", "mask", "edit", "swap", "Evaluation", "Before and after"} <= set(page.of("h3"))
    assert "0 to 50 % of the schedule" in page.of("dd")
    assert ["LocoGen (layers)", "1,234", "5.0", "1.00"] in page.rows


def test_it_starts_with_the_main_results(run, page, recording, table):
    text = report(run).read_text()
    assert text.index('<aside class="overview" aria-label="Main results">') < text.index("<h2>")
    facts = dict(overview_of(page))
    assert list(facts) == ["layer", "neurons", "effect: a", "control: a", "images", "cost"]
    assert facts["layer"] == ["layer 1: 75 % [75 %, 75 %] of the total effect by LocoGen"]
    chosen = score(recording, Welch()).top(5)
    where = " and ".join(site.label for site in recording.sites if site.path in chosen)
    width = sum(chosen.widths.values())
    assert facts["neurons"] == [f"5 of {width:,} neurons in {where if len(chosen) < 4 else f'{len(chosen)} sites'} (mask)"]
    for name, row in zip(("control: a", "effect: a"), summarize(table[table["metric"] == "a"]).itertuples(), strict=True):
        called = "no change" if row.intervention == "none" else row.intervention
        assert facts[name] == [f"{called} {short(row.mean)} [{short(row.low)}, {short(row.high)}]"]
    assert facts["images"] == ["16 images of 4 prompts and 2 seeds"]
    assert facts["cost"] == ["1,234 NFE"]


def short(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def overview_of(page: Page) -> list[tuple[str, list[str]]]:
    """The names and values that stand before the first heading of a section."""
    front = list(itertools.takewhile(lambda each: each[0] != "h2", page.texts))
    names = [number for number, (tag, _) in enumerate(front) if tag == "dt"]
    return [
        (front[number][1], [text for tag, text in front[number:after] if tag in ("dd", "li")])
        for number, after in itertools.pairwise([*names, len(front)])
    ]


def test_the_main_results_are_those_that_are_there(tmp_path, table, recording):
    scores = score(recording, Welch())
    save(scores, tmp_path / "neurons.safetensors")
    table[:0].to_csv(tmp_path / "empty.csv", index=False)
    assert overview_of(page_of(tmp_path)) == [("neurons", [f"{scores.sites.neuron_count:,} neurons ranked by Welch"])]
    controls = table.replace({"mask": "mask: random"})
    pd.concat([table, controls[controls["intervention"] != "none"]]).to_csv(tmp_path / "evaluation.csv", index=False)
    save(scores.by_layer(), tmp_path / "layers.safetensors")
    facts = dict(overview_of(page_of(tmp_path)))
    assert facts["layer"] == [f"layer {scores.by_layer().top(1)[0]} by mean of Welch"]
    assert [each.rpartition(" [")[0].rpartition(" ")[0] for each in facts["control: a"]] == ["no change", "mask: random"]
    assert "cost" not in facts


def test_rankings_have_their_cost(run, recording):
    save(replace(score(recording, Welch()), cost=Cost(100, 1.0, 2**29)), run / "neurons.safetensors")
    page = page_of(run)
    assert ["Welch (neurons)", "100", "1.0", "0.50"] in page.rows
    assert ["all", "1,334", "6.0", "1.00"] in page.rows
    assert dict(overview_of(page))["cost"] == ["1,334 NFE"]


def test_it_needs_nothing_beside_itself(page, run):
    wide, narrow, sheet, images = 2, 2, 5, 2
    assert len(page.sources) == wide + narrow + sheet + images
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not re.search(r"https?://|<script|<link|@import|url\(", report(run).read_text())
    assert all(page.alts)


@pytest.mark.browser
@pytest.mark.skipif(bool(browsing.missing()), reason=browsing.missing())
def test_the_page_is_right_in_every_window(whole, tmp_path):
    address = report(whole, tmp_path / "report.html").as_uri()
    with browsing.chromium() as browser:
        for width in browsing.SIZES:
            with browsing.opened(browser, address, width) as (shown, wrong):
                assert browsing.faults(shown) == {}
                assert wrong == []


def test_headings_are_in_order(run):
    text = report(run).read_text()
    levels = [int(level) for level in re.findall(r"<h(\d)", text)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert text.startswith('<!doctype html>\n<html lang="en">')
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text


@pytest.mark.parametrize("section", [name for name, files in SECTIONS.items() if files != ["*"]])
def test_a_section_without_data_is_left_out(run, section):
    for pattern in SECTIONS[section]:
        for file in run.glob(pattern):
            file.unlink()
    assert section not in page_of(run).of("h2")


def test_the_evaluation_holds_the_numbers_of_summarize(page, table):
    for metric, group in summarize(table).groupby("metric", sort=False):
        start = page.rows.index([metric]) + 1
        expected = [
            [row.intervention, signed(row.mean), f"{signed(row.low)} to {signed(row.high)}", str(row.images)]
            for row in group.rename(columns={"mean": "centre"}).assign(mean=group["mean"]).itertuples()
        ]
        assert page.rows[start : start + len(expected)] == expected


def signed(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")


def test_the_layers_table_holds_the_numbers_of_to_frame(page, layers):
    for row in layers.to_frame().itertuples():
        assert [str(row.layer), f"{row.score:.3f}", f"{row.low:.3f} to {row.high:.3f}", f"{row.share:.3f}"] in page.rows
    assert ["a red star", "layer 1", "0.750", "0.000"] in page.rows


def test_the_neurons_table_holds_the_numbers_of_to_frame(page, recording):
    top = score(recording, Welch()).to_frame().head(12)
    for row in top.itertuples():
        expected = [str(row.rank), str(row.layer), row.role, str(row.neuron), signed(row.score)]
        assert expected in [cells[:5] for cells in page.rows]


def test_a_mask_says_how_many_neurons_of_which_sites(page, recording):
    chosen = score(recording, Welch()).top(5)
    for path, indices in chosen.items():
        site = recording.sites.at([path])[0]
        assert [f"{site.layer} {site.role}", str(len(indices)), str(site.width), path] in page.rows


def test_what_people_wrote_is_escaped(tmp_path, layers, table):
    name = '<b>&"x"</b>'
    effects = replace(layers.effects, prompts=(name, "a blue star"))
    save(replace(layers, effects=effects, provenance=replace(layers.provenance, concept=name)), tmp_path / f"{name[:3]}.safetensors")
    table.replace({"mask": name, "a": name, "prompt 0": name}).to_csv(tmp_path / "evaluation.csv", index=False)
    page = page_of(tmp_path)
    assert page.of("h1") == [f"{name} in testbed:sd1"]
    assert page.of("b") == []
    assert [name] in page.rows
    assert [name, "layer 1", "0.750", "0.000"] in page.rows
    assert f"{name}, source" in page.alts


def test_components_and_parts_have_grids_and_big_sheets_show_the_best(tmp_path, layers):
    patches = tuple(Patch((layer,), part) for layer in range(12) for part in ("0-50 %", "50-100 %"))
    values = torch.arange(24, dtype=torch.float64)[:, None, None].expand(24, 2, 2) / 24
    effects = Effects(patches, ("a", "b"), (0, 1), values, torch.ones(2, 2).double(), relative=True)
    names = tuple(f"{kind} {number}" for kind in ("cross", "ff") for number in range(6))
    columns = ("source", *map(str, patches), "target")
    sheet = torch.zeros(1, 26, 8, 8, 3, dtype=torch.uint8)
    save(LayerScores.of(effects, names=names, columns=columns, sheet=sheet, provenance=layers.provenance), tmp_path / "traced.safetensors")
    page = page_of(tmp_path)
    head = next(row for row in page.rows if "source" in row)
    assert head == ["", "source", *(str(patch) for patch in reversed(patches[8:])), "target"]
    assert len(page.sources) == 2 + 2 + 18
    assert ["ff 5", "0.938", "0.938 to 0.938", "0.938"] in page.rows


def test_methods_are_compared(run, layers, recording):
    save(replace(layers, scores=(0.1, 0.2, 0.3), provenance=replace(layers.provenance, method="Other()")), run / "other.safetensors")
    save(score(recording, Auroc()), run / "auroc.safetensors")
    page = page_of(run)
    assert "Methods side by side" in page.of("h3")
    agreement = score(recording, Auroc()).agreement(score(recording, Welch()))
    assert f"Auroc and Welch agree with a rank correlation of {agreement:.2f}." in page.of("p")


def test_a_recording_is_ranked_only_where_no_scores_were_saved(run, recording):
    save(recording, run / "recording.safetensors")
    assert page_of(run).of("h3").count("Welch") == 1
    (run / "neurons.safetensors").unlink()
    page = page_of(run)
    assert page.of("h3").count("Welch") == 1
    assert "6 prompts with the concept and 6 without, read at the last token" in page.of("dd")


def test_an_unknown_intervention_is_shown_by_its_repr_and_header(run, monkeypatch):
    monkeypatch.setattr(sections, "_KINDS", {})
    mask = load(run / "mask.safetensors", NeuronMask)
    save(replace(mask, strength=0.25, tokens=(1, 2)), run / "mask.safetensors")
    page = page_of(run)
    assert "mask.safetensors: NeuronMask(neurons=Neurons(5 neurons" in " ".join(page.of("p"))
    assert {"0.25", "1, 2", "conditional: those that carry the prompt"} <= set(page.of("dd"))


def test_models_that_differ_are_pointed_out(run, layers):
    assert "more than one model" in " ".join(page_of(run).of("p"))
    for file in run.glob("*.safetensors"):
        file.unlink()
    save(layers, run / "layers.safetensors")
    assert "more than one model" not in " ".join(page_of(run).of("p"))


def test_foreign_files_are_named_and_left_out(run):
    save_file({"x": torch.zeros(2)}, run / "lora.safetensors")
    (run / "other.csv").write_text("prompt,b\n1,2\n")
    (run / "empty.csv").write_text("intervention,prompt,seed,metric,score\n")
    (run / "notes.txt").write_text("x")
    said = page_of(run).of("dd")
    assert "lora.safetensors is a safetensors file that neuroscope did not write; it has no 'neuroscope' header" in said
    assert "other.csv is no evaluation; it lacks the columns intervention, seed, metric, score" in said
    assert "empty.csv is an evaluation without rows" in said


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.safetensors", b"no", "x.safetensors is damaged or not a safetensors file"),
        ("x.png", b"no", r"x.png is damaged or no PNG file \(.*\); make or copy it again"),
        ("x.csv", b"", r"x.csv is no table \(.*\); make or copy it again"),
        ("x.csv", b'a,b\n1,2\n"3,4', r"x.csv is no table \(.*\); make or copy it again"),
        ("x.csv", b"intervention,prompt,seed,metric,score\na,b,0,c,high\n", "x.csv has scores that are no numbers"),
    ],
)
def test_a_damaged_file_is_one_line(run, name, content, words):
    (run / name).write_bytes(content)
    with pytest.raises(InvalidFile, match=words) as caught:
        report(run)
    assert "\n" not in str(caught.value)
    assert not (run / "report.html").exists()


def test_nothing_to_report_is_an_error(tmp_path):
    with pytest.raises(InvalidInput, match="there is no folder .*nowhere; give one with results, such as `neuroscope demo` writes"):
        report(tmp_path / "nowhere")
    with pytest.raises(InvalidInput, match="holds no results to report; save some there with -o"):
        report(tmp_path)
    save_file({"x": torch.zeros(2)}, tmp_path / "lora.safetensors")
    with pytest.raises(InvalidInput, match="holds no results to report; lora.safetensors is a safetensors file that neuroscope did not"):
        report(tmp_path)


def test_scores_that_are_missing_are_dashes(tmp_path, table):
    table.assign(score=np.where(table["metric"] == "a", np.nan, table["score"])).to_csv(tmp_path / "evaluation.csv", index=False)
    assert ["none", "–", "– to –", "0"] in page_of(tmp_path).rows


def test_the_command_writes_where_it_is_told_and_says_so(run, capsys, untyped):
    def call(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main([str(each) for each in arguments])
        return stopped.value.code or 0, *capsys.readouterr()

    assert call("report", run) == (0, f"wrote {run / 'report.html'}; open it in a browser\n", "")
    assert call("report", run, "-o", run / "page.html", "--json")[0] == 0
    assert (run / "page.html").read_text() == (run / "report.html").read_text()
    code, out, error = call("report", run / "nowhere")
    assert (code, out, error.count("\n")) == (2, "", 1)
    code, out, error = call("report", run, "-o", run / "nowhere" / "page.html")
    assert (code, out, error.count("\n")) == (2, "", 1)


class TestNumbers:
    @pytest.mark.parametrize(
        ("values", "places"), [([], 3), ([0.0], 3), ([12.3, 0.001], 3), ([0.05, -0.04], 4), ([0.0004], 6), ([float("nan"), 0.5], 3)]
    )
    def test_small_columns_have_more_decimals(self, values, places):
        assert tables.decimals(values) == places

    @pytest.mark.parametrize(("value", "text"), [(-1.5, "−1.500"), (-0.0, "0.000"), (-1e-9, "0.000"), (float("nan"), "–"), (2, "2.000")])
    def test_signs_are_typographic(self, value, text):
        assert tables.number(value) == text

    def test_columns_of_one_quantity_share_their_decimals(self):
        made = tables.tabled(pd.DataFrame({"prompt": ["a"], "effect": [0.5], "next_best": [0.001]}), "")
        assert [cell.text for cell in made.groups[0].rows[0]] == ["a", "0.500", "0.001"]
