import numpy as np
import pytest
import torch

from neuroscope import Moments, NonFiniteActivation


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
    with pytest.raises(NonFiniteActivation, match="2 of 1,200 recorded activations are NaN or infinite; try float32 or bfloat16"):
        Moments.of(values)
