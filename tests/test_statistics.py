import numpy as np
import pytest
import scipy.stats
import torch

from neuroscope import Moments, NonFiniteActivation
from neuroscope.core.statistics import mean_test


def merged(values: np.ndarray, cuts: list[int]) -> Moments:
    batches = [Moments.of(torch.from_numpy(batch)) for batch in np.split(values, cuts)]
    total = batches[0]
    for batch in batches[1:]:
        total = total.merged(batch)
    return total


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("shape", [(37, 5), (37, 3, 5)])
@pytest.mark.parametrize("seed", range(3))
def test_moments_merged_in_any_batches_are_those_of_everything(seed, shape, offset):
    rng = np.random.default_rng(seed)
    values = rng.normal(offset, 1, shape)
    moments = merged(values, sorted(rng.choice(np.arange(1, len(values)), size=4, replace=False)))
    assert moments.count == len(values)
    np.testing.assert_allclose(moments.mean, values.mean(axis=0), rtol=1e-14, atol=1e-13)
    np.testing.assert_allclose(moments.variance, values.var(axis=0, ddof=1), rtol=1e-9)
    np.testing.assert_allclose(moments.root_mean_square, np.sqrt((values**2).mean(axis=0)), rtol=1e-12)


def test_the_order_of_merging_does_not_matter():
    values = np.random.default_rng(0).normal(1e6, 1, (20, 4))
    first, second = Moments.of(torch.from_numpy(values[:7])), Moments.of(torch.from_numpy(values[7:]))
    np.testing.assert_allclose(first.merged(second).variance, second.merged(first).variance, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_everything_is_float64_whatever_the_activations(dtype):
    moments = Moments.of(torch.ones(3, 2, dtype=dtype))
    assert {each.dtype for each in (moments.mean, moments.deviation, moments.variance, moments.root_mean_square)} == {torch.float64}


def test_a_single_observation_has_no_variance():
    assert Moments.of(torch.ones(1, 2)).variance.isnan().all()


def test_the_summary_is_mean_deviation_and_count():
    values = np.random.default_rng(0).normal(size=(9, 4))
    mean, deviation, count = Moments.of(torch.from_numpy(values)).summary()
    np.testing.assert_allclose(mean, values.mean(axis=0))
    np.testing.assert_allclose(deviation, values.std(axis=0, ddof=1))
    assert count == 9


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_activations_that_are_not_finite_are_counted_and_refused(bad):
    values = torch.zeros(40, 30)
    values[3, 4] = values[5, 6] = bad
    with pytest.raises(NonFiniteActivation, match="of 1,200 recorded activations, 2 are NaN or infinite; try float32 or bfloat16"):
        Moments.of(values)


@pytest.mark.parametrize("least", [0.0, 0.3])
def test_a_mean_is_tested_against_the_least_that_counts(least):
    values = np.random.default_rng(0).normal([0.0, 0.3, 1.0, -1.0], 0.5, (12, 4))
    error = values.std(axis=0, ddof=1) / np.sqrt(12)
    above, below = (scipy.stats.t.sf((sign * values.mean(axis=0) - least) / error, 11) for sign in (1, -1))
    one, two = (mean_test(torch.from_numpy(values), two_sided=two_sided, least=least) for two_sided in (False, True))
    np.testing.assert_allclose(one.stderr, error)
    np.testing.assert_allclose(one.p_value, above)
    np.testing.assert_allclose(two.p_value, np.minimum(1, 2 * np.minimum(above, below)))


def test_without_a_threshold_both_sides_are_the_usual_test():
    values = np.random.default_rng(1).normal(0.2, 1, (9, 5))
    found = mean_test(torch.from_numpy(values), two_sided=True)
    np.testing.assert_allclose(found.p_value, scipy.stats.ttest_1samp(values, 0, axis=0).pvalue)


def test_values_that_never_change_are_beyond_the_least_or_not():
    found = mean_test(torch.tensor([[0.25, 0.5, -0.5]] * 3, dtype=torch.float64), two_sided=False, least=0.25)
    assert found.p_value.tolist() == [1.0, 0.0, 1.0]
    both = mean_test(torch.tensor([[0.25, 0.5, -0.5]] * 3, dtype=torch.float64), two_sided=True, least=0.25)
    assert both.p_value.tolist() == [1.0, 0.0, 0.0]


def test_q_values_against_an_effect_size_hold_their_rate_where_those_against_nothing_do_not():
    """200 neurons with steady effects that do not count, and 20 that do, in 30 draws of 16 images."""
    rng, shares = np.random.default_rng(0), {0.0: [], 0.1: []}
    effects = np.r_[np.full(200, 0.05), np.full(20, 0.5)]
    for _ in range(30):
        values = torch.from_numpy(effects + rng.normal(0, 0.1, (16, 220)))
        for least, found in shares.items():
            sure = scipy.stats.false_discovery_control(mean_test(values, two_sided=False, least=least).p_value.numpy()) < 0.05
            found.append(sure[:200].sum() / max(1, sure.sum()))
    assert np.mean(shares[0.1]) <= 0.05 < 0.5 < np.mean(shares[0.0])
