import json

import msgspec
import numpy as np
import pytest
import torch

from neuroscope import Effects, Patch
from neuroscope.core.results.effects import EffectsHeader


def effects_of(values: np.ndarray, full: np.ndarray | None = None, patches: list[Patch] | None = None, relative: bool = False) -> Effects:
    """Effects [patch, prompt, seed] as given; each patch is one layer unless given, and the total effect is 1."""
    values = np.asarray(values, dtype=float)
    count, prompts, seeds = values.shape
    full = np.ones((prompts, seeds)) if full is None else np.asarray(full, dtype=float)
    return Effects(
        tuple(patches or [Patch((number,)) for number in range(count)]),
        tuple(f"prompt {number}" for number in range(prompts)),
        tuple(range(seeds)),
        torch.tensor(values),
        torch.tensor(full),
        relative,
    )


@pytest.fixture
def drawn() -> np.ndarray:
    """Three patches on ten prompts and six seeds, with differences between prompts and between seeds."""
    rng = np.random.default_rng(0)
    return np.array([0.0, 0.5, 2.0])[:, None, None] + rng.normal(size=(3, 10, 1)) + 0.5 * rng.normal(size=(3, 1, 6))


class TestMeans:
    def test_a_score_is_the_mean_over_prompts_and_seeds(self, drawn):
        np.testing.assert_allclose(effects_of(drawn).means(), drawn.mean(axis=(1, 2)))

    def test_a_relative_score_is_the_ratio_of_means_and_not_the_mean_of_ratios(self, drawn):
        full = 1 + np.arange(60).reshape(10, 6) / 10
        found = effects_of(drawn, full, relative=True).means()
        np.testing.assert_allclose(found, drawn.mean(axis=(1, 2)) / full.mean())
        assert not np.allclose(found, (drawn / full).mean(axis=(1, 2)), rtol=1e-3)

    def test_pictures_of_which_the_metric_says_nothing_are_left_out(self, drawn):
        drawn[1, 2, 3] = np.nan
        np.testing.assert_allclose(effects_of(drawn).means()[1], np.delete(drawn[1].flatten(), 2 * 6 + 3).mean())

    @pytest.mark.parametrize("where", ["effect", "full"])
    def test_a_ratio_takes_both_means_over_the_same_pictures(self, drawn, where):
        full = 1 + np.arange(60).reshape(10, 6) / 10
        (drawn[1] if where == "effect" else full)[9, 5] = np.nan
        known = np.arange(60) != 59
        expected = drawn[1].flatten()[known].mean() / full.flatten()[known].mean()
        np.testing.assert_allclose(effects_of(drawn, full, relative=True).means()[1], expected)

    @pytest.mark.parametrize("relative", [False, True])
    def test_where_nothing_is_known_the_score_is_zero(self, drawn, relative):
        drawn[1] = np.nan
        found = effects_of(drawn, relative=relative)
        assert found.means()[1] == 0
        assert found.intervals()[1].tolist() == [0, 0]
        assert found.of_layers([1]).tolist() == [0]

    def test_where_the_full_change_is_nothing_shares_are_zero(self, drawn):
        found = effects_of(drawn, np.zeros((10, 6)), relative=True)
        assert found.means().tolist() == found.shares([0, 1, 2]).tolist() == [0, 0, 0]
        assert found.total_mean() == 0

    def test_the_full_mean_leaves_unknown_pictures_out(self, drawn):
        full = np.arange(60.0).reshape(10, 6)
        full[0, 0] = np.nan
        assert effects_of(drawn, full).total_mean() == pytest.approx(np.arange(1, 60).mean())
        assert effects_of(drawn, np.full((10, 6), np.nan)).total_mean() == 0


class TestIntervals:
    def test_they_hold_the_mean(self, drawn):
        found = effects_of(drawn)
        low, high = found.intervals().T
        assert (low < found.means()).all()
        assert (found.means() < high).all()

    def test_they_are_those_of_an_independent_bootstrap_over_prompts_and_seeds(self, drawn):
        rng, resampled = np.random.default_rng(1), []
        for _ in range(4000):
            weight = np.outer(rng.multinomial(10, [0.1] * 10), rng.multinomial(6, [1 / 6] * 6))
            resampled.append((drawn * weight).sum(axis=(1, 2)) / weight.sum())
        expected = np.quantile(resampled, [0.025, 0.975], axis=0).T
        width = np.ptp(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(effects_of(drawn).intervals() / width, expected / width, atol=0.06)

    def test_a_ratios_interval_is_of_the_ratio(self, drawn):
        """Where every effect is the same share of its total effect, no resampling changes the ratio."""
        full = 1 + np.arange(60).reshape(10, 6)
        found = effects_of(np.stack([0.25 * full, 0.5 * full]), full, relative=True).intervals()
        np.testing.assert_allclose(found, [[0.25, 0.25], [0.5, 0.5]])

    @pytest.mark.parametrize(("prompts", "seeds"), [(40, 6), (10, 24)])
    def test_more_prompts_and_more_seeds_narrow_them(self, prompts, seeds):
        rng = np.random.default_rng(3)
        values = rng.normal(size=(1, 40, 1)) + rng.normal(size=(1, 1, 24))
        wide, narrow = (np.ptp(effects_of(values[:, :p, :s]).intervals()) for p, s in [(10, 6), (prompts, seeds)])
        assert narrow < wide

    def test_with_one_prompt_and_seed_they_have_no_width(self):
        assert effects_of([[[0.3]], [[-0.1]]]).intervals().tolist() == [[0.3, 0.3], [-0.1, -0.1]]

    def test_more_confidence_is_wider_and_the_same_seed_the_same(self, drawn):
        found = effects_of(drawn)
        assert (np.ptp(found.intervals(0.99), axis=1) > np.ptp(found.intervals(0.5), axis=1)).all()
        assert np.array_equal(found.intervals(seed=4), found.intervals(seed=4))
        assert not np.array_equal(found.intervals(seed=4), found.intervals(seed=5))

    def test_the_full_changes_interval_is_that_of_a_probe_with_these_values(self, drawn):
        found = effects_of(drawn, drawn[2], relative=True)
        assert found.total_interval() == pytest.approx(tuple(effects_of(drawn).intervals()[2]))


WINDOWS = [Patch((0, 1)), Patch((1, 2)), Patch((2, 3))]


class TestLayers:
    def test_a_layers_score_is_the_mean_over_the_windows_that_hold_it(self, drawn):
        a, b, c = drawn.mean(axis=(1, 2))
        expected = [a, (a + b) / 2, (b + c) / 2, c]
        np.testing.assert_allclose(effects_of(drawn, patches=WINDOWS).of_layers(range(4)), expected)

    def test_a_layers_parts_are_averaged_too(self, drawn):
        patches = [Patch((0,), "0-50 %"), Patch((0,), "50-100 %"), Patch((1,), "0-50 %")]
        a, b, c = drawn.mean(axis=(1, 2))
        np.testing.assert_allclose(effects_of(drawn, patches=patches).of_layers([1, 0]), [c, (a + b) / 2])

    def test_a_layers_interval_is_that_of_its_own_means(self, drawn):
        middle = drawn[:2].mean(axis=0, keepdims=True)
        found = effects_of(drawn, patches=WINDOWS).layer_intervals([1])
        np.testing.assert_allclose(found, effects_of(middle).intervals())

    def test_shares_are_ratios_whatever_the_scores_are(self, drawn):
        full = 1 + np.arange(60).reshape(10, 6) / 10
        expected = drawn.mean(axis=(1, 2)) / full.mean()
        for relative in (False, True):
            np.testing.assert_allclose(effects_of(drawn, full, relative=relative).shares([0, 1, 2]), expected)

    def test_each_prompt_has_means_of_its_own(self, drawn):
        drawn[2, 4, 1:] = np.nan
        drawn[1, 3] = np.nan
        found = effects_of(drawn).of_layers_by_prompt([2, 1])
        assert found.shape == (10, 2)
        assert found[4, 0] == pytest.approx(drawn[2, 4, 0])
        assert found[3, 1] == 0
        others = [prompt for prompt in range(10) if prompt not in (3, 4)]
        np.testing.assert_allclose(found[others], drawn[[2, 1]][:, others].mean(axis=2).T)


def test_probes_read_as_layers_and_part():
    patches = [Patch((3,)), Patch((3, 4, 5)), Patch((0, 1, 4, 6, 7)), Patch((3,), "0-25 %")]
    assert list(map(str, patches)) == ["3", "3-5", "0-1+4+6-7", "3 0-25 %"]


@pytest.mark.parametrize("relative", [False, True])
def test_through_a_header_of_plain_values_nothing_is_lost(drawn, relative):
    patches = [Patch((0,), "0-50 %"), Patch((0, 1), "50-100 %"), Patch((1,))]
    found = effects_of(drawn, drawn[0], patches, relative)
    again = Effects.from_header(msgspec.convert(json.loads(json.dumps(found.to_header())), EffectsHeader), found.values, found.total)
    for name in ("patches", "prompts", "seeds", "relative"):
        assert getattr(again, name) == getattr(found, name)
    assert torch.equal(again.values, found.values)
    assert torch.equal(again.total, found.total)
