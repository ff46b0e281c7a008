"""What the search decides where effects are known: on prompts that read at layers of their own, however they are listed."""

import itertools
from collections.abc import Iterator

import jaxtyping
import numpy as np
import pandas as pd
import pytest

from benchmarks.calibration import BUDGETS, LAYERS, LISTINGS, STEPS, Case, Looks, Table, calibration, searched, simulated
from neuroscope.generation.patch_runner import random_order
from neuroscope.localization.search.auto import AutoSearch
from neuroscope.localization.search.settings import SETTINGS

LAYER, OTHER = 3, 12


@pytest.fixture(autouse=True, scope="module")
def runs_are_looked_up() -> Iterator[None]:
    """What stands in for a model is of no type of the package's."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def prompts_at(*layers: int, seeds: int = 1) -> Case:
    """Prompts that read at these layers; -1 shows nothing."""
    reads = np.array(layers)
    full = np.repeat((reads >= 0)[:, None], seeds, axis=1).astype(float)
    return Case((np.arange(LAYERS)[:, None, None] == reads[:, None]) * full, full)


def run(case: Case, budget: float, seed: int = 0):
    table = Table(case)
    search = AutoSearch(table, Looks(table, random_order(table.experiment, seed), np.random.default_rng(seed)), budget)
    confidence = search.run()
    return confidence, search.effects().of_layers(range(LAYERS)), table


GROUPED = (OTHER,) * 4 + (LAYER,) * 7
IN_TURN = (OTHER, LAYER) * 4 + (LAYER,) * 3


@pytest.mark.filterwarnings("ignore:budget=")
@pytest.mark.parametrize("budget", [1 / 20, 1 / 5, 1])
@pytest.mark.parametrize("reads", [GROUPED, GROUPED[::-1], IN_TURN])
@pytest.mark.parametrize("seed", [0, 1])
def test_eleven_prompts_in_two_groups_never_make_it_sure_and_wrong(reads, budget, seed):
    confidence, means, _ = run(prompts_at(*reads), budget, seed)
    assert means.argmax() == LAYER or confidence.probability < SETTINGS.target_confidence
    if budget == 1:
        assert means.argmax() == LAYER
        assert not confidence.tied


@pytest.mark.filterwarnings("ignore:budget=")
@pytest.mark.parametrize("budget", [1 / 20, 1 / 5, 1])
@pytest.mark.parametrize(("each", "seed"), list(itertools.product((3, 4), (0, 1))))
def test_an_even_split_is_said_to_be_one_or_it_is_not_sure(each, seed, budget):
    confidence, means, _ = run(prompts_at(*(LAYER,) * each, *(OTHER,) * each), budget, seed)
    assert confidence.probability < SETTINGS.target_confidence or confidence.tied == (LAYER, OTHER)
    if budget == 1:
        assert confidence.tied == (LAYER, OTHER)
        assert means[[LAYER, OTHER]] == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("budget", [1.0, 0.3])
def test_prompts_without_any_change_are_passed_over(budget, seed):
    """However few of the prompts show the concept, the layer that carries it is found."""
    confidence, means, _ = run(prompts_at(*(-1,) * 9, 14, 14, 14), budget, seed)
    assert means.argmax() == 14
    assert 14 in confidence.measured_layers


def test_where_no_image_changes_all_windows_are_made_or_it_says_how_little_it_knows():
    confidence, means, table = run(prompts_at(*(-1,) * 11), 1.0)
    assert confidence.measured_layers == tuple(range(LAYERS))
    assert not means.any()
    confidence, means, fewer = run(prompts_at(*(-1,) * 11), 1 / 3)
    assert confidence.probability <= 0.9
    assert confidence.measured_layers == ()
    assert not means.any()
    assert fewer.nfe <= table.nfe / 3


def test_with_a_small_budget_it_looks_for_a_change_on_as_many_prompts_as_it_can_pay():
    table = Table(prompts_at(*(-1,) * 40))
    looks = Looks(table, random_order(table.experiment, 0), np.random.default_rng(0))
    AutoSearch(table, looks, 1 / 20).run()
    left = (LAYERS + 2) * 40 * STEPS / 20 - looks.nfe
    assert 0 <= left < 12 * STEPS
    assert int(table.made["target"].sum()) > 8


def test_an_effect_that_a_few_prompts_may_have_is_not_ruled_out_by_others():
    """No image of the first four has any effect of a layer; two of 20 would be enough for all windows."""
    case = prompts_at(*(LAYER,) * 20)
    nothing = Case(np.zeros_like(case.values), case.full)
    confidence, means, _ = run(nothing, 1 / 5)
    assert not means.any()
    assert confidence.probability < 0.9


@pytest.mark.filterwarnings("ignore:budget=")
def test_the_simulated_runs_are_counted_as_runs():
    """A base, a goal, a layer and the others: so many rows as denoising steps."""
    _, _, table = run(prompts_at(*(LAYER,) * 3), 1 / 20)
    runs = sum(int(made.sum()) for made in table.made.values())
    assert table.nfe == runs * STEPS


@pytest.mark.filterwarnings("ignore:budget=")
def test_the_first_four_of_eleven_that_agree_do_not_make_it_sure():
    """In an order in which a smaller group comes first, as one of 330 has it."""
    case = prompts_at(*GROUPED)
    table = Table(case)
    order = [(pair, 0) for pair in range(11)]
    search = AutoSearch(table, Looks(table, order, np.random.default_rng(0)), 1.0)
    search.run()
    assert search.effects().of_layers(range(LAYERS)).argmax() == LAYER


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return simulated(1, seed=7, splits=[(11,), (4, 7), (3, 3)])


@pytest.mark.slow
def test_of_answers_with_95_percent_at_least_as_many_are_right_at_every_budget():
    found = calibration(simulated(12, seed=7))
    assert (found["95 % sure"] > 10).all()
    assert (found["of these right"] >= SETTINGS.target_confidence).all()
    assert not found["overrun without a warning"].any()


class TestCalibration:
    def test_of_answers_with_95_percent_at_least_as_many_are_right(self, table):
        sure = table[table["sure"] >= SETTINGS.target_confidence]
        assert len(sure) > 9
        assert sure["right"].mean() >= SETTINGS.target_confidence

    def test_a_budget_is_kept_or_its_overrun_is_said(self, table):
        assert not table["silent overrun"].any()

    def test_the_table_counts_them(self, table):
        found = calibration(table)
        assert list(found.index) == list(BUDGETS)
        assert found["cases"].sum() == len(table)
        assert found["95 % sure"].sum() == (table["sure"] >= SETTINGS.target_confidence).sum()

    @pytest.mark.parametrize("listing", LISTINGS)
    def test_a_listing_is_an_order_of_the_same_prompts(self, listing):
        case = Case.of((4, 7), listing, np.random.default_rng(0), blank=2)
        assert sorted(case.values.sum(axis=(1, 2))) == [0] * (LAYERS - 2) + [4, 7]
        assert case.full.sum() == 11
        assert len(case.full) == 13

    def test_a_case_of_one_prompt_is_right_at_once(self):
        assert searched(prompts_at(5), 1.0)["right"]
