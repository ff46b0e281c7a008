import numpy as np
import pytest

from neuroscope.core.results.quality import p_rank_reversal
from neuroscope.localization.search.control_variates import ControlVariates

MADE, SEEN, OF = 4, 10, 20


def drawn(rng: np.random.Generator, scatter: float, ahead: float = 0.4) -> tuple[np.ndarray, np.ndarray]:
    """Effects of two layers in all images, and what is predicted of them: the same up to a constant and to so much scatter."""
    predicted = rng.normal(size=(2, OF))
    effects = predicted + scatter * rng.normal(size=(2, OF)) + np.array([[ahead], [0.0]])
    return effects, predicted


def known(values: np.ndarray, images: int) -> np.ndarray:
    """Only of the first images."""
    return np.where(np.arange(values.shape[1]) < images, values, np.nan)


def variates(effects: np.ndarray, predicted: np.ndarray, made: int = MADE, seen: int = SEEN) -> ControlVariates:
    return ControlVariates(known(effects, made), known(predicted, seen))


def test_means_are_what_is_foreseen_in_many_and_what_was_missed_in_few():
    effects, predicted = drawn(np.random.default_rng(0), 0.3)
    expected = predicted[:, :SEEN].mean(axis=1) + (effects - predicted)[:, :MADE].mean(axis=1)
    estimates = variates(effects, predicted).estimates()
    np.testing.assert_allclose(np.nanmean(estimates, axis=1), expected)
    np.testing.assert_array_equal(estimates[:, :MADE], effects[:, :MADE])
    assert np.isnan(estimates[:, SEEN:]).all()


def test_what_is_foreseen_up_to_a_constant_is_known():
    """Then only images that were not screened leave any doubt, as if all that were had been made."""
    effects, predicted = drawn(np.random.default_rng(1), 0.0)
    found = variates(effects, predicted)
    assert found.r_squared == pytest.approx(1)
    np.testing.assert_allclose(found.estimates()[:, :SEEN], effects[:, :SEEN])
    assert found.variance(MADE, SEEN, OF) == pytest.approx(1 / SEEN - 1 / OF)
    every = variates(effects, predicted, seen=OF)
    assert every.p_rank_reversal(0, 1, OF) == pytest.approx(0, abs=1e-9)
    assert every.p_rank_reversal(1, 0, OF) == pytest.approx(1, abs=1e-9)


def test_r_squared_is_one_less_the_missed_scatter_around_each_layers_mean():
    effects, predicted = drawn(np.random.default_rng(2), 0.5)
    missed = effects - predicted
    expected = 1 - missed[:, :MADE].var(axis=1).sum() / effects[:, :MADE].var(axis=1).sum()
    assert variates(effects, predicted).r_squared == pytest.approx(expected)


@pytest.mark.parametrize(("made", "seen", "scatter"), [(2, SEEN, 0.1), (MADE, MADE, 0.1), (SEEN, MADE, 0.1), (MADE, SEEN, 9.0)])
def test_where_it_cannot_help_it_changes_nothing(made, seen, scatter):
    """Too few images, none that was only screened, some that were not, and a screen that misleads."""
    effects, predicted = drawn(np.random.default_rng(3), scatter)
    found = variates(effects, predicted, made, seen)
    differences = (effects[0] - effects[1])[:made]
    assert found.p_rank_reversal(0, 1, OF) == p_rank_reversal(differences, OF)
    np.testing.assert_array_equal(found.estimates(), known(effects, made))
    assert found.variance(made, min(seen, made), OF) == 1 / made - 1 / OF


def test_a_layer_that_was_not_screened_keeps_its_effects():
    effects, predicted = drawn(np.random.default_rng(4), 0.1)
    found = ControlVariates(known(effects, MADE), np.stack([known(predicted, SEEN)[0], np.full(OF, np.nan)]))
    np.testing.assert_array_equal(found.estimates()[1], known(effects, MADE)[1])
    assert found.p_rank_reversal(0, 1, OF) == p_rank_reversal((effects[0] - effects[1])[:MADE], OF)


@pytest.mark.parametrize("scatter", [0.3, 0.8])
def test_chances_hold_on_average_and_estimates_are_better(scatter):
    rng = np.random.default_rng(5)
    stated, wrong, errors, plain = [], [], [], []
    for _ in range(4000):
        effects, predicted = drawn(rng, scatter, rng.normal(0, 0.5))
        found = variates(effects, predicted)
        if not found.helps:
            continue
        truth = (effects[0] - effects[1]).mean()
        one, other = np.nanmean(found.estimates(), axis=1)
        stated.append(found.p_rank_reversal(0, 1, OF))
        wrong.append(truth < 0)
        errors.append(one - other - truth)
        plain.append((effects[0] - effects[1])[:MADE].mean() - truth)
    for chance in (0.1, 0.3):
        near = np.abs(np.array(stated) - chance) < 0.05
        assert np.mean(np.array(wrong)[near]) == pytest.approx(chance, abs=0.06)
    assert np.std(errors) < 0.85 * np.std(plain)
