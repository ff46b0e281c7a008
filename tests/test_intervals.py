"""Intervals of shares of images: exact, and never without width where all images agree."""

import itertools
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.stats

from neuroscope import summarize
from neuroscope.core.statistics import difference_interval, is_share, mean_interval, share_interval
from neuroscope.report import plots
from neuroscope.report.tables import tabled
from tests.test_effects import effects_of

COUNTS = [(0, 16), (16, 16), (1, 16), (7, 16), (0, 1), (1, 1), (3, 4), (64, 64)]


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
@pytest.mark.parametrize(("count", "of"), COUNTS)
def test_it_is_clopper_and_pearsons(count, of, confidence):
    expected = scipy.stats.binomtest(count, of).proportion_ci(confidence)
    assert share_interval(count, of, confidence) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_a_part_of_a_prompt_lies_between_whole_ones():
    lower, middle, upper = (share_interval(count, 8) for count in (3, 3.5, 4))
    assert lower[0] < middle[0] < upper[0]
    assert lower[1] < middle[1] < upper[1]


def test_of_no_prompt_nothing_is_known():
    assert np.isnan(share_interval(0, 0)).all()


@pytest.mark.parametrize("truth", [0.0, 0.05, 0.5, 0.9])
def test_it_holds_the_truth_as_often_as_it_says_when_images_of_a_prompt_agree(truth):
    """Three seeds a prompt that always agree, summed over all outcomes of 12 prompts."""
    held = 0.0
    for count in range(13):
        scores = np.repeat(np.arange(12) < count, 3).astype(float).reshape(12, 3).mean(axis=1)
        low, high = mean_interval(scores, share=True)
        held += (low <= truth <= high) * scipy.stats.binom.pmf(count, 12, truth)
    assert held >= 0.95


@pytest.mark.parametrize(("up", "down"), [(0.2, 0.2), (0.0, 0.0), (0.5, 0.1), (0.9, 0.1)])
def test_a_difference_of_shares_is_held_as_often_as_it_says(up, down):
    held, of = 0.0, 9
    for more, less in itertools.product(range(of + 1), repeat=2):
        if more + less <= of:
            low, high = difference_interval(more, less, of)
            chance = scipy.stats.multinomial.pmf([more, less, of - more - less], of, [up, down, max(0.0, 1 - up - down)])
            held += (low - 1e-12 <= up - down <= high + 1e-12) * chance
    assert held >= 0.95


def table_of(share: int, prompts: int = 16, seeds: int = 1, metric: str = "reader") -> pd.DataFrame:
    """Every image of the first prompts scores 1, the others 0."""
    rows = [("mask", f"prompt {number}", seed, metric, float(number < share)) for number in range(prompts) for seed in range(seeds)]
    return pd.DataFrame(rows, columns=["intervention", "prompt", "seed", "metric", "score"])


class TestSummaries:
    @pytest.mark.parametrize("seeds", [1, 4])
    @pytest.mark.parametrize("share", [0, 5, 16])
    def test_a_share_has_the_exact_interval_of_its_prompts(self, share, seeds):
        (row,) = summarize(table_of(share, seeds=seeds)).itertuples()
        expected = scipy.stats.binomtest(share, 16).proportion_ci()
        assert (row.mean, row.low, row.high) == pytest.approx((share / 16, expected.low, expected.high))

    def test_one_arm_of_a_continuous_metric_that_happens_to_be_0_is_no_share(self):
        table = pd.concat([table_of(0), table_of(0).assign(intervention="other", score=np.linspace(0, 1, 16))])
        assert summarize(table).set_index("intervention").loc["mask", ["low", "high"]].isna().all()

    def test_booleans_are_shares(self):
        table = table_of(0).assign(score=False)
        assert summarize(table)["high"].item() == pytest.approx(1 - 0.025 ** (1 / 16))


@pytest.mark.parametrize("share", [0, 16])
def test_nothing_that_is_printed_gives_a_share_an_interval_of_no_width(share):
    """In the summary as the demo and the command line print it, as JSON, and in the report's table."""
    summary = summarize(table_of(share))
    printed = summary.to_string(index=False, float_format="%.3f").splitlines()[1].split()
    low, high = (0.0, 0.206) if share == 0 else (0.794, 1.0)
    assert printed[2:5] == [f"{share / 16:.3f}", f"{low:.3f}", f"{high:.3f}"]
    (row,) = json.loads(summary.to_json(orient="records"))
    assert row["high"] - row["low"] > 0.2
    cells = [cell.text for cell in tabled(summary, "", by="metric").groups[0].rows[0]]
    assert f"{low:.3f} to {high:.3f}" in cells


def test_dashes_stand_for_an_interval_that_is_not_known():
    cells = [cell.text for cell in tabled(summarize(table_of(0).assign(score=0.25)), "", by="metric").groups[0].rows[0]]
    assert "– to –" in cells


class TestDose:
    def test_bands_are_exact_intervals_over_prompts(self):
        table = pd.concat([table_of(share, seeds=2).assign(neurons=count) for count, share in ((1, 16), (2, 0))])
        ax = plots.dose(table)
        (band,) = [each for each in ax.collections if each.get_paths() and len(each.get_paths()[0].vertices) > 4]
        ends = {tuple(np.round(vertex, 6)) for vertex in band.get_paths()[0].vertices}
        for x, share in ((1, 16), (2, 0)):
            for end in scipy.stats.binomtest(share, 16).proportion_ci():
                assert (x, round(end, 6)) in ends
        plt.close(ax.figure)


class TestEffects:
    @pytest.mark.parametrize("share", [0, 3, 8])
    def test_effects_of_a_reader_are_shares_of_the_prompts(self, share):
        values = np.repeat(np.arange(8) < share, 2).reshape(1, 8, 2).astype(float)
        expected = scipy.stats.binomtest(share, 8).proportion_ci()
        found = effects_of(values)
        assert found.intervals()[0] == pytest.approx((expected.low, expected.high))
        assert found.layer_intervals([0])[0] == pytest.approx((expected.low, expected.high))
        assert found.share_of(found.patches[0])[1:] == pytest.approx((expected.low, expected.high))

    def test_the_full_change_too(self):
        assert effects_of(np.zeros((1, 8, 1))).total_interval() == pytest.approx((0.025 ** (1 / 8), 1.0))

    def test_where_images_may_gain_the_concept_a_row_of_zeros_reaches_to_either_side(self):
        values = np.zeros((2, 8, 1))
        values[1, 0] = -1
        (low, high), _ = effects_of(values).intervals()
        assert (low, high) == pytest.approx(difference_interval(0, 0, 8))
        assert low == pytest.approx(-high)
        assert high > 0.3

    def test_a_share_of_the_full_change_counts_the_prompts_that_show_it(self):
        full = np.repeat([1.0, 0.0], [5, 3])[:, None]
        found = effects_of(full[None], full, relative=True)
        assert found.intervals()[0] == pytest.approx((0.025 ** (1 / 5), 1.0))

    def test_images_that_are_not_known_do_not_count(self):
        values = np.zeros((1, 8, 1))
        values[0, 6:] = np.nan
        assert effects_of(values).intervals()[0] == pytest.approx((0.0, 1 - 0.025 ** (1 / 6)))

    def test_other_effects_keep_their_bootstrap(self):
        values = np.linspace(0, 1, 8).reshape(1, 8, 1)
        low, high = effects_of(values).intervals()[0]
        assert 0.25 < low < 0.5 < high < 0.75

    def test_whether_anything_moves_does_not_hang_on_one_image(self):
        full = np.zeros((32, 1))
        full[0] = 1
        found = effects_of(np.zeros((1, 32, 1)), full)
        assert found.total_interval()[0] > 0
        assert not found.is_moved()
        assert effects_of(np.zeros((1, 4, 1))).is_moved()


@pytest.mark.parametrize(
    ("scores", "share"),
    [([0, 1, np.nan], True), ([0.0, 0.0], True), ([np.nan], False), ([0, 0.5], False), ([2.0], False), ([-1.0, 0.0], False)],
)
def test_shares_are_zeros_and_ones(scores, share):
    assert is_share(np.array(scores, dtype=float)) == share
