"""Kept results: rows survive a stop, tables of the docs are those of the JSON, and rankings are judged as a second count does."""

import itertools
import json

import numpy as np
import pytest
import scipy.stats
import torch

import neuroscope as ns
from benchmarks.kept import FOLDER, Kept
from benchmarks.neuron_truth import auroc, calibrated, judged, precision
from benchmarks.tables import DOCS, TABLES, with_tables

SITES = ns.Sites([ns.Site("unet.a", 0, "mid", "value", 5, text_only=True), ns.Site("unet.b", 1, "mid", "value", 3, text_only=True)])


@pytest.mark.parametrize("page", ["results/neurons.md", "results/cost.md", "results/joint.md", "sdxl-edits.md"])
def test_tables_are_those_of_the_kept_results(page):
    text = (DOCS / page).read_text()
    assert with_tables(text) == text, "run `python -m benchmarks.tables`"
    assert "<!-- table: " in text


def test_every_table_is_on_a_page():
    every = "".join(page.read_text() for page in DOCS.rglob("*.md"))
    assert [name for name in TABLES if f"<!-- table: {name} -->" not in every] == []


def test_kept_results_are_numbers_that_json_can_hold():
    for path in FOLDER.glob("*.json"):
        json.loads(path.read_text(), parse_constant=lambda name, path=path: pytest.fail(f"{path} holds {name}"))


def test_rows_are_kept_as_they_come(tmp_path):
    kept = Kept(tmp_path / "results" / "some.json")
    kept.add("first", {"seed": 0, "share": 0.5})
    kept.add("second", {"seed": 1}, {"seed": 2})
    again = Kept(tmp_path / "results" / "some.json")
    assert again.sections == {"first": [{"seed": 0, "share": 0.5}], "second": [{"seed": 1}, {"seed": 2}]}
    assert again.holds("second", seed=2)
    assert not again.holds("second", seed=0)
    assert not again.holds("third")


def test_an_area_is_the_share_of_pairs_in_the_right_order():
    rng = np.random.default_rng(0)
    strength, wanted = rng.integers(0, 5, 12).astype(float), np.arange(12) < 4
    pairs = itertools.product(strength[wanted], strength[~wanted])
    assert auroc(strength, wanted) == pytest.approx(np.mean([(first > other) + (first == other) / 2 for first, other in pairs]))


def test_precision_counts_the_first_as_many_as_are_wanted():
    assert precision(np.array([3.0, 1.0, 2.0, 0.0]), np.array([True, True, False, False])) == 0.5


def scores(two_sided: bool) -> ns.NeuronScores:
    values = {"unet.a": torch.tensor([0.9, -0.8, 0.0, 0.1, 0.0]).double(), "unet.b": torch.tensor([0.0, 0.2, 0.0]).double()}
    stderr = {path: torch.full_like(each, 0.05) for path, each in values.items()}
    p_values = {path: torch.from_numpy(scipy.stats.t.sf((each - 0.15) / 0.05, 31)) for path, each in values.items()}
    return ns.NeuronScores(SITES, values, p_values, two_sided=two_sided, stderr=stderr)


def test_a_ranking_is_judged_as_it_ranks_and_by_size():
    towards, carrying = {"unet.a": [0, 3]}, {"unet.a": [0, 1, 3]}
    one, two = (judged(scores(two_sided), towards, carrying) for two_sided in (False, True))
    assert one["precision"] == two["precision"] == 0.5
    assert one["precision_by_size"] == two["precision_by_size"] == pytest.approx(2 / 3)
    assert one["auroc"] > two["auroc"]  # what pushes away comes last, or second


def test_sure_neurons_are_counted_against_the_effect_and_against_nothing():
    found = calibrated(scores(two_sided=False), {"unet.a": [0]}, 32)
    assert found == {"neurons": 8, "planted": 1, "found": 1, "wrong": 0, "found_against_zero": 2, "wrong_against_zero": 1}
