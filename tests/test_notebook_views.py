"""What notebooks show: one screen of HTML for every object that is looked at, in which no text is markup."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pandas as pd
import pytest

import neuroscope as ns
from neuroscope.core.sharing import html
from neuroscope.core.sharing.summary import ROWS, Shown, Summary, binned, said
from neuroscope.evaluation._table import Evaluation
from tests.fuzz.examples import examples
from tests.laws.members import members

EVIL = '<script>alert("&")</script>'


TAGS = {"div", "table", "thead", "tbody", "tr", "th", "td", "svg", "rect", "text"}
CELLS = [(0.123456, "0.1235"), (float("nan"), ""), (None, ""), (pd.NA, ""), (3, "3"), (np.float64(0.5), "0.5")]


def evaluation(name: str = "mask") -> Evaluation:
    rows = [(change, f"prompt {number}", 0, "style", float(change == "none")) for change in ("none", name) for number in range(3)]
    return Evaluation(rows, columns=["intervention", "prompt", "seed", "metric", "score"])


@pytest.fixture(scope="module")
def every(graph, concept, recording) -> list[Shown]:
    """One or more objects of every class that notebooks show."""
    edit = next(each for each in examples() if isinstance(each, ns.ContextMap))
    return [graph, graph.sites, concept, recording, evaluation(), edit.report, *examples()]


def parsed(shown: Shown) -> ElementTree.Element:
    return ElementTree.fromstring(shown._repr_html_())


def test_every_class_that_is_shown_is_tried(every):
    assert {type(each) for each in every} == set(members(Shown))


def test_everything_is_shown_on_one_screen(every):
    for each in every:
        page = parsed(each)
        assert each.summary().verdict in "".join(page.itertext()), type(each)
        assert len(page.findall(".//tbody/tr")) <= ROWS
        assert all(float(svg.get("height")) <= 240 for svg in page.iter("{http://www.w3.org/2000/svg}svg"))
        assert len(each._repr_html_()) < 400_000


def test_no_text_is_markup():
    made = [
        ns.Concept(EVIL, [f"a {EVIL}"], ["a star"]),
        ns.Neurons({EVIL: [0]}, {EVIL: 2}, ns.Provenance(concept=EVIL)),
        ns.NeuronMask(ns.Neurons({EVIL: [0]}, {EVIL: 2}, ns.Provenance(concept=EVIL))),
        ns.LayerScores((0, 1), (0.1, 0.2), ns.Provenance(concept=EVIL, method=EVIL), names=(EVIL, "b")),
        evaluation(EVIL),
    ]
    for each in made:
        assert "<script" not in each._repr_html_()
        assert {one.tag.rpartition("}")[2] for one in parsed(each).iter()} <= TAGS


def test_the_first_rows_are_shown_and_counted():
    table = pd.DataFrame({"a": range(25), "b": np.nan, "c": [0.123456] * 25})
    summary = Summary.of("words", table)
    assert (summary.columns, len(summary.rows), summary.count) == (("a", "c"), 10, 25)
    assert summary.rows[3] == ("3", "0.1235")
    assert "the first 10 of 25 rows" in html.table(summary.columns, summary.rows, summary.count)


def test_cells_are_light_at_zero_and_dark_at_the_largest_number():
    colours = re.findall(r'fill="(#\w+)"', html.heatmap({"a": [0.0, 2.0, -3.0, float("nan")], "b": [1.0]}, "x"))
    low, high = "#f4f6fa", "#1f4e79"
    assert colours[:3] == [low, high, low]
    middle = [(int(low[place : place + 2], 16) + int(high[place : place + 2], 16)) / 2 for place in (1, 3, 5)]
    assert [int(colours[3][place : place + 2], 16) for place in (1, 3, 5)] == pytest.approx(middle, abs=0.5)
    assert html.heatmap({}, "x") == ""
    assert "the first 16 of 20 rows" in html.heatmap({str(each): [0.0] for each in range(20)}, "x")


def test_a_row_of_cells_keeps_the_largest_of_its_neighbours():
    assert binned(range(100), 4) == [24, 49, 74, 99]
    assert binned([1.0, 2.0]) == [1.0, 2.0]
    assert binned([]) == []


@pytest.mark.parametrize(("value", "text"), CELLS)
def test_cells_are_short(value, text):
    assert said(value) == text


def test_the_verdict_of_an_evaluation_has_intervals():
    assert parsed(evaluation()).find("div").text == "style: none 1.00 [0.29, 1.00], mask 0.00 [0.00, 0.71]"  # 1 - 0.025 ** (1 / 3)


def test_what_is_cut_from_an_evaluation_is_a_plain_table():
    assert type(evaluation().head(2)) is pd.DataFrame


def test_importing_and_loading_print_nothing():
    code = "import neuroscope as ns; graph = ns.HookGraph(ns.testbed.load('sd1')); graph._repr_html_(); ns.Concept.style('a')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
